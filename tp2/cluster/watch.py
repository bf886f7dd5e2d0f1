"""Keeps the catalog true: one stream per resource and namespace feeds one builder, and every change is published.

:meth:`Cluster.start` returns when Services and EndpointSlices have been listed completely, or says at once why that
cannot be. From then on nothing but :meth:`Cluster.close` ends it: during an outage the last catalog stays, and
afterwards the streams catch up by themselves (:mod:`tp2.cluster.stream` says how). Changes of one turn of the event
loop are published together, at the end of that turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import TypedDict

from tp2.cluster.builder import ENDPOINT_SLICE, NAMESPACE, SERVICE, CatalogBuilder
from tp2.cluster.catalog import Catalog
from tp2.cluster.failure import MayNotList, slow_login
from tp2.cluster.kubeconfig import Access
from tp2.cluster.session import Session
from tp2.cluster.stream import SLOW_LOGIN, Pace, Resource, Stream
from tp2.errors import ClusterError

logger = logging.getLogger(__name__)

SERVICES = Resource(SERVICE, "/api/v1", "services")
ENDPOINT_SLICES = Resource(ENDPOINT_SLICE, "/apis/discovery.k8s.io/v1", "endpointslices")
NAMESPACES = Resource(NAMESPACE, "/api/v1", "namespaces", optional=True)


class ClusterStatus(TypedDict):
    """The ``cluster`` part of ``tp2 status``. ``synced`` is false from the start until everything is listed, and
    while a stream has lost the server for longer than one immediate retry; ``last_error`` is why. ``scope`` has the
    namespaces that are followed, empty for all. What is answered is true as of ``as_of``, a Unix time."""

    context: str
    server: str
    synced: bool
    as_of: float | None
    scope: list[str]
    services: int
    namespaces: int
    last_error: str | None


class Cluster:
    """What a Kubernetes cluster has, followed.

    :param namespaces: the namespaces to follow; empty for all of them, or, for somebody who may not list over the
        whole cluster, for the context's.
    :param on_change: called with every new catalog, from the event loop; it must not block.
    """

    def __init__(
        self,
        access: Access,
        *,
        namespaces: Sequence[str] = (),
        on_change: Callable[[Catalog], None] = lambda catalog: None,
        pace: Pace | None = None,
    ) -> None:
        self.catalog = Catalog()
        self._access = access
        self._on_change = on_change
        self._session = Session(access)
        self._builder = CatalogBuilder()
        self._pace = pace or Pace()
        self._scopes: list[str | None] = list(dict.fromkeys(namespaces)) or [None]
        self._streams = self._make_streams()
        self._following: asyncio.Task[None] | None = None
        self._synced = False
        self._waiting: ClusterError | None = None
        self._publishing: asyncio.Handle | None = None

    async def start(self, timeout: float) -> None:
        """Log in, list everything, and go on following it in the background.

        :param timeout: seconds that listing may take. Logging in takes as long as it does: it may be a person who has
            to find their second factor.
        :raises ClusterError: it is impossible, or took longer; nothing is left running.
        """
        try:
            await self._log_in()
            async with asyncio.timeout(timeout):
                await self._list_all()
            self._synced = True
            self._publish()
        except TimeoutError:
            await self.close()
            raise self._too_slow(timeout) from None
        except BaseException:
            await self.close()
            raise

    async def _log_in(self) -> None:
        logging_in = asyncio.create_task(self._session.open())
        try:
            await asyncio.wait([logging_in], timeout=SLOW_LOGIN)
            if not logging_in.done():
                self._waiting = slow_login(self._access)
                logger.warning("%s. %s", self._waiting, self._waiting.remedy)
            await logging_in
        finally:
            logging_in.cancel()
            await asyncio.gather(logging_in, return_exceptions=True)
            self._waiting = None

    async def close(self) -> None:
        """Stop following and close all connections. May be called again, and without a start."""
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None
        self._synced = False
        await self._session.close()

    def nudge(self) -> None:
        """The machine woke up, or its network changed: see :meth:`tp2.cluster.stream.Stream.nudge`."""
        self._session.nudge()
        for stream in self._streams:
            stream.nudge()

    async def renew(self) -> None:
        """Log in again: the kubeconfig has new credentials.

        :raises ClusterError: they cannot be had; the former ones stay in use.
        """
        await self._session.open()

    @property
    def session(self) -> Session:
        """The login that everything here shares, for others who ask this cluster something."""
        return self._session

    @property
    def scope(self) -> list[str]:
        """The namespaces that are followed; empty for all of them."""
        return [scope for scope in self._scopes if scope is not None]

    def status(self) -> ClusterStatus:
        """How it is, for ``tp2 status``."""
        lost = self._waiting or next((stream.failure for stream in self._streams if stream.lost), None)
        heard = min((stream.heard for stream in self._streams if stream.lost), default=time.time())
        running = self._following is not None and not self._following.done()
        return {
            "context": self._access.context,
            "server": self._access.server,
            "synced": self._synced and running and lost is None,
            "as_of": heard if self._synced and heard else None,
            "scope": self.scope,
            "services": len(self.catalog.services),
            "namespaces": len(self.catalog.namespaces),
            "last_error": str(lost) if lost else None,
        }

    def _make_streams(self) -> list[Stream]:
        return [
            Stream(self._session, self._builder, resource, scope, self._changed, self._pace)
            for resource, scope in (
                *((SERVICES, scope) for scope in self._scopes),
                *((ENDPOINT_SLICES, scope) for scope in self._scopes),
                # Namespaces belong to no namespace: whoever may read only some is often forbidden to list them.
                (NAMESPACES, None),
            )
        ]

    async def _list_all(self) -> None:
        """List everything that may be listed: over the whole cluster, or else in the context's namespace."""
        try:
            await self._list_scopes()
        except MayNotList as forbidden:
            if self._scopes != [None]:
                raise
            self._scopes = [self._access.namespace]
            self._builder = CatalogBuilder(listed=frozenset((self._access.namespace,)))
            self._streams = self._make_streams()
            try:
                await self._list_scopes()
            except MayNotList:
                # What is missing over the whole cluster is what most people would ask for.
                raise forbidden from None
            logger.warning(
                "only the namespace %r is known: %s. Name others with --namespace, or %s",
                self._access.namespace,
                forbidden.why,
                "ask for the right to list and watch services and endpointslices in all namespaces",
            )

    async def _list_scopes(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        self._following = asyncio.create_task(self._follow(), name="tp2-cluster")
        await self._all_listed(self._following)

    async def _follow(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for stream in self._streams:
                    group.create_task(stream.run())
        except ExceptionGroup as failures:
            # Streams fail together and for the same reason: the first one tells it.
            raise failures.exceptions[0] from None

    async def _all_listed(self, following: asyncio.Task[None]) -> None:
        listed = asyncio.gather(*(stream.listed.wait() for stream in self._streams))
        try:
            await asyncio.wait((following, listed), return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                await following
        finally:
            listed.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listed

    def _too_slow(self, timeout: float) -> ClusterError:
        context, within = self._access.context, f"within {timeout:g} s"
        failure = next((stream.failure for stream in self._streams if stream.failure), None)
        if failure is not None:
            return ClusterError(failure.what, f"{failure.why} (no better {within})", failure.remedy)
        return ClusterError(
            f"cannot read the cluster of context {context!r}",
            f"{self._access.server} did not answer completely {within}",
            "check the way to the cluster (VPN, proxy, firewall), then try again",
        )

    def _changed(self) -> None:
        if self._synced and self._publishing is None:
            self._publishing = asyncio.get_running_loop().call_soon(self._publish)

    def _publish(self) -> None:
        self._publishing = None
        catalog = self._builder.snapshot()
        if catalog.generation != self.catalog.generation:
            self.catalog = catalog
            self._on_change(catalog)
