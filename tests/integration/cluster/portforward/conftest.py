"""Everything here is promised on asyncio's own event loop and on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from tests.integration.cluster.conftest import Lab
from tests.integration.cluster.portforward.rig import Rig, pod
from tp2.cluster.session import Session
from tp2.sandbox.kubeapi_resources import PODS
from tp2.system.eventloop import new_event_loop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each asynchronous test once per event loop."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": new_event_loop}


@pytest.fixture
async def rig(lab: Lab) -> AsyncIterator[Rig]:
    lab.api.store.create(PODS, "shop", pod("db-1"))
    session = Session(lab.access())
    await session.open()
    rig = Rig(lab.api, session)
    yield rig
    await rig.close()
    left = [task for task in asyncio.all_tasks() if "tp2/cluster" in str(task.get_coro())]
    assert left == []
    assert not any(session._lent.values())
