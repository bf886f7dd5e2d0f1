"""Netlink, as far as this room needs it: one request and its answer, a dump, and notifications.

The format is that of netlink(7): a header, a fixed part that depends on the kind of message, and attributes
(type, length, value), everything in the byte order of the machine. A process for each question (``ip``, ``ss``)
would cost a hundred times as much, and the helper has no right to start one that keeps its privilege.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

#: Protocols: rtnetlink(7), sock_diag(7), and netfilter's (netlink(7)).
ROUTE: Final = 0
SOCK_DIAG: Final = 4
NETFILTER: Final = 12

_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = 0x1
_ACK: Final = 0x4
_DUMP: Final = 0x300
_ERROR: Final = 2
_DONE: Final = 3
_BUFFER: Final = 1 << 18


class Message(NamedTuple):
    """One message: its kind (``RTM_NEWROUTE``), and what comes after the header."""

    kind: int
    payload: bytes


class Netlink:
    """A netlink socket; in blocking mode, and used for one thing at a time.

    :param protocol: :data:`ROUTE`, :data:`SOCK_DIAG` or :data:`NETFILTER`.
    :param groups: the bits of the multicast groups to be told of.

    :raises OSError: the kernel has no such protocol.
    """

    def __init__(self, protocol: int, groups: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, groups))
        self._sequence = 0

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are notifications."""
        return self._socket.fileno()

    def ask(self, kind: int, body: bytes, flags: int = 0) -> bytes:
        """Send a request; return the payload of the answer, or nothing if it is an acknowledgement.

        :raises OSError: with the kernel's error number.
        """
        sequence = self._send(kind, body, flags)
        while True:
            for message, number in self._receive():
                # What an interrupted request left behind is not for us.
                if number == sequence:
                    return b"" if message.kind == _ERROR else message.payload

    def change(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Send a request that is answered by an acknowledgement only.

        :raises OSError: with the kernel's error number; nothing has changed.
        """
        self.ask(kind, body, flags | _ACK)

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """Return everything of a kind.

        :raises OSError: with the kernel's error number.
        """
        sequence = self._send(kind, body, _DUMP)
        found: list[Message] = []
        while True:
            for message, number in self._receive():
                if number != sequence:
                    continue
                if message.kind == _DONE:
                    return found
                found.append(message)

    def pending(self) -> Iterator[Message]:
        """Return the notifications that have come, without waiting for more.

        :raises OSError: ENOBUFS: there were too many, and some were lost.
        """
        while True:
            try:
                data = self._socket.recv(_BUFFER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            yield from (message for message, _ in _messages(data))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, kind: int, body: bytes, flags: int) -> int:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, self._sequence, 0)
        self._socket.sendto(header + body, (0, 0))
        return self._sequence

    def _receive(self) -> Iterator[tuple[Message, int]]:
        return _messages(self._socket.recv(_BUFFER))


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded to where the next may begin."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes, offset: int) -> dict[int, bytes]:
    """Return the attributes in *data* from *offset* on, by their kind."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        # The two highest bits say how the value is written, not what it is.
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += length + -length % 4
    return found


def _messages(data: bytes) -> Iterator[tuple[Message, int]]:
    """Return the messages in a datagram and their sequence numbers.

    :raises OSError: one of them says that the kernel refused.
    """
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        payload = data[offset + _HEADER.size : offset + length]
        if kind in (_ERROR, _DONE) and len(payload) >= 4:
            (code,) = struct.unpack_from("=i", payload)
            if code < 0:
                raise OSError(-code, os.strerror(-code))
        yield Message(kind, payload), sequence
        offset += max(length, _HEADER.size) + -length % 4
