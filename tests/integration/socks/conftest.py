"""Everything here is promised on asyncio's own event loop and on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tp2.eventloop import new_event_loop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each asynchronous test once per event loop."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": new_event_loop}
