"""One resource followed for as long as tp2 runs: listed, then watched, and both again whenever that breaks.

A stream is a loop of attempts. An attempt lists if it has no resourceVersion, then watches from the version it has
until that ends, one way or another:

======================================= ==============================================================
the watch ends                          the next attempt
======================================= ==============================================================
cleanly, after events or bookmarks      watches from the last version seen
cut off, after events or bookmarks      watches from the last version seen
in any way, without a single line       lists: a version that the server has never heard of (restored
                                        etcd, another cluster) is answered with silence, not an error
401, 403, 429, 503                      watches from the same version (after a new login for 401)
410, any other error, garbage           lists
======================================= ==============================================================

A list replaces what was known, so what vanished in the meantime is gone; until then the last state stays. Attempts
are paced by one :class:`~tp2.backoff.Backoff`: the first is immediate, and a watch that lived long enough makes the
next one the first.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp

from tp2.backoff import Backoff
from tp2.cluster.builder import CatalogBuilder
from tp2.cluster.failure import ApiError, Failure, NotKubernetes, explain, slow_login
from tp2.cluster.lines import LineSplitter, LineTooLong
from tp2.cluster.session import Session, probe
from tp2.errors import ClusterError
from tp2.undisturbed import undisturbed

logger = logging.getLogger(__name__)

LINE_LIMIT = 16 * 1024 * 1024
"""Longest line of a watch, in bytes: ten times what etcd stores by default."""

SLOW_LOGIN = 1.5
"""Seconds after which a login that is still under way is reported."""

_VERSION_SURVIVES = (401, 403, 429, 503)
_EXPECTED = (ApiError, ClusterError, NotKubernetes, LineTooLong, OSError, aiohttp.ClientError)


class Resource(NamedTuple):
    """A kind as the API's paths have it, for example ``Service``, ``/api/v1``, ``services``.

    ``optional`` resources may be forbidden: tp2 goes on without them.
    """

    kind: str
    prefix: str
    plural: str
    optional: bool = False

    def path(self, namespace: str | None) -> str:
        """The collection's path, in one namespace or over all."""
        scope = f"/namespaces/{quote(namespace, safe='')}" if namespace is not None else ""
        return f"{self.prefix}{scope}/{self.plural}"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a stream waits for what, in seconds, and how many items it lists at a time.

    :param connect: until TCP and TLS are up.
    :param answer: until a request is answered, and between two reads of a list.
    :param watch: how long the server is asked to keep a watch open (``timeoutSeconds``); up to a tenth less is
        asked for, so that the streams do not return in step.
    :param margin: how much longer a watch may live before it counts as dead.
    """

    connect: float = 10.0
    answer: float = 30.0
    watch: float = 300.0
    margin: float = 15.0
    page: int = 500


class Stream:
    """Follows *resource* in *namespace* (None: everywhere) into *builder*.

    :param changed: called after something may have changed in the builder.

    ``listed`` is set by the first complete list, or when an optional resource turns out not to be available;
    ``failure`` is why the last attempt failed, None once the server answers again; ``lost`` says that the failure
    outlived the first retry, which is immediate; ``heard`` is the Unix time of the server's last word.
    """

    def __init__(
        self,
        session: Session,
        builder: CatalogBuilder,
        resource: Resource,
        namespace: str | None,
        changed: Callable[[], None],
        pace: Pace,
    ) -> None:
        self.listed = asyncio.Event()
        self.failure: ClusterError | None = None
        self.lost = False
        self.heard = 0.0
        self._session = session
        self._builder = builder
        self._resource = resource
        self._namespace = namespace
        self._changed = changed
        self._pace = pace
        self._backoff = Backoff()
        self._version: str | None = None
        self._heard = False
        self._nudged = asyncio.Event()
        self._disturbed = asyncio.Event()
        self._watching: aiohttp.ClientResponse | None = None

    def nudge(self) -> None:
        """The machine woke up, or its network changed: try again at once if the last attempt failed or is still under
        way, and find out soon whether a watch that is up only seems so."""
        self._backoff.reset()
        self._nudged.set()
        self._disturbed.set()
        if self._watching is not None:
            probe(self._watching)

    async def run(self) -> None:
        """Follow until cancelled. Returns if an optional resource is forbidden.

        :raises ClusterError: the first list failed in a way that trying again would not mend soon.
        """
        clock = asyncio.get_running_loop().time
        failing_since: float | None = None
        while True:
            pause = 0.0
            login = self._session.login
            try:
                await undisturbed(self._attempt, self._disturbed, lambda: self._watching is None)
            except Exception as error:
                failure = self._failed(error)
                failing_since = clock() if failing_since is None else failing_since
                if self._resource.optional and isinstance(error, ApiError) and error.status == 403:
                    logger.debug("going on without %s: %s", self._resource.plural, error.message)
                    self.failure, self.lost = None, False
                    self.listed.set()
                    return
                if not self.listed.is_set() and clock() - failing_since >= failure.patience:
                    if not self._resource.optional:
                        raise failure.error from error
                    self.listed.set()
                self._report(failure.error)
                if isinstance(error, ApiError):
                    pause = error.retry_after
                    if error.status == 401:
                        await self._log_in_again(login)
            pause = max(pause, self._backoff.failed(clock()))
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        self._nudged.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._nudged.wait()

    async def _attempt(self) -> None:
        if self._version is None:
            await self._list()
        await self._watch()

    async def _list(self) -> None:
        path, timeout = self._resource.path(self._namespace), self._timeout(sock_read=self._pace.answer)
        relist = self._builder.relist(self._resource.kind, self._namespace)
        query = {"limit": str(self._pace.page)}
        while True:
            async with await self._session.get(path, query, timeout) as response:
                body = await response.read()
            items, metadata = _list_of(body)
            relist.page(items)
            self._changed()
            if not metadata.get("continue"):
                break
            query["continue"] = str(metadata["continue"])
        relist.finish()
        self._version = metadata["resourceVersion"]
        self._is_up()
        self.listed.set()
        self._changed()

    async def _watch(self) -> None:
        seconds = max(1, round(self._pace.watch * self._backoff.random.uniform(0.9, 1.0)))
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version or "",
            "timeoutSeconds": str(seconds),
        }
        self._heard = False
        async with asyncio.timeout(self._pace.answer):
            # A server sends the headers of a watch at once, whether there are events or not.
            response = await self._session.get(
                self._resource.path(self._namespace), query, self._timeout(total=seconds + self._pace.margin)
            )
        async with response:
            self._is_up()
            splitter = LineSplitter(LINE_LIMIT)
            self._watching = response
            try:
                async for chunk in response.content.iter_any():
                    self.heard = time.time()
                    for line in splitter.feed(chunk):
                        self._take(line)
                    self._changed()
            finally:
                self._watching = None
        if not self._heard:
            self._version = None

    def _take(self, line: bytes) -> None:
        event = _decoded(line)
        kind, obj = event.get("type"), event.get("object")
        if kind == "ERROR":
            raise ApiError.from_status(obj)
        version = _metadata(obj).get("resourceVersion")
        if not isinstance(kind, str) or not isinstance(version, str):
            raise NotKubernetes("an event without a type or a resourceVersion came from the watch")
        self._builder.apply(self._resource.kind, kind, obj)
        self._version = version
        self._heard = True

    def _failed(self, error: Exception) -> Failure:
        """Put the failure into words, and decide whether the version outlives it."""
        if isinstance(error, ApiError):
            keep = error.status in _VERSION_SURVIVES
        else:
            keep = self._heard and isinstance(error, (OSError, aiohttp.ClientError))
        if not keep:
            self._version = None
        if not isinstance(error, _EXPECTED):
            logger.error("unexpected failure while following %s", self._resource.plural, exc_info=error)
        failure = explain(error, self._session.access, self._resource.plural, self._namespace)
        logger.debug("%s: %s", self._resource.plural, failure.error)
        return failure

    async def _log_in_again(self, login: int) -> None:
        renewing = asyncio.create_task(self._session.renew(login))
        try:
            await asyncio.wait([renewing], timeout=SLOW_LOGIN)
            if not renewing.done():
                self._report(slow_login(self._session.access))
            await renewing
        except ClusterError as error:
            self._report(error)
        finally:
            renewing.cancel()

    def _report(self, error: ClusterError) -> None:
        # Most breaks are over with the first retry, which is immediate: nobody needs to hear of those.
        if self.failure is not None and not self.lost:
            # Whoever waits for the start is told by its outcome.
            level = logging.WARNING if self.listed.is_set() else logging.DEBUG
            logger.log(level, "lost sight of %s: %s (trying again)", self._resource.plural, error)
            self.lost = True
        self.failure = error

    def _is_up(self) -> None:
        if self.lost and self.listed.is_set():
            logger.info("following %s again", self._resource.plural)
        self.failure, self.lost = None, False
        self.heard = time.time()
        self._backoff.succeeded(asyncio.get_running_loop().time())

    def _timeout(self, *, total: float | None = None, sock_read: float | None = None) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=total, sock_connect=self._pace.connect, sock_read=sock_read)


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        start = " ".join(data[:80].decode("utf-8", "replace").split())
        raise NotKubernetes(f"the server sent something that is not Kubernetes' JSON: {start!r}")
    return document


def _metadata(obj: Any) -> dict[str, Any]:
    metadata = obj.get("metadata") if isinstance(obj, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _list_of(body: bytes) -> tuple[list[Any], dict[str, Any]]:
    document = _decoded(body)
    items, metadata = document.get("items"), _metadata(document)
    # Go writes a slice that was never allocated as null: that is an empty list.
    if not isinstance(items, (list, type(None))) or not isinstance(metadata.get("resourceVersion"), str):
        raise NotKubernetes("the server sent something that is not a list of Kubernetes objects")
    return items or [], metadata
