"""Do our queries come back to us? Pure; time is passed in.

A nameserver may hand our queries to somebody whose queries are captured and so come to tp2: a resolver on this
machine, for one. Then the same name is asked by two while the first still waits, which is suspicious, but may be
chance. The proof is a question that nobody else can ask: the same name with a random label before it, so that it
takes the same way. If that comes in, it went in a circle, and through which server is known.
"""

from __future__ import annotations

import secrets
import struct
from collections import Counter

from tp2.dns.message import HEADER_SIZE
from tp2.dns.servers import Server

# Seconds. A probe costs the servers a query for a name that does not exist, so they are rare.
_PROBE_EVERY = 5.0
_PROBE_LIVES = 10.0
_PREFIX = b"tp2-probe-"
_LONGEST_NAME = 255


class LoopWatch:
    """What is being asked upstream, and which probes are out."""

    def __init__(self) -> None:
        self._asked: Counter[bytes] = Counter()
        self._probes: dict[bytes, tuple[Server, float]] = {}
        self._last: dict[Server, float] = {}

    def enter(self, question: bytes) -> None:
        """A client's *question* (a question section's bytes) is about to be asked upstream."""
        self._asked[_folded(question)] += 1

    def leave(self, question: bytes) -> None:
        """It is settled."""
        key = _folded(question)
        self._asked[key] -= 1
        if self._asked[key] <= 0:
            del self._asked[key]

    def suspicious(self, question: bytes) -> bool:
        """Whether *question* is being asked more than once."""
        return self._asked[_folded(question)] > 1

    def probe(self, question: bytes, server: Server, now: float) -> bytes | None:
        """The query that proves a loop through *server* by way of *question*; None if one is out already."""
        if now - self._last.get(server, -_PROBE_EVERY) < _PROBE_EVERY:
            return None
        self._probes = {label: probe for label, probe in self._probes.items() if now - probe[1] < _PROBE_LIVES}
        self._last = {known: at for known, at in self._last.items() if now - at < _PROBE_EVERY}
        label = _PREFIX + secrets.token_hex(8).encode()
        name = question[:-4]
        while len(name) + 1 + len(label) > _LONGEST_NAME:
            name = name[1 + name[0] :]
        self._probes[label] = server, now
        self._last[server] = now
        # RD, one question: as plain as a query can be, since not the reply is of interest.
        header = secrets.token_bytes(2) + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0)
        return header + bytes((len(label),)) + label + name + question[-4:]

    def recognise(self, question: bytes, now: float) -> Server | None:
        """The server that *question* went through if it is one of our probes."""
        if not self._probes:
            return None
        probe = self._probes.get(question[1 : 1 + question[0]].lower())
        return probe[0] if probe is not None and now - probe[1] < _PROBE_LIVES else None


def _folded(question: bytes) -> bytes:
    return question[:-4].lower() + question[-4:]


def question_of(query: bytes) -> bytes:
    """The question section of a *query* that has been parsed: one question, its name uncompressed."""
    end = HEADER_SIZE
    while query[end]:
        end += 1 + query[end]
    return query[HEADER_SIZE : end + 5]
