"""Listening sockets by the thousand, as cheap as the kernel makes them.

A plain socket with a reader on the event loop costs a third of an asyncio server object, and opening one is on the
way of a first DNS answer. A listener accepts from the moment :meth:`Listeners.open` returns.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Final, Generic, TypeVar

logger = logging.getLogger(__name__)

#: Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
BACKLOG: Final = 512

#: How many connections one turn of the event loop accepts from one listener, so that the others get theirs.
AT_A_TIME: Final = 64

#: Seconds without accepting after the process ran out of descriptors: the queue keeps, the loop does not spin.
PAUSE: Final = 0.2

# SO_LINGER on, for 0 s: closing the socket then sends RST and not FIN (socket(7)).
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

Key = TypeVar("Key", bound=Hashable)


class Listeners(Generic[Key]):
    """Listening sockets, each known by a key of the caller's.

    :param accepted: called with the key and each accepted, non-blocking socket, which it takes over.
    """

    def __init__(self, accepted: Callable[[Key, socket.socket], None]) -> None:
        self._accepted = accepted
        self._sockets: dict[Key, socket.socket] = {}

    def __len__(self) -> int:
        return len(self._sockets)

    def __contains__(self, key: Key) -> bool:
        return key in self._sockets

    def open(self, key: Key, address: str, port: int, *, device: str | None = None) -> int:
        """Listen on *address* and *port* (0: any that is free); return the port.

        :param device: an interface: nothing that comes in by another one is heard (Linux, SO_BINDTODEVICE).
        :raises OSError: the port belongs to another program, the address or the interface is not this machine's, or no
            descriptor is left.
        """
        sock = listening(address, port, device=device)
        try:
            asyncio.get_running_loop().add_reader(sock, self._readable, key, sock)
        except BaseException:
            sock.close()
            raise
        self._sockets[key] = sock
        return int(sock.getsockname()[1]) if port == 0 else port

    def accept_pending(self, key: Key) -> None:
        """Accept what waits in the queue of *key* now."""
        sock = self._sockets.get(key)
        if sock is not None:
            self._accept(key, sock, BACKLOG)

    def close(self, key: Key) -> None:
        """Stop listening. Connections in the queue are reset by the kernel; accepted ones go on."""
        sock = self._sockets.pop(key)
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()

    def close_all(self) -> None:
        """Stop listening everywhere."""
        for key in list(self._sockets):
            self.close(key)

    def _readable(self, key: Key, sock: socket.socket) -> None:
        self._accept(key, sock, AT_A_TIME)

    def _accept(self, key: Key, sock: socket.socket, at_most: int) -> None:
        for _ in range(at_most):
            try:
                connection, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.warning("cannot accept connections for a moment: %s (see ulimit -n)", error.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(sock)
                loop.call_later(PAUSE, self._resume, key, sock)
                return
            connection.setblocking(False)
            self._accepted(key, connection)

    def _resume(self, key: Key, sock: socket.socket) -> None:
        if self._sockets.get(key) is sock:
            asyncio.get_running_loop().add_reader(sock, self._readable, key, sock)


def listening(address: str, port: int, *, device: str | None = None) -> socket.socket:
    """Return a non-blocking TCP socket that listens; see :meth:`Listeners.open`.

    :raises OSError: see there.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Connections of a former owner of the port may linger in TIME_WAIT; they do not concern us.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if device is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
        sock.setblocking(False)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def reset(sock: socket.socket) -> None:
    """Close an accepted connection so that its client sees at once that nobody wants it (ECONNRESET)."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def loopback_addresses(most: int) -> list[str]:
    """Return the IPv4 loopback addresses that this machine has: 127.0.0.1, 127.0.0.2 and so on, *most* at most.

    All of 127.0.0.0/8 is local on Linux; elsewhere it is what somebody has added to the loopback interface.
    """
    found: list[str] = []
    while len(found) < most:
        number = len(found) + 1
        address = f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, 0))
            except OSError:
                break
        found.append(address)
    return found
