"""Listening sockets by the thousand: one a mapping, as cheap as the kernel makes them.

A plain socket with a reader on the event loop costs a third of an asyncio server object, and opening one is on the
way of a first DNS answer. A listener accepts from the moment :meth:`Listeners.open` returns.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

#: Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
BACKLOG: Final = 512

#: How many connections one turn of the event loop accepts from one listener, so that the others get theirs.
AT_A_TIME: Final = 64

#: Seconds without accepting after the process ran out of descriptors: the queue keeps, the loop does not spin.
PAUSE: Final = 0.2


class Listeners:
    """Listening sockets on loopback, keyed by port.

    :param accepted: called with the port and each accepted, non-blocking socket, which it takes over.
    """

    def __init__(self, accepted: Callable[[int, socket.socket], None]) -> None:
        self._accepted = accepted
        self._sockets: dict[int, socket.socket] = {}

    def __len__(self) -> int:
        return len(self._sockets)

    def open(self, address: str, port: int) -> None:
        """Listen on *address* (127.0.0.1 or ::1) and *port*.

        :raises OSError: the port belongs to another program, or no descriptor is left.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            # Connections of a former owner of the port may linger in TIME_WAIT; they do not concern us.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind((address, port))
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
        self._sockets[port] = sock
        asyncio.get_running_loop().add_reader(sock, self._readable, port, sock)

    def accept_pending(self, port: int) -> None:
        """Accept what waits in the queue of *port* now."""
        sock = self._sockets.get(port)
        if sock is not None:
            self._accept(port, sock, BACKLOG)

    def close(self, port: int) -> None:
        """Stop listening on *port*. Connections in the queue are reset by the kernel; accepted ones go on."""
        sock = self._sockets.pop(port)
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()

    def close_all(self) -> None:
        """Stop listening everywhere."""
        for port in list(self._sockets):
            self.close(port)

    def _readable(self, port: int, sock: socket.socket) -> None:
        self._accept(port, sock, AT_A_TIME)

    def _accept(self, port: int, sock: socket.socket, at_most: int) -> None:
        for _ in range(at_most):
            try:
                connection, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.warning("cannot accept connections for a moment: %s (see ulimit -n)", error.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(sock)
                loop.call_later(PAUSE, self._resume, port, sock)
                return
            connection.setblocking(False)
            self._accepted(port, connection)

    def _resume(self, port: int, sock: socket.socket) -> None:
        if self._sockets.get(port) is sock:
            asyncio.get_running_loop().add_reader(sock, self._readable, port, sock)
