"""Sockets whose traffic passes tp2's own rules: an upstream query must not be captured and come back to us.

Exempting a socket costs a round trip to the privileged helper, so UDP sockets are kept and used again. What must not
be used again is a source port: one that an attacker knows is half of a forged answer (RFC 5452 section 9.2). So a
socket is connected when a query takes it, which makes the kernel choose a fresh ephemeral port and drop what others
send, and dissolved when the query gives it back, which gives the port up. Where it does not (BSDs; and pf, which
exempts a socket by binding it), every query has a socket of its own.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from tp2.dns.servers import Server

Exempt = Callable[[socket.socket], Awaitable[None]]

# Open sockets are bounded by this, and queries beyond it wait for one.
_LIMIT = 256
_LARGEST_DATAGRAM = 65535
# Whoever had this much to say to one query is flooding, and his socket is not worth keeping.
_LONGEST_QUEUE = 64

_libc = ctypes.CDLL(None, use_errno=True)
# A sockaddr of family AF_UNSPEC, padded to the size of a sockaddr_in: connect(2) takes it as "no peer".
_NOBODY = struct.pack("=H14x", socket.AF_UNSPEC)


def socket_address(server: Server) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Family and socket address of a numeric *server*, an IPv6 scope resolved to the interface as it is now.

    :raises OSError: the interface of the scope does not exist.
    """
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    family, _, _, _, address = socket.getaddrinfo(server[0], server[1], type=socket.SOCK_DGRAM, flags=flags)[0]
    return family, address


class ExemptSockets:
    """A bounded stock of UDP sockets, and fresh TCP sockets, each exempted before its first use.

    :param exempt: makes one socket's traffic pass the rules.
    """

    def __init__(self, exempt: Exempt) -> None:
        self._exempt = exempt
        self._free = asyncio.Semaphore(_LIMIT)
        self._idle: dict[socket.AddressFamily, list[socket.socket]] = {}
        self._closed = False

    @asynccontextmanager
    async def udp(self, server: Server) -> AsyncIterator[socket.socket]:
        """A non-blocking UDP socket with a fresh port, connected to *server*, for the length of the block.

        :raises OSError: there is no route to the server, or no socket to be had.
        """
        family, address = socket_address(server)
        async with self._free:
            idle = self._idle.setdefault(family, [])
            sock = idle.pop() if idle else await self._open(family, socket.SOCK_DGRAM)
            try:
                sock.connect(address)
                yield sock
            finally:
                if not self._closed and _dissolve(sock):
                    idle.append(sock)
                else:
                    sock.close()

    @asynccontextmanager
    async def tcp(self, server: Server) -> AsyncIterator[socket.socket]:
        """A new non-blocking TCP connection to *server*, for the length of the block.

        :raises OSError: it cannot be made.
        """
        family, address = socket_address(server)
        async with self._free:
            with await self._open(family, socket.SOCK_STREAM) as sock:
                await asyncio.get_running_loop().sock_connect(sock, address)
                yield sock

    async def _open(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        sock = socket.socket(family, kind)
        try:
            sock.setblocking(False)
            await self._exempt(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Close the idle sockets; those in use are closed when they come back."""
        self._closed = True
        for idle in self._idle.values():
            while idle:
                idle.pop().close()


def _dissolve(sock: socket.socket) -> bool:
    """Give up peer and port, and forget what has arrived. Whether *sock* is as new."""
    # BSDs dissolve the association and report EAFNOSUPPORT all the same (their connect(2)).
    if _libc.connect(sock.fileno(), _NOBODY, len(_NOBODY)) != 0 and ctypes.get_errno() != errno.EAFNOSUPPORT:
        return False
    for _ in range(_LONGEST_QUEUE):
        try:
            sock.recv(_LARGEST_DATAGRAM)
        except BlockingIOError:
            # A port that was bound, or that BSDs let no socket give up, must not be used again: the socket goes.
            return int(sock.getsockname()[1]) == 0
        except OSError:
            continue  # A pending ICMP error; reading it has cleared it.
    return False
