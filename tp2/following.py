"""Turning to what the kubeconfig says, whenever it says something else.

=============================== ===========================================================================
what changed                    what follows
=============================== ===========================================================================
context, server, or its trust   the former cluster's names and mappings go at once; then the new one is
                                attached, and tried again until it is, or until the file changes again
credentials                     a new login; everything else stays. Where the first login is still under
                                way, perhaps with what was wrong, it is begun again
the context's namespace         short names mean something else
nothing that matters            nothing
the file is broken or gone      a warning, once, unless it is whole a moment later; the last good one stays
=============================== ===========================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from tp2.backoff import Backoff
from tp2.cluster.kubeconfig import Access
from tp2.errors import ClusterError, Tp2Error
from tp2.system.filewatch import watching

logger = logging.getLogger(__name__)

#: Seconds in which a file that is broken may become whole: kubectl empties it before it writes it anew.
SETTLING: Final = 0.2


async def follow(
    files: Sequence[Path],
    load: Callable[[], Access],
    current: Access,
    *,
    leave: Callable[[Access], Awaitable[None]],
    attach: Callable[[Access], Awaitable[None]],
    renew: Callable[[], Awaitable[None]],
    rename: Callable[[Access], None],
) -> None:
    """Follow *files* until cancelled.

    :param load: reads them; raises ClusterError.
    :param leave: the former cluster is none of ours any more; this is the new one.
    :param attach: connects to it; raises Tp2Error, and is then called again.
    :param renew: logs in again; raises ClusterError.
    :param rename: short names are looked up in another namespace.
    """
    attaching: asyncio.Task[None] | None = None
    complaint: str | None = None
    try:
        async with watching(files) as changed:
            while True:
                await changed.wait()
                changed.clear()
                try:
                    access = load()
                except ClusterError as error:
                    if await _is_set_within(changed, SETTLING):
                        continue
                    if str(error) != complaint:
                        complaint = str(error)
                        logger.warning("%s; the kubeconfig as it was stays in use. %s", error, error.remedy)
                    continue
                complaint = None
                former, current = current, access
                same = access.leads_to_the_same_cluster_as(former)
                if not same:
                    logger.warning("moving to context %s at %s", access.context, access.server)
                unfinished = attaching is not None and not attaching.done()
                if not same or (unfinished and not access.has_the_same_user_as(former)):
                    await _cancelled(attaching)
                    await leave(access)
                    attaching = asyncio.create_task(_attach(attach, access))
                    continue
                if access.namespace != former.namespace:
                    logger.info("short names are looked up in namespace %s now", access.namespace)
                    rename(access)
                if not access.has_the_same_user_as(former):
                    logger.info("the kubeconfig has new credentials")
                    try:
                        await renew()
                    except ClusterError as error:
                        logger.warning("%s. %s", error, error.remedy)
    finally:
        await _cancelled(attaching)


async def _attach(attach: Callable[[Access], Awaitable[None]], access: Access) -> None:
    backoff = Backoff(first=0.5)
    complaint: str | None = None
    while True:
        try:
            await attach(access)
        except Tp2Error as error:
            if str(error) != complaint:
                complaint = str(error)
                logger.warning("%s (trying again). %s", error, error.remedy)
        else:
            logger.info("context %s is connected", access.context)
            return
        await asyncio.sleep(backoff.failed(time.monotonic()))


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await event.wait()
    return False


async def _cancelled(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
