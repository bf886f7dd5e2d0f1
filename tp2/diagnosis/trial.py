"""What the daemon tries out for ``tp2 explain``: its own test, and a connection through the tunnel, side by side."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from tp2.canary import Canary
from tp2.diagnosis.remote import open_and_close
from tp2.socks.reasons import ChannelRefused
from tp2.socks.tunnel import Tunnel
from tp2.types import Destination

#: Seconds that either may take: whoever asked wants to know soon.
WITHIN: Final = 3.0


async def tests(
    canary: Canary | None, tunnel: Tunnel, destination: Destination | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return how they went: the first has what ``tp2 status`` says of a test, and whether it is a new one.

    :param canary: None if there shall be no test.
    :param destination: what the endpoint is to connect to, if to anything.
    """
    return await asyncio.gather(_test(canary), _connect(tunnel, destination))


async def _test(canary: Canary | None) -> dict[str, Any] | None:
    if canary is None:
        return None
    flight, fresh = await canary.soon(WITHIN)
    return {"fresh": fresh, **(flight.as_json() if flight else {"ok": True})}


async def _connect(tunnel: Tunnel, destination: Destination | None) -> dict[str, Any] | None:
    if destination is None:
        return None
    began, why = time.monotonic(), None
    try:
        await open_and_close(tunnel, *destination, WITHIN)
    except ChannelRefused as refused:
        why = str(refused)
    except TimeoutError:
        why = f"no answer within {WITHIN:g} s"
    return {"ok": why is None, "why": why, "took": round(time.monotonic() - began, 4)}
