"""Ways to the SSH endpoint: what the tunnel wants of one, and the plain one, a TCP connection to a name or address.

The daemon may pass another function of :func:`direct`'s shape to the tunnel. What it opens need not be a socket, and
may lead to another server each time; it then says which keys that server may present.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

CONNECT_TIMEOUT = 10.0
"""Seconds for the TCP connection to the endpoint, all of its addresses together."""

ADDRESS_TIMEOUT = 5.0
"""Seconds for one address: a dead first address must leave time for the next within the tunnel's bound."""


_Protocol = TypeVar("_Protocol", bound=asyncio.Protocol)


class Stream(Protocol):
    """An open connection that SSH can be spoken over: what asyncssh takes as a *tunnel*, and ways to end it."""

    @property
    def peer(self) -> tuple[str, int]:
        """The address and port that this machine is connected to for it."""

    @property
    def local(self) -> str:
        """This machine's own address in that connection."""

    async def create_connection(
        self, protocol_factory: Callable[[], _Protocol], host: str, port: int
    ) -> tuple[asyncio.BaseTransport, _Protocol]:
        """Give the stream to a new protocol, once; *host* and *port* are of no consequence."""

    def abort(self) -> None:
        """End it at once, given to a protocol or not; may be called again."""

    async def wait_closed(self) -> None:
        """Return when nothing is left of a stream that was aborted, or has ended."""


@dataclass(frozen=True)
class Way:
    """An open way to the endpoint.

    :param host_keys: the keys that the server there may present, as OpenSSH lines; empty if whoever opened the way
        does not know, and those that the tunnel was given hold.
    :param vouched_for_by: who says so, for messages.
    :param through: what it leads through, in words, where it is not the endpoint's own address.
    """

    stream: Stream
    host_keys: tuple[str, ...] = ()
    vouched_for_by: str = ""
    through: str = ""


async def direct(host: str, port: int) -> Way:
    """Connect to *host* (name or address).

    :raises OSError: of the last address tried, or of the name resolution (:class:`socket.gaierror`).
    """
    async with asyncio.timeout(CONNECT_TIMEOUT):
        return Way(SocketStream(await dial(host, port)))


class SocketStream:
    """A connected, non-blocking socket as a :class:`Stream`.

    :raises OSError: it is not connected any more.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.peer: tuple[str, int] = sock.getpeername()[:2]
        self.local: str = sock.getsockname()[0]
        self._socket = sock
        self._transport: asyncio.Transport | None = None

    async def create_connection(
        self, protocol_factory: Callable[[], _Protocol], host: str, port: int
    ) -> tuple[asyncio.BaseTransport, _Protocol]:
        """Give it to a new protocol."""
        loop = asyncio.get_running_loop()
        self._transport, protocol = await loop.create_connection(protocol_factory, sock=self._socket)
        return self._transport, protocol

    def abort(self) -> None:
        """Close it, with what is not sent yet."""
        if self._transport is None:
            self._socket.close()
        else:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Return at once: the event loop closes a socket in its next turn."""


async def dial(host: str, port: int) -> socket.socket:
    """Connect to *host* (name or address) and return the connected, non-blocking socket.

    :raises OSError: of the last address tried, or of the name resolution (:class:`socket.gaierror`).
    """
    loop = asyncio.get_running_loop()
    failure: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            return await _dial_address(socket.socket(family, kind, protocol), address)
        except OSError as error:
            failure = error
    raise failure


async def _dial_address(sock: socket.socket, address: tuple[Any, ...]) -> socket.socket:
    try:
        sock.setblocking(False)
        async with asyncio.timeout(ADDRESS_TIMEOUT):
            await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
