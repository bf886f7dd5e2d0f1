"""A double of macOS' resolver, since glibc does not read /etc/resolver: a nameserver that heeds resolver(5)'s files.

A query goes to the nameserver and port of the file whose domain is the longest suffix of its name, else to the one that
is given. Run as ``python macresolver.py OTHERS``; it listens on port 53 of 127.0.0.1 and says ``ready``.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

DIRECTORY = Path("/etc/resolver")


def name_of(query: bytes) -> str:
    """Return the name that a query asks for (RFC 1035 section 4.1.2)."""
    labels, place = [], 12
    while length := query[place]:
        labels.append(query[place + 1 : place + 1 + length].decode("latin-1"))
        place += 1 + length
    return ".".join(labels).lower()


def steered() -> dict[str, tuple[str, int]]:
    """Return the nameserver of each domain."""
    found = {}
    for path in DIRECTORY.iterdir() if DIRECTORY.is_dir() else ():
        with contextlib.suppress(OSError, KeyError):
            words = dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if line[:1] not in ("", "#"))
            found[words.get("domain", path.name)] = (words["nameserver"], int(words.get("port", "53")))
    return found


def server_for(name: str, others: str) -> tuple[str, int]:
    """Return whom to ask for *name*."""
    files = steered()
    labels = name.split(".")
    for first in range(len(labels)):
        if (server := files.get(".".join(labels[first:]))) is not None:
            return server
    return others, 53


def main(others: str) -> None:
    """Serve until killed; one query at a time is enough for a test."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 53))
        print("ready", flush=True)
        while True:
            query, client = listening.recvfrom(65535)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
                asking.settimeout(5)
                asking.connect(server_for(name_of(query), others))
                asking.send(query)
                listening.sendto(asking.recv(65535), client)


if __name__ == "__main__":
    main(sys.argv[1])
