"""UDP both ways: through the event loop's transport, and in batches."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from tests.integration.dns.world import PATIENCE
from tp2.dns.batched import SLOT
from tp2.dns.datagrams import Datagrams, serve_datagrams
from tp2.dns.responder import Deferred


class World:
    """A socket served by ``respond``, and a client."""

    def __init__(self, family: socket.AddressFamily, batched: bool) -> None:
        self.seen: list[bytes] = []
        self.respond: Callable[[bytes], bytes | Deferred] = lambda data: data
        self.tasks: set[asyncio.Task[None]] = set()
        self.batched = batched
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.client = socket.socket(family, socket.SOCK_DGRAM)
        for sock in (self.sock, self.client):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
            sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self.datagrams: Datagrams

    async def start(self) -> None:
        self.client.connect(self.sock.getsockname())
        self.datagrams = await serve_datagrams(self.sock, self._respond, self._spawn, batched=self.batched)

    def _respond(self, data: bytes, *, tcp: bool) -> bytes | Deferred:
        assert not tcp
        self.seen.append(data)
        return self.respond(data)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def receive(self) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.client, 65535), PATIENCE)


BATCHED = pytest.param(True, marks=pytest.mark.skipif(sys.platform != "linux", reason="recvmmsg(2)"))


@pytest.fixture(params=[False, BATCHED], ids=["transport", "batched"])
def batched(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
async def world(request: pytest.FixtureRequest, batched: bool) -> AsyncIterator[World]:
    world = World(request.param, batched)
    await world.start()
    yield world
    await world.datagrams.close()
    await world.datagrams.close()
    world.client.close()
    assert world.sock.fileno() == -1


async def test_every_datagram_gets_its_own_reply(world: World) -> None:
    world.respond = lambda data: data + b" reply"
    for n in range(500):
        world.client.send(b"%d" % n)
    assert {await world.receive() for _ in range(500)} == {b"%d reply" % n for n in range(500)}


async def test_replies_of_all_kinds_in_one_batch_go_where_they_belong(world: World) -> None:
    async def later() -> bytes:
        await asyncio.sleep(0)
        return b"later"

    answers: dict[bytes, bytes | Deferred] = {
        b"now": b"now",
        b"none": b"",
        b"later": later,
        b"large": bytes(SLOT + 1),
        b"full": bytes(SLOT),
        b"last": b"last",
    }
    world.respond = lambda data: answers[data]
    for question in answers:
        world.client.send(question)
    received = {await world.receive() for _ in range(5)}
    assert received == {b"now", b"later", bytes(SLOT + 1), bytes(SLOT), b"last"}


async def test_empty_and_oversized_datagrams_hurt_nobody(world: World) -> None:
    world.client.send(b"")
    world.client.send(bytes(60_000))
    world.client.send(b"well")
    while await world.receive() != b"well":
        pass


async def test_a_client_that_went_away_hurts_nobody(world: World) -> None:
    with socket.socket(world.sock.family, socket.SOCK_DGRAM) as gone:
        gone.connect(world.sock.getsockname())
        gone.send(b"lost")
    world.client.send(b"well")
    assert await world.receive() == b"well"
    assert world.seen == [b"lost", b"well"]
