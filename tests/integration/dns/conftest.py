"""Both event loops that tp2 runs on: each test of this folder runs on each."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from tests.integration.dns.world import MakeWorld, World, large_txt, open_sockets, start_dnsmasq
from tp2.system.eventloop import new_event_loop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": new_event_loop}


@pytest.fixture
async def make_world() -> AsyncIterator[MakeWorld]:
    worlds: list[World] = []

    async def make(*servers: tuple[str, int]) -> World:
        world = World(servers)
        worlds.append(world)
        world.port = await world.server.start()
        return world

    before = open_sockets()
    yield make
    for world in worlds:
        await world.server.close()
        world.upstream.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect()
    assert open_sockets() <= before


@pytest.fixture
async def dnsmasq() -> AsyncIterator[tuple[str, int]]:
    server = await start_dnsmasq("--address=/example.test/192.0.2.1", *large_txt())
    yield server.address
    await server.stop()
