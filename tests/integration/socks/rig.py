"""What the tests of this folder share: services to reach, a way in, and clients that see how a connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh

from tests.integration.socks.sshd import Sshd, reserve_port
from tp2.socks.channel import Channel
from tp2.socks.connector import Connector, Flow
from tp2.socks.proxied import Proxied
from tp2.socks.proxy import SocksProxy
from tp2.socks.tunnel import Endpoint, Tunnel
from tp2.types import Destination

PATIENCE = 60.0
"""Seconds until a test gives up on something that should happen at once."""

Service = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def tunnel_to(sshd: Sshd, **changes: object) -> Tunnel:
    """Return a tunnel that is let in by *sshd*."""
    options: dict[str, object] = {"identity": sshd.identity, "host_key": sshd.host_key, **changes}
    endpoint = Endpoint("127.0.0.1", sshd.port, sshd.user)
    return Tunnel(endpoint, **options)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def started(tunnel: Tunnel) -> AsyncIterator[Tunnel]:
    """Start *tunnel*, and close it in the end."""
    await tunnel.start(PATIENCE)
    try:
        yield tunnel
    finally:
        await tunnel.close()


@contextlib.asynccontextmanager
async def serving(service: Service) -> AsyncIterator[Destination]:
    """Run *service* on a free loopback port: it stands for a service of the cluster."""

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that goes away is part of several tests, and none of the service's business.
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await service(reader, writer)
        writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0)
    try:
        yield Destination(*server.sockets[0].getsockname())
    finally:
        server.close()


@contextlib.contextmanager
def nothing_there() -> Iterator[Destination]:
    """A destination where nothing listens."""
    with reserve_port() as sock:
        yield Destination(*sock.getsockname())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, and EOF after EOF."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


class Portal:
    """A listener whose connections are carried to one destination, as a mapping's are."""

    def __init__(self, connector: Connector, destination: Destination) -> None:
        self.flows: list[Any] = []
        self.closed: list[Any] = []
        self._connector = connector
        self._destination = destination
        self._changed = asyncio.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self._task = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            self.flows.append(self._connector.carry(sock, self._destination, self._on_close))
            self._changed.set()

    def _on_close(self, flow: Flow | Proxied) -> None:
        self.closed.append(flow)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds; it is looked at whenever a flow begins or ends."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as a client would."""
        return await asyncio.open_connection(*self._listener.getsockname())

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._listener.getsockname()
        return host, port

    async def close(self) -> None:
        """Stop accepting."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self._listener.close()


@contextlib.asynccontextmanager
async def portal(tunnel: Tunnel | SocksProxy, destination: Destination) -> AsyncIterator[Portal]:
    """A portal through *tunnel* to *destination*."""
    connector = Connector(tunnel)
    entrance = Portal(connector, destination)
    try:
        yield entrance
    finally:
        await entrance.close()
        await connector.close()


async def ending_of(reader: asyncio.StreamReader) -> str:
    """Return how a connection ended: ``"eof"`` or ``"reset"``."""
    try:
        async with asyncio.timeout(PATIENCE):
            while await reader.read(65536):
                pass
    except ConnectionResetError:
        return "reset"
    return "eof"


async def eventually(condition: Callable[[], bool], interval: float = 0.01) -> None:
    """Wait for something that announces itself by no event."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(interval)


class Look:
    """What waits in the channel of a flow, whichever kind of channel that is."""

    def __init__(self, flow: Flow) -> None:
        channel = flow._channel
        assert isinstance(channel, Channel | asyncssh.SSHTCPChannel)
        self.unsent = channel.get_write_buffer_size()
        if isinstance(channel, Channel):
            self.undelivered = sum(map(len, channel._undelivered))
            self.ending = channel._close_received
        else:
            self.undelivered = sum(len(data) for data, _ in channel._recv_buf)
            self.ending = channel._recv_state == "close_pending"


def open_files() -> dict[str, str]:
    """Return what this process has open, by descriptor."""
    files = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            files[link.name] = str(link.readlink())
    return files
