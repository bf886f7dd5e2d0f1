"""Sockets whose traffic passes tp2's own rules: an upstream query must not be captured and come back to us.

An exempted socket is not enough where the kernel tracks connections, as Linux does for its address translation: what it
has found out about a pair of addresses and ports holds for half a minute or more, whose ever they are by then. If
another program's query to the same nameserver had the source port of one of ours, it would pass the rules as ours did
and never be heard of; and one of ours would come back to us like theirs. So ours come from ports that the kernel does
not give to programs, and a UDP socket serves one query.

Its port is chosen at random, since one that an attacker knows is half of a forged answer (RFC 5452 section 9.2). Where
there are no such ports the kernel chooses, when a query connects the socket; it is dissolved when the query gives it
back, which gives the port up, and used again, since exempting a socket costs a round trip to the privileged helper.
Where a socket does not give its port up (BSDs; and pf, which exempts it by binding it), it is not used again.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tp2.dns.servers import Server

Exempt = Callable[[socket.socket], Awaitable[None]]

# Open sockets are bounded by this, and queries beyond it wait for one.
_LIMIT = 256
_LARGEST_DATAGRAM = 65535
# Where Linux says which ports it gives to sockets that nobody has bound (ip(7)), and what we take of the others: those
# that few programs expect to find free. With less to choose from, a port could be guessed.
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 10_000
_FEWEST_PORTS = 2_000
_PORT_ATTEMPTS = 20
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
    """A bounded number of UDP and TCP sockets, each exempted before its first use.

    :param exempt: makes one socket's traffic pass the rules.
    """

    def __init__(self, exempt: Exempt) -> None:
        self._exempt = exempt
        self._free = asyncio.Semaphore(_LIMIT)
        self._idle: dict[socket.AddressFamily, list[socket.socket]] = {}
        self._ports = _Ports()
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
                self._ports.bind(sock)
                sock.connect(address)
                _emptied(sock)  # of what others may have sent while it was not connected
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
    # A port that was bound, or that BSDs let no socket give up, must not be used again: the socket goes.
    return int(sock.getsockname()[1]) == 0 and _emptied(sock)


def _emptied(sock: socket.socket) -> bool:
    """Forget what has arrived at *sock*. False if there is too much of it."""
    for _ in range(_LONGEST_QUEUE):
        try:
            sock.recv(_LARGEST_DATAGRAM)
        except BlockingIOError:
            return True
        except OSError:
            continue  # A pending ICMP error; reading it has cleared it.
    return False


class _Ports:
    """Source ports that the system does not give to programs by itself."""

    def __init__(self) -> None:
        first, last = _ephemeral_ports()
        self._free = [*range(_LOWEST_PORT, first), *range(last + 1, 65536)]

    def bind(self, sock: socket.socket) -> None:
        """Bind *sock* to one of them that is free, chosen at random, unless it is bound already."""
        if len(self._free) < _FEWEST_PORTS or sock.getsockname()[1]:
            return
        for _ in range(_PORT_ATTEMPTS):
            with suppress(OSError):
                sock.bind(("", secrets.choice(self._free)))
                return


def _ephemeral_ports() -> tuple[int, int]:
    """The first and the last of the ports that the kernel gives to sockets; all there are where it does not say."""
    try:
        first, last = _PORT_RANGE.read_text(encoding="ascii").split()
        return int(first), int(last)
    except (OSError, ValueError):
        return 0, 65535
