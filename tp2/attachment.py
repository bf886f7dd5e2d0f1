"""The connection to one cluster, as a whole: its API and the tunnel into it.

It is replaced as a whole, too: when the kubeconfig points to another cluster, nothing of the former one may go on
answering. What captures and what answers on this machine stays, and turns to the new attachment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from socket import SOCK_STREAM
from typing import Any, Final
from urllib.parse import urlsplit

from tp2.cluster.kubeconfig import Access
from tp2.cluster.watch import Cluster
from tp2.endpoint import InstalledEndpoint
from tp2.errors import Tp2Error
from tp2.settings import Settings
from tp2.socks.dial import Way, direct
from tp2.socks.proxy import SocksProxy
from tp2.socks.tunnel import Endpoint, Tunnel
from tp2.types import Destination

_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}

#: Seconds that the Kubernetes API, once it is logged in to, and the SSH endpoint each have to come up in.
START_TIMEOUT: Final = 15.0


class Attachment:
    """A cluster and the way into it. Making one starts nothing.

    :param trouble: why the attempt before this one failed, for those who ask meanwhile.
    """

    def __init__(self, settings: Settings, access: Access, trouble: str | None = None) -> None:
        self.access = access
        #: Called when the catalog is another.
        self.on_change: Callable[[], None] = lambda: None
        self.cluster = Cluster(access, namespaces=settings.namespaces, on_change=lambda _: self.on_change())
        self.trouble = trouble
        self._installed: InstalledEndpoint | None = None
        self._following: asyncio.Task[None] | None = None
        self.tunnel = self._way_in(settings)
        self._api: frozenset[tuple[str, int]] = frozenset()

    def _way_in(self, settings: Settings) -> Tunnel | SocksProxy:
        if settings.socks_upstream is not None:
            host, port, _ = settings.socks_upstream
            return SocksProxy(host, port, dial_timeout=settings.dial_timeout)
        connect: Callable[[str, int], Awaitable[Way]] = direct
        if settings.remote is not None:
            endpoint = Endpoint(*settings.remote)
        else:
            self._installed = installed = InstalledEndpoint(self.cluster, settings.endpoint_namespace, settings.via)
            endpoint = Endpoint(installed.host, installed.port, installed.user)
            connect = installed.connect
        return Tunnel(
            endpoint,
            identity=settings.identity,
            host_key=settings.host_key,
            dial_timeout=settings.dial_timeout,
            connect=connect,
        )

    async def start(self, report: Callable[[str, str], None] = lambda stage, outcome: None) -> None:
        """Connect to both, side by side.

        :param report: called with the stage's name and its outcome as each is up.
        :raises Tp2Error: one of them cannot be had; nothing is left running.
        """

        async def stage(name: str, start: Awaitable[None], outcome: Callable[[], str]) -> None:
            await start
            report(name, outcome())

        async def start_tunnel() -> None:
            if self._installed is not None:
                # It is asked for there, once somebody has logged in, and that has no bound of ours.
                await self.cluster.session.opened.wait()
            await self.tunnel.start(START_TIMEOUT)

        try:
            # The way to the API is a proxy's if there is one.
            self._api = await _addresses(self.access.proxy or self.access.server)
            async with asyncio.TaskGroup() as group:
                group.create_task(stage("cluster", self.cluster.start(START_TIMEOUT), self.describe_cluster))
                group.create_task(stage("tunnel", start_tunnel(), self.describe_tunnel))
        except BaseExceptionGroup as failures:
            await self.close()
            raise first_cause(failures) from failures
        except BaseException:
            await self.close()
            raise
        self.trouble = None
        if self._installed is not None:
            self._following = asyncio.create_task(self._installed.follow(self.tunnel.retry), name="endpoint")

    async def close(self) -> None:
        """Leave the cluster; every connection through the tunnel is told."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
            self._following = None
        await self.tunnel.close()
        await self.cluster.close()

    def nudge(self) -> None:
        """The machine woke up, or its network changed: what is dead shall be known, and tried again, at once."""
        self.cluster.nudge()
        if self._installed is not None:
            self._installed.forgive()
        self.tunnel.nudge()

    def leads_here(self, destination: Destination) -> bool:
        """Whether *destination* is on tp2's own way to the cluster, which must not be led through the cluster."""
        return destination in self.own_way()

    def own_way(self) -> frozenset[tuple[str, int]]:
        """The addresses and ports that tp2 itself connects to, as of now."""
        return self._api.union(self.tunnel.peer_addresses)

    def describe_cluster(self) -> str:
        """Say in a line which cluster is watched."""
        status = self.cluster.status()
        return f"{status['context']} at {status['server']}: {status['services']} services"

    def describe_tunnel(self) -> str:
        """Say in a line where the tunnel leads."""
        status = self.tunnel.status()
        return f"{status['remote']}, through {status['through']}" if status["through"] else status["remote"]

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the ``cluster`` and ``tunnel`` parts of ``tp2 status``."""
        cluster = dict(self.cluster.status())
        cluster["last_error"] = cluster["last_error"] or self.trouble
        return {"cluster": cluster, "tunnel": dict(self.tunnel.status())}


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what a task group failed with; an error for the user before any other."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(first_cause(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in leaves if isinstance(error, Tp2Error)), leaves[0])


async def _addresses(url: str) -> frozenset[tuple[str, int]]:
    """Return the addresses and port of a URL's server; none if its name does not resolve, which others will say."""
    parts = urlsplit(url)
    port = parts.port or _PORTS.get(parts.scheme, 443)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=SOCK_STREAM)
    except OSError:
        return frozenset()
    return frozenset((str(sockaddr[0]), port) for *_, sockaddr in found)
