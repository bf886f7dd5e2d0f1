"""The parts of a running daemon side by side, and what can be said of them: the answers on the control socket."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from tp2.attachment import Attachment
from tp2.dns.server import DnsServer
from tp2.dns.upstream import Upstream
from tp2.dns.zone import ZoneConfig
from tp2.forward.client import HelperForwarder
from tp2.portmap.mapper import Mapper
from tp2.resolvers import Resolvers
from tp2.settings import Settings, SocketAddress
from tp2.socks.connector import Connector
from tp2.socks.server import SocksServer


@dataclass(slots=True)
class Parts:
    """Everything a daemon is made of. :mod:`tp2.daemon` builds it; nothing here starts or stops anything.

    ``resolvers`` and ``attachment`` are those in use now: they change with resolv.conf and with the kubeconfig.
    """

    settings: Settings
    resolvers: Resolvers
    attachment: Attachment
    forwarder: HelperForwarder
    connector: Connector
    socks: SocksServer
    mapper: Mapper
    upstream: Upstream
    dns: DnsServer
    since: float = field(default_factory=time.time)

    def zone_config(self) -> ZoneConfig:
        """Return how names are looked up now."""
        return zone_config(self.settings, self.resolvers, self.attachment.access.namespace)

    def operations(
        self, ready: Callable[[], bool], stop: Callable[[], None]
    ) -> dict[str, Callable[[], dict[str, Any]]]:
        """Return what the control socket can be asked. *ready* says whether the daemon came up."""

        def down() -> dict[str, Any]:
            stop()
            return {"ok": True}

        def namespaces() -> dict[str, Any]:
            return {"namespaces": sorted(self.attachment.cluster.catalog.namespaces)}

        return {
            "status": lambda: self.status(ready()),
            "mappings": self.mappings,
            "namespaces": namespaces,
            "down": down,
        }

    def status(self, ready: bool) -> dict[str, Any]:
        """Return the object of ``tp2 status --json``; the README lists its keys."""
        attachment = self.attachment.status()
        cluster, tunnel = attachment["cluster"], attachment["tunnel"]
        healthy = cluster["synced"] and tunnel["state"] == "connected"
        return {
            "state": "starting" if not ready else "ready" if healthy else "degraded",
            "mode": str(self.settings.mode),
            "pid": os.getpid(),
            "since": timestamp(self.since),
            "cluster": {**cluster, "as_of": timestamp(cluster["as_of"])},
            "tunnel": {**tunnel, "since": timestamp(tunnel["since"])},
            "dns": {
                "listen": self._dns_address(),
                "captured": list(self.resolvers.captured),
                "upstream": [str(address) for address in self.resolvers.fallback],
                **asdict(self.dns.counters),
            },
            "socks": {"listen": str(SocketAddress(*self.socks.address))},
            "mappings": {"live": len(self.mapper.table), "capacity": self.mapper.table.capacity},
            "forwarder": {"kind": self.forwarder.kind, "helper_pid": self.forwarder.pid},
        }

    def mappings(self) -> dict[str, Any]:
        """Return the object of ``tp2 mappings --json``; the README lists its keys."""
        rows = [{**row, "last_used": timestamp(row["last_used"])} for row in self.mapper.snapshot()]
        return {"mode": str(self.settings.mode), "mappings": rows}

    def describe_dns(self) -> str:
        """Say in a line who answers what."""
        return f"{self._dns_address()}; other names go to {', '.join(map(str, self.resolvers.fallback))}"

    def _dns_address(self) -> str:
        return f"127.0.0.1:{self.dns.port}"


def zone_config(settings: Settings, resolvers: Resolvers, namespace: str) -> ZoneConfig:
    """Return how names are looked up: as a pod of the first ``--namespace``, or else of *namespace*, would."""
    return ZoneConfig(
        zone=settings.cluster_domain,
        namespace=settings.namespaces[0] if settings.namespaces else namespace,
        exclude=settings.exclude,
        search=resolvers.search,
        name_servers=resolvers.captured,
    )


def timestamp(seconds: float | None) -> str | None:
    """Return a Unix time as RFC 3339 in UTC, which JSON readers of every language parse."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
