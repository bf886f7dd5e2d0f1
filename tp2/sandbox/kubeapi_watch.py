"""One open watch of the sandbox's Kubernetes API: a chunked answer of JSON lines.

A watch lives from its request until ``timeoutSeconds`` are over, its version is too old, the client goes away, or a
test ends it. In between it sleeps until the store changes, a bookmark is due, or it is told something.
"""

from __future__ import annotations

import asyncio
import json
import math

from aiohttp import web

from tp2.sandbox.kubeapi_resources import Object, Resource, StatusError
from tp2.sandbox.kubeapi_selectors import Selector
from tp2.sandbox.kubeapi_store import Store

_BOOKMARK_EVERY = 60.0
_BOOKMARK_BEFORE_END = 2.0


class Watch:
    """Sends what happens after *version* to the selected objects of *resource* (in *namespace*, or anywhere if None).

    :param version: 0 to begin with everything there is.
    :param seconds: how long it lasts.
    :param bookmarks: whether the client wants to be told of versions though nothing happened.
    """

    def __init__(
        self,
        store: Store,
        resource: Resource,
        namespace: str | None,
        version: int,
        seconds: float,
        *,
        selector: Selector,
        bookmarks: bool,
    ) -> None:
        self._store = store
        self._resource = resource
        self._namespace = namespace
        self._version = version
        self._seconds = seconds
        self._selector = selector
        self._bookmarks = bookmarks
        self._awake = asyncio.Event()
        self._told = b""
        self._end = ""

    def wake(self) -> None:
        """There may be something to send."""
        self._awake.set()

    def tell(self, data: bytes, end: str) -> None:
        """Send *data* as it is; then, if *end* says so, ``end`` cleanly or ``cut`` the connection."""
        self._told += data
        self._end = self._end or end
        self._awake.set()

    async def run(self, response: web.StreamResponse) -> bool:
        """Send until the time is up or a test ends it; return whether the connection is to be cut."""
        clock = asyncio.get_running_loop().time
        end = clock() + self._seconds
        if not self._version:
            await self._replay(response)
        bookmark = self._next_bookmark(clock(), end)
        while True:
            self._awake.clear()
            if self._told:
                told, self._told = self._told, b""
                await response.write(told)
            if self._end or clock() >= end:
                # What happened at the same moment is for the next watch.
                return self._end == "cut"
            try:
                await self._catch_up(response)
            except StatusError as expired:
                await _send(response, "ERROR", expired.status)
                return False
            if clock() >= bookmark:
                await self._bookmark(response, initial=False)
                bookmark = self._next_bookmark(clock(), end)
            try:
                async with asyncio.timeout_at(min(bookmark, end)):
                    await self._awake.wait()
            except TimeoutError:
                continue

    async def _catch_up(self, response: web.StreamResponse) -> None:
        # What happens while this is being sent is for the next round, so the version is taken first.
        version = self._store.version
        for event in self._store.since(self._version, self._resource, self._namespace, self._selector):
            await _send(response, event.type, event.object)
        self._version = max(self._version, version)

    async def _replay(self, response: web.StreamResponse) -> None:
        self._version = self._store.version
        for obj in self._store.objects(self._resource, self._namespace, self._selector):
            await _send(response, "ADDED", obj)
        if self._bookmarks:
            await self._bookmark(response, initial=True)

    async def _bookmark(self, response: web.StreamResponse, *, initial: bool) -> None:
        # Of a version that it has not reached yet, a real server says nothing at all.
        if self._version <= self._store.version:
            await _send(response, "BOOKMARK", self._resource.bookmark(self._version, initial=initial))

    def _next_bookmark(self, now: float, end: float) -> float:
        last = end - _BOOKMARK_BEFORE_END
        return min(now + _BOOKMARK_EVERY, last) if self._bookmarks and now < last else math.inf


async def _send(response: web.StreamResponse, kind: str, obj: Object) -> None:
    line = json.dumps({"type": kind, "object": obj}, separators=(",", ":"))
    await response.write(line.encode() + b"\n")
