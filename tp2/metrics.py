"""``--metrics``: what ``tp2 status`` says, for Prometheus to read over HTTP. Nothing is counted for it alone.

Names and units are those of Prometheus' own conventions (https://prometheus.io/docs/practices/naming/). There is
nothing for each mapping or name: their number has no bound that a time series database would like.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tp2 import __version__
from tp2.errors import AddressInUse, PrivilegeError, Tp2Error
from tp2.settings import SocketAddress
from tp2.socks.holder import holder_of

#: Where it is, as Prometheus expects it.
PATH: Final = "/metrics"

#: A status: the object of ``tp2 status --json``.
Status = dict[str, Any]


def families(status: Status) -> Iterator[Metric]:
    """Give the metrics that *status* amounts to."""
    cluster, tunnel, dns = status["cluster"], status["tunnel"], status["dns"]
    mappings, connections, canary = status["mappings"], status["connections"], status["canary"]
    info = GaugeMetricFamily("tp2_info", "Which tp2 this is; always 1.", labels=["version", "mode"])
    info.add_metric([__version__, status["mode"]], 1)
    yield info
    yield _gauge("tp2_ready", "Whether all is well: 1, or 0 while starting or degraded.", status["state"] == "ready")

    yield _counter("tp2_dns_queries", "DNS queries that came.", dns["queries"])
    answers = CounterMetricFamily("tp2_dns_answers", "DNS queries answered, by who did.", labels=["by"])
    answers.add_metric(["cluster"], dns["cluster_answers"])
    answers.add_metric(["upstream"], dns["forwarded"])
    yield answers
    yield _counter("tp2_dns_failures", "DNS queries that could not be answered.", dns["failures"])

    yield _gauge("tp2_cluster_synced", "Whether the Kubernetes API is in touch.", cluster["synced"])
    yield _gauge("tp2_cluster_services", "Services known.", cluster["services"])
    yield _gauge("tp2_tunnel_connected", "Whether the SSH tunnel is up.", tunnel["state"] == "connected")
    yield _counter("tp2_tunnel_reconnects", "How often the tunnel had to come back.", tunnel["reconnects"])

    yield _gauge("tp2_mappings", "Mappings now; in mode origdst, destinations in use.", mappings["live"])
    if mappings["capacity"] is not None:
        yield _gauge("tp2_mappings_capacity", "The most mappings at a time.", mappings["capacity"])
        yield _counter("tp2_mappings_made", "Mappings there have been.", mappings["made"])
    yield _counter("tp2_mappings_failed_lookups", "Lookups that failed for want of room.", mappings["failed_lookups"])

    yield _gauge("tp2_open_connections", "Connections through the tunnel now.", connections["open"])
    yield _counter("tp2_connections", "Connections through the tunnel, SOCKS5 included.", connections["total"])
    yield _counter("tp2_sent_bytes", "Bytes from this machine into the cluster.", connections["bytes_sent"])
    yield _counter("tp2_received_bytes", "Bytes from the cluster.", connections["bytes_received"])
    failed = CounterMetricFamily(
        "tp2_connections_failed", "Connections that the cluster's side did not take, by reason.", labels=["reason"]
    )
    for reason, count in connections["failed"].items():
        failed.add_metric([reason], count)
    yield failed
    refused = status["capture"]["refused"]["connections"]
    yield _counter("tp2_connections_refused", "Connections to addresses that nothing is mapped for.", refused)

    if canary is not None:
        yield _gauge("tp2_canary_ok", "Whether the last test of the whole way came through.", canary["ok"])
        yield _gauge("tp2_canary_duration_seconds", "How long it took.", canary["took"])


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=float(value))


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(name, words, value=float(value))


class _FromStatus(Collector):
    """The families of one status."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        return families(self._status)


class MetricsServer:
    """An HTTP server with the one page ``/metrics``.

    :param address: where it listens.
    :param status: gives the status as of now.
    """

    def __init__(self, address: SocketAddress, status: Callable[[], Awaitable[Status]]) -> None:
        self.address = address
        self._status = status
        application = web.Application()
        application.router.add_get(PATH, self._show)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1.0)

    async def start(self) -> None:
        """Listen.

        :raises AddressInUse: the port is taken, or the address is not this machine's.
        :raises PrivilegeError: the port is root's.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, *self.address).start()
        except OSError as error:
            await self._runner.cleanup()
            holder = await asyncio.to_thread(holder_of, self.address.port) if error.errno == errno.EADDRINUSE else None
            raise _cannot_listen(self.address, error, holder) from error

    async def close(self) -> None:
        """Stop listening, and return when the answers under way are finished or a second has passed."""
        await self._runner.cleanup()

    async def _show(self, request: web.Request) -> web.Response:
        registry = CollectorRegistry()
        registry.register(_FromStatus(await self._status()))
        ProcessCollector(registry=registry)
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": kind})


def _cannot_listen(address: SocketAddress, error: OSError, holder: str | None) -> Tp2Error:
    what = f"metrics cannot be had at {address}"
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(
            what,
            f"the port is in use by {holder or 'another program'}",
            "stop that program, or choose another address with --metrics ADDR:PORT",
        )
    if error.errno == errno.EACCES:
        return PrivilegeError(what, "ports below 1024 need privilege", "choose a higher port with --metrics")
    why = "the address is not this machine's" if error.errno == errno.EADDRNOTAVAIL else os.strerror(error.errno or 0)
    return AddressInUse(what, why.lower(), "choose another address with --metrics ADDR:PORT")
