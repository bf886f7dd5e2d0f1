"""A connection that is doubted may end before it is known whether it was alive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from tp2.cluster import session
from tp2.cluster.session import Session
from tp2.eventloop import new_event_loop


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
