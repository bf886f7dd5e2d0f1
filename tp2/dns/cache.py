"""Answers as bytes, found by the bytes of their question: a hot name costs a dictionary lookup.

A request is all but two octets (its ID) the same each time a program asks, so the whole rest of it is the key, and
nothing has to be parsed. An answer is good for as long as the catalog is the one that it was made from, and as long
as its destinations stay captured: their leases are renewed with it. A lease taken for an answer is asked for
:data:`RENEW_EVERY` seconds longer than the answer's TTL, and covers its repetitions for that time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tp2.cluster.catalog import Catalog
from tp2.types import Wanted

# Seconds. The rarer leases are renewed, the cheaper is a hot name; but by as much a mapping outlives its last answer.
RENEW_EVERY = 5
# A flood of different questions costs this much memory and no more: octets of requests and replies, and what an entry
# costs besides.
MOST_OCTETS = 32 << 20
ENTRY_OCTETS = 400


class _Entry:
    __slots__ = ("renew_at", "reply", "wanted")

    def __init__(self, reply: bytes, wanted: tuple[Wanted, ...], renew_at: float) -> None:
        self.reply = reply
        self.wanted = wanted
        self.renew_at = renew_at


def leases(wanted: Sequence[Wanted]) -> tuple[Wanted, ...]:
    """What to lease so that an answer naming *wanted* may be repeated from the cache."""
    return tuple([Wanted(name, destination, ttl + RENEW_EVERY) for name, destination, ttl in wanted])


class AnswerCache:
    """Answers to requests over UDP.

    :param catalog: gives the cluster as it is now.
    :param renew: renews leases, and says whether all of them stand.
    :param clock: monotonic time in seconds.
    """

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        renew: Callable[[Sequence[Wanted]], bool],
        clock: Callable[[], float],
    ) -> None:
        self._catalog = catalog
        self._renew = renew
        self._clock = clock
        self._entries: dict[bytes, _Entry] = {}
        self._made_from: Catalog | None = None
        self._octets = 0

    def reply(self, request: bytes) -> bytes | None:
        """The reply to *request*, whose destinations are captured as of now; None if it has to be made."""
        entry = self._entries.get(request[2:])
        if entry is None or self._catalog() is not self._made_from:
            return None
        now = self._clock()
        if now >= entry.renew_at:
            if not self._renew(entry.wanted):
                return None
            entry.renew_at = now + RENEW_EVERY
        return request[:2] + entry.reply

    def remember(self, request: bytes, reply: bytes, wanted: tuple[Wanted, ...], catalog: Catalog) -> None:
        """Keep a *reply* made from *catalog*, whose leases *wanted* have just been taken or renewed."""
        octets = len(request) + len(reply) + ENTRY_OCTETS
        if catalog is not self._made_from or self._octets + octets > MOST_OCTETS:
            self.clear()
            self._made_from = catalog
        renew_at = self._clock() + RENEW_EVERY if wanted else math.inf
        self._entries[request[2:]] = _Entry(reply[2:], wanted, renew_at)
        self._octets += octets

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._octets = 0

    def __len__(self) -> int:
        return len(self._entries)
