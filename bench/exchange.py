"""What the soak's client and server say to each other, and the bytes that they send. Pure.

The client sends a :class:`Request` and then bytes until it ends its sending side. Meanwhile the server sends as many
bytes as it was asked for; when the client's have ended, it sends a :class:`Receipt` and ends the connection. Every
connection has bytes of its own, so that those of another one are wrong ones.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final, NamedTuple

# The period is prime, so that a block that is lost or doubled shows.
_PERIOD: Final = 65521
_BLOCK: Final = memoryview(random.Random(2026).randbytes(_PERIOD) * 2)  # noqa: S311 - bytes to recognise, no secret

_REQUEST: Final = struct.Struct("!QQ?")
_RECEIPT: Final = struct.Struct("!32sQ32s4sH")

REQUEST_SIZE: Final = _REQUEST.size
RECEIPT_SIZE: Final = _RECEIPT.size


class Request(NamedTuple):
    """How a connection begins. *down* is how many bytes the server is to send.

    ``whole`` says whether the client means to go through with it.
    """

    number: int
    down: int
    whole: bool

    def pack(self) -> bytes:
        """Return its bytes."""
        return _REQUEST.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Request:
        """Read it from its :data:`REQUEST_SIZE` bytes."""
        return cls(*_REQUEST.unpack(data))


class Receipt(NamedTuple):
    """How a connection ends: what the server has received and sent, and where the client had connected to.

    ``received`` and ``sent`` are SHA-256 digests.
    """

    received: bytes
    count: int
    sent: bytes
    address: str
    port: int

    def pack(self) -> bytes:
        """Return its bytes."""
        return _RECEIPT.pack(self.received, self.count, self.sent, IPv4Address(self.address).packed, self.port)

    @classmethod
    def unpack(cls, data: bytes) -> Receipt:
        """Read it from its :data:`RECEIPT_SIZE` bytes."""
        received, count, sent, address, port = _RECEIPT.unpack(data)
        return cls(received, count, sent, str(IPv4Address(address)), port)


def payload(number: int, size: int, start: int = 0) -> Iterator[memoryview]:
    """Return the bytes from *start* to *start* + *size* of those that connection *number* sends, in pieces."""
    at = (number * 7919 + start) % _PERIOD
    while size > 0:
        piece = _BLOCK[at : at + min(size, _PERIOD)]
        yield piece
        size -= len(piece)


class Plan(NamedTuple):
    """What one connection of the soak does.

    ``broken`` says that the client resets it when half of what it asked for has come.
    """

    up: int
    down: int
    broken: bool


def plan(number: int) -> Plan:
    """Return the plan of connection *number*: mostly small ones, as programs have, some large ones, some broken off."""
    dice = random.Random(number)  # noqa: S311 - the same in every run
    largest = dice.choices((2_000, 200_000, 4_000_000, 30_000_000), (85, 12, 2.7, 0.3))[0]
    up, down = dice.randrange(largest), dice.randrange(largest)
    # Mostly one of the directions carries what the other one only asks for.
    if dice.random() < 0.8:
        up, down = (up, down % 500) if dice.random() < 0.4 else (up % 500, down)
    return Plan(up, down, dice.random() < 0.03)
