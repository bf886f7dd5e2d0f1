"""Everything here is promised on asyncio's own event loop and on uvloop, on our packets and on asyncssh's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tp2.socks import fastssh
from tp2.system.eventloop import new_event_loop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each asynchronous test once per event loop."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": new_event_loop}


@pytest.fixture(autouse=True, params=["fast", "stock"])
def packets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose packets the tunnel makes."""
    if request.param == "stock":
        monkeypatch.setattr(fastssh, "TESTED", ())
