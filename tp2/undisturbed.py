"""An attempt that is begun again when the ground moves under it.

What was sent from an address that the machine has lost, or before it slept, is answered by nobody. Waiting for the
attempt's own bound would be to wait for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

_Result = TypeVar("_Result")


async def undisturbed(
    attempt: Callable[[], Awaitable[_Result]], disturbed: asyncio.Event, unfinished: Callable[[], bool] = lambda: True
) -> _Result:
    """Return, or raise, what *attempt* comes to, and begin it anew whenever *disturbed* is set meanwhile.

    :param attempt: leaves nothing behind when it is cancelled.
    :param unfinished: whether it still is an attempt; what it has become otherwise looks after itself.
    """
    while True:
        disturbed.clear()
        trying = asyncio.ensure_future(attempt())
        watching = asyncio.create_task(disturbed.wait())
        try:
            while not trying.done():
                await asyncio.wait((trying, watching), return_when=asyncio.FIRST_COMPLETED)
                if trying.done() or unfinished():
                    break
                disturbed.clear()
                watching = asyncio.create_task(disturbed.wait())
        finally:
            for task in (trying, watching):
                task.cancel()
            await asyncio.gather(trying, watching, return_exceptions=True)
        if not trying.cancelled():
            return trying.result()
