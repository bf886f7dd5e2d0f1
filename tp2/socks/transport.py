"""What is below an SSH connection: transports of the event loop, whose bytes are read to where they are needed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Protocol


class Reader(Protocol):
    """Who reads and writes what goes through a transport."""

    def space(self) -> memoryview:
        """Return where the next bytes shall be read to; it is not empty."""

    def filled(self, size: int) -> None:
        """*size* bytes have been read to there."""

    def fed(self, data: bytes) -> None:
        """Take bytes that were read elsewhere."""

    def socket_takes(self, more: bool) -> None:
        """The transport takes more to be sent, or has enough for now."""

    def ended(self, cause: Exception | None) -> None:
        """The transport is closed, by *cause* if that was nobody's wish."""


class _Below(asyncio.BaseProtocol):
    """What any transport has to say to a link, but for bytes."""

    def __init__(self, link: Reader) -> None:
        self._link = link

    def pause_writing(self) -> None:
        self._link.socket_takes(False)

    def resume_writing(self) -> None:
        self._link.socket_takes(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.ended(exc)


class SocketReader(_Below, asyncio.BufferedProtocol):
    """Between a transport of the event loop's and a link: bytes are read to where they are needed."""

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._link.space()

    def buffer_updated(self, nbytes: int) -> None:
        self._link.filled(nbytes)


class StreamReader(_Below, asyncio.Protocol):
    """The same for any other transport."""

    def data_received(self, data: bytes) -> None:
        self._link.fed(data)


def tune(transport: asyncio.BaseTransport, unsent: int) -> Callable[[], None] | None:
    """Set the socket below *transport* up, if there is one; return how to have what has come acknowledged at once.

    :param unsent: bytes that may wait in the kernel. A short message queues behind them (tcp(7), TCP_NOTSENT_LOWAT).

    sshd leaves Nagle's algorithm on: a short packet of its waits until all before it are acknowledged, which the kernel
    here puts off by 40 ms. On a link of some length a new connection takes twice as long for that. The kernel forgets
    TCP_QUICKACK as it sees fit, so it is set again and again.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent)
    if not hasattr(socket, "TCP_QUICKACK"):
        return None

    def acknowledge() -> None:
        # The transport may have closed the socket already.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    return acknowledge
