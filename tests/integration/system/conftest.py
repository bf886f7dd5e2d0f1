"""Everything here is promised on the daemon's event loop, and on what that is without uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tp2.system.eventloop import new_event_loop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each asynchronous test once per event loop."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": new_event_loop}
