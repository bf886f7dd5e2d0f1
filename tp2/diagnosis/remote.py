"""The SSH endpoint: whether it is there, who it is, whether it lets us in, and whether it connects to anything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import asyncssh

from tp2.canary import not_allowed
from tp2.cluster import discover, sshd
from tp2.cluster.api import Api, Forbidden
from tp2.cluster.manifest import ENDPOINT, ENDPOINT_LABELS
from tp2.diagnosis.kubernetes import Kubernetes
from tp2.diagnosis.model import Finding, failed, failed_by, ok
from tp2.endpoint import InstalledEndpoint
from tp2.errors import EndpointError, Tp2Error
from tp2.settings import Settings
from tp2.socks.reasons import ChannelRefused, Refusal
from tp2.socks.tunnel import Endpoint, Tunnel

#: Seconds for the handshake, and for a destination behind it.
HANDSHAKE: Final = 6.0
OPENING: Final = 4.0


class Remote:
    """The checks. What one finds out the next ones use."""

    def __init__(self, settings: Settings, kubernetes: Kubernetes) -> None:
        self._settings = settings
        self._kubernetes = kubernetes
        self._tunnel: Tunnel | None = None

    @contextlib.asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """Close what was opened on leaving."""
        try:
            yield
        finally:
            if self._tunnel is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await self._tunnel.close()

    async def installed(self) -> Finding:
        """Whether there is one in the cluster."""
        namespace = self._settings.endpoint_namespace
        api = Api(self._kubernetes.session)
        pods = await api.select("Pod", namespace, ENDPOINT_LABELS)
        try:
            deployment = await api.get("Deployment", namespace, ENDPOINT)
        except Forbidden:
            deployment = {}
        if deployment is None and not pods:
            # It says so in words.
            await discover.find(self._kubernetes.session, namespace)
        return ok(f"in the namespace {namespace}, with {len(pods)} {'pod' if len(pods) == 1 else 'pods'}")

    async def ready(self) -> Finding:
        """Whether it is scheduled, ready, and says which key it has."""
        found = await discover.find(self._kubernetes.session, self._settings.endpoint_namespace)
        pods = ", ".join(candidate.pod for candidate in found.candidates)
        balancers = "".join(f"; load balancer {each.host} port {each.port}" for each in found.load_balancers)
        return ok(f"{pods} ready, host key known{balancers}")

    async def handshake(self) -> Finding:
        """Whether it is who it should be, and lets us in."""
        settings = self._settings
        if settings.remote is not None:
            tunnel = Tunnel(Endpoint(*settings.remote), identity=settings.identity, host_key=settings.host_key)
        else:
            installed = InstalledEndpoint(self._kubernetes.cluster, settings.endpoint_namespace, settings.via)
            endpoint = Endpoint(installed.host, installed.port, installed.user)
            tunnel = Tunnel(endpoint, identity=settings.identity, host_key=settings.host_key, connect=installed.connect)
        self._tunnel = tunnel
        await tunnel.start(HANDSHAKE)
        status = tunnel.status()
        through = f", through {status['through']}" if status["through"] else ""
        return ok(f"{status['remote']}{through}, key {status['host_key']}")

    async def forwarding(self) -> Finding:
        """Whether it connects to what it is asked for."""
        remote = self._settings.remote
        destinations = [("127.0.0.1", remote.port if remote else sshd.PORT)]
        if self._kubernetes.destination is not None:
            destinations.append(self._kubernetes.destination)
        assert self._tunnel is not None
        prohibited: ChannelRefused | None = None
        for host, port in destinations:
            try:
                await open_and_close(self._tunnel, host, port, OPENING)
            except ChannelRefused as refused:
                if refused.refusal is Refusal.PROHIBITED:
                    prohibited = refused
                    continue
                if refused.refusal is Refusal.NOT_CONNECTED:
                    return failed_by(_lost(refused))
            except TimeoutError:
                return failed(
                    "the SSH endpoint lets us in, and then does not answer",
                    f"it was asked for a connection to {host}:{port}, and said nothing for {OPENING:g} s",
                    "see the endpoint's log; it may be overloaded",
                )
            return ok("allowed")
        assert prohibited is not None
        return failed_by(not_allowed(prohibited))


async def open_and_close(tunnel: Tunnel, host: str, port: int, within: float) -> None:
    """Have the endpoint connect to a destination, and hang up.

    :raises ChannelRefused: it cannot, with the reason.
    :raises TimeoutError: it does not say within so many seconds.
    """
    async with asyncio.timeout(within):
        channel = await tunnel.open(asyncssh.SSHTCPSession, host, port)
    channel.abort()


def _lost(refused: ChannelRefused) -> Tp2Error:
    return EndpointError("the connection to the SSH endpoint was lost at once", str(refused), "see the endpoint's log")
