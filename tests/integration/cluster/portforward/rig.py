"""What the tests of this folder share: a pod that is this machine, programs in it, and an end of a stream to hold."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from tests.integration.socks.sshd import reserve_port
from tp2.cluster import portforward
from tp2.cluster.portforward import PortForward
from tp2.cluster.session import Session
from tp2.sandbox.kubeapi_resources import Object
from tp2.sandbox.kubeapi_server import KubeApi

PATIENCE = 60.0
"""Seconds until a test gives up on something that should happen at once."""

Program = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def pod(name: str, **status: Any) -> Object:
    """A pod whose address is this machine."""
    return {"metadata": {"name": name}, "spec": {}, "status": {"phase": "Running", "podIP": "127.0.0.1", **status}}


class End(asyncio.Protocol):
    """This side of a stream: what came, whether it may write, and how it ended."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.received = bytearray()
        self.paused = False
        self.reason: Exception | None = None
        self.ended = False
        self._news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert not self.ended
        self.received += data
        self._news.set()

    def pause_writing(self) -> None:
        self.paused = True
        self._news.set()

    def resume_writing(self) -> None:
        self.paused = False
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        assert not self.ended
        self.ended = True
        self.reason = exc
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds; it is looked at whenever something happens."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def has(self, data: bytes) -> None:
        """Wait until exactly *data* has come."""
        await self.until(lambda: len(self.received) >= len(data))
        assert self.received == data

    async def end(self) -> Exception | None:
        """Wait for the end, and return the reason."""
        await self.until(lambda: self.ended)
        return self.reason


class Rig:
    """An API with one pod ``shop/db-1``, which is this machine, and a session with that API."""

    def __init__(self, api: KubeApi, session: Session) -> None:
        self.api = api
        self.session = session
        self.streams: list[PortForward] = []

    async def forward(self, port: int, name: str = "db-1") -> PortForward:
        """Open a stream."""
        stream = await portforward.forward(self.session, "shop", name, port)
        self.streams.append(stream)
        return stream

    async def connect(self, port: int) -> End:
        """Open a stream and hold its end."""
        _, end = await (await self.forward(port)).create_connection(End, "", 0)
        return end

    async def close(self) -> None:
        """End what is open."""
        for stream in self.streams:
            stream.abort()
            await stream.wait_closed()
        await self.session.close()


@contextlib.asynccontextmanager
async def running(program: Program) -> AsyncIterator[int]:
    """Run *program* for each connection to a port of the pod's; return that port."""
    tasks: set[asyncio.Task[Any]] = set()

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await program(reader, writer)
        writer.close()
        tasks.discard(task)

    server = await asyncio.start_server(guarded, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(list(tasks))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@contextlib.contextmanager
def nothing() -> Iterator[int]:
    """A port of the pod's where nothing listens."""
    with reserve_port() as sock:
        yield sock.getsockname()[1]


def open_files() -> dict[str, str]:
    """What this process has open, by descriptor."""
    files = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            files[link.name] = str(link.readlink())
    return files
