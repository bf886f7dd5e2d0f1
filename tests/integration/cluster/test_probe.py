"""A connection that is doubted may end before it is known whether it was alive."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from tests.integration.cluster.conftest import Lab
from tp2.cluster import session
from tp2.cluster.session import Session
from tp2.system.eventloop import new_event_loop


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, new_event_loop])
def test_a_connection_that_ends_while_it_is_doubted_is_not_complained_about(
    lab_on_any_loop: Any, monkeypatch: pytest.MonkeyPatch, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    later: list[Callable[[], object]] = []

    async def doubt() -> None:
        async with lab_on_any_loop() as lab:
            client = Session(lab.access())
            await client.open()
            response = await client.get("/api/v1/services", {"watch": "1"}, aiohttp.ClientTimeout(10))
            with monkeypatch.context() as patched:
                patched.setattr(
                    asyncio.get_running_loop(), "call_later", lambda _, call, *args: later.append(lambda: call(*args))
                )
                session.probe(response)
            response.close()
            await client.close()
            await asyncio.sleep(0.01)
            assert len(later) == 1
            later[0]()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(doubt())


async def test_a_watch_whose_path_has_died_is_known_to_be_dead_within_45_seconds(lab: Lab) -> None:
    """The kernel asks after 30 s of silence, and gives up after three unanswered questions, 5 s apart (tcp(7))."""
    client = Session(lab.access())
    await client.open()
    async with await client.get("/api/v1/services", {"watch": "1"}, aiohttp.ClientTimeout(10)) as response:
        assert response.connection is not None
        assert response.connection.transport is not None
        sock = response.connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        idle, interval, count = (sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names)
        assert idle + interval * count == 45
    await client.close()
