"""The parts of a running daemon side by side, and what can be said of them: the answers on the control socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Set
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from tp2.attachment import Attachment
from tp2.canary import Canary
from tp2.capture.capture import Capture
from tp2.capture.targets import targets
from tp2.control.server import Answer
from tp2.diagnosis import likewise, trial, way
from tp2.dns.records import Type
from tp2.dns.server import DnsServer
from tp2.dns.upstream import Upstream
from tp2.dns.zone import ZoneConfig, resolve
from tp2.endpoint import InstalledEndpoint
from tp2.errors import UsageError
from tp2.forward.client import HelperForwarder
from tp2.resolvers import Resolvers
from tp2.settings import Settings, SocketAddress, parse_target
from tp2.socks.connector import Connector
from tp2.socks.server import SocksServer
from tp2.steering import Steering
from tp2.types import Destination, Wanted

#: Seconds for which whoever asks for a test waits for one that begins then.
CANARY_PATIENCE: Final = 4.0


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
    capture: Capture
    upstream: Upstream
    dns: DnsServer
    canary: Canary
    steering: Steering | None = None
    since: float = field(default_factory=time.time)

    def zone_config(self) -> ZoneConfig:
        """Return how names are looked up now."""
        return zone_config(self.settings, self.resolvers, self.attachment.access.namespace)

    def behind_the_endpoint(self) -> list[Destination]:
        """Return what the endpoint should be able to connect to: its own SSH port, and a service.

        Of a proxy nothing is known: it may say of anything that it is connected.
        """
        if self.settings.socks_upstream is not None:
            return []
        remote = self.settings.remote
        found = [Destination("127.0.0.1", remote.port if remote else InstalledEndpoint.port)]
        for service in self.attachment.cluster.catalog.services.values():
            if service.cluster_ips and service.ports:
                return [*found, Destination(service.cluster_ips[0], service.ports[0].port)]
        return found

    def address_of(self, name: str) -> str | None:
        """Return an address of a name of the cluster's, for whoever leaves names to the SOCKS server; None if none."""
        config, catalog = self.zone_config(), self.attachment.cluster.catalog
        for kind, family in ((Type.A, socket.AF_INET), (Type.AAAA, socket.AF_INET6)):
            answer = resolve(name.rstrip(".").lower(), kind, catalog, config)
            for record in answer.answers if answer else ():
                if record.type == kind and isinstance(address := record.parts[0], bytes):
                    return socket.inet_ntop(family, address)
        return None

    def operations(self, ready: Callable[[], bool], stop: Callable[[], None]) -> dict[str, Callable[[], Answer]]:
        """Return what the control socket can be asked. *ready* says whether the daemon came up."""

        def status() -> Answer:
            return self.status_now(ready())

        def down() -> dict[str, Any]:
            stop()
            return {"ok": True}

        def namespaces() -> dict[str, Any]:
            return {"namespaces": sorted(self.attachment.cluster.catalog.namespaces)}

        async def canary() -> dict[str, Any]:
            flight, fresh = await self.canary.soon(CANARY_PATIENCE)
            return {"canary": flight.as_json() if flight else None, "fresh": fresh}

        def recent() -> dict[str, Any]:
            rows = [asked.as_json() for asked in self.dns.recent]
            return {"recent": [{**row, "at": timestamp(row["at"])} for row in rows]}

        return {
            "status": status,
            "mappings": self.mappings,
            "recent": recent,
            "namespaces": namespaces,
            "canary": canary,
            "settings": lambda: likewise.told(self.settings),
            "down": down,
        }

    def requests(self) -> dict[str, Callable[[dict[str, Any]], Answer]]:
        """Return what the control socket can be asked to do to a ``target``: ``IP:PORT`` or ``NAME[:PORT]``."""

        async def pin(question: dict[str, Any]) -> dict[str, Any]:
            wanted = self._targets(question)
            await self.capture.way.pin(wanted)
            return self.mappings({item.destination for item in wanted})

        async def unpin(question: dict[str, Any]) -> dict[str, Any]:
            text = str(question.get("target"))
            mapped = {there(row): row["name"] for row in self.capture.way.snapshot()}
            # A service that is gone from the cluster still has its name here.
            meant = {destination for destination, name in mapped.items() if name == text}
            if not meant:
                meant = mapped.keys() & {item.destination for item in self._targets(question)}
            if not meant:
                raise UsageError(
                    f"cannot unmap {text}", "nothing of it is mapped", "'tp2 mappings' lists what is; its names will do"
                )
            await self.capture.way.unpin(meant)
            left = self.mappings(meant)
            gone = sorted(str(destination) for destination in meant - {there(row) for row in left["mappings"]})
            return {"gone": gone, **left}

        return {"map": pin, "unmap": unpin, "explain": self._explain}

    async def _explain(self, question: dict[str, Any]) -> dict[str, Any]:
        """Say what would happen now to the names and the destination of a question.

        ``names`` are those that a resolver asks for, in its order; with ``test``, the way is tried, and with
        ``connect``, the endpoint connects to the first destination.
        """
        host, port = parse_target(str(question.get("target")))
        config, catalog = self.zone_config(), self.attachment.cluster.catalog
        asked = question.get("names")
        names = [way.of_name(str(name).lower(), catalog, config) for name in (asked if isinstance(asked, list) else ())]
        wanted = way.destinations(host, port, names, catalog, config)
        rows = {row_of: row for row in self.capture.way.snapshot() if (row_of := there(row)) in wanted}
        captured = _Captured(self.capture, rows)
        attachment = self.attachment.status()
        canary, channel = await trial.tests(
            self.canary if question.get("test") is True else None,
            self.attachment.tunnel,
            wanted[0] if wanted and question.get("connect") is True else None,
        )
        return {
            "mode": str(self.settings.mode),
            "captured": self._captured(),
            "upstream": [str(address) for address in self.resolvers.fallback],
            "cluster": {key: attachment["cluster"][key] for key in ("context", "synced", "last_error")},
            "tunnel": {key: attachment["tunnel"][key] for key in ("state", "remote", "through", "last_error")},
            "names": names,
            "near": way.near(host, catalog, config),
            "destinations": [way.of_destination(each, catalog, captured) for each in wanted],
            "canary": canary,
            "channel": channel,
        }

    def _targets(self, question: dict[str, Any]) -> list[Wanted]:
        return targets(str(question.get("target")), self.attachment.cluster.catalog, self.zone_config())

    async def status_now(self, ready: bool) -> dict[str, Any]:
        """Return :meth:`status` with what has been refused by now."""
        await self.capture.count_refused()
        return self.status(ready)

    def status(self, ready: bool) -> dict[str, Any]:
        """Return the object of ``tp2 status --json``; docs/reference/scripting.md lists its keys."""
        attachment = self.attachment.status()
        cluster, tunnel = attachment["cluster"], attachment["tunnel"]
        captured = self.capture.status()
        canary = self.canary.last.as_json() if self.canary.last else None
        healthy = cluster["synced"] and tunnel["state"] == "connected" and canary is not None and canary["ok"]
        return {
            "state": "starting" if not ready else "ready" if healthy else "degraded",
            "mode": str(self.settings.mode),
            "pid": os.getpid(),
            "since": timestamp(self.since),
            "cluster": {**cluster, "as_of": timestamp(cluster["as_of"])},
            "tunnel": {**tunnel, "since": timestamp(tunnel["since"])},
            "dns": {
                "listen": self._dns_address(),
                "captured": self._captured(),
                "steered": self.steering.domains if self.steering else [],
                "upstream": [str(address) for address in self.resolvers.fallback],
                **asdict(self.dns.counters),
            },
            "socks": {"listen": str(SocketAddress(*self.socks.address))},
            "mappings": {**captured["mappings"], "last_failed": timestamp(captured["mappings"]["last_failed"])},
            "capture": captured["capture"],
            "connections": self.connector.status(),
            "canary": {**canary, "at": timestamp(canary["at"])} if canary else None,
            "forwarder": {"kind": self.forwarder.kind, "helper_pid": self.forwarder.pid},
        }

    def mappings(self, only: Set[Destination] | None = None) -> dict[str, Any]:
        """Return the object of ``tp2 mappings --json``; docs/reference/scripting.md lists its keys.

        :param only: leave all others out.
        """
        rows = [
            {**row, "last_used": timestamp(row["last_used"])}
            for row in self.capture.way.snapshot()
            if only is None or there(row) in only
        ]
        return {"mode": str(self.settings.mode), "mappings": rows}

    def describe_dns(self) -> str:
        """Say in a line who answers what."""
        return f"{self._dns_address()}; other names go to {', '.join(map(str, self.resolvers.fallback))}"

    def _captured(self) -> list[str]:
        return [] if self.steering else list(self.resolvers.captured)

    def _dns_address(self) -> str:
        return f"127.0.0.1:{self.dns.port}"


class _Captured:
    """See :class:`tp2.diagnosis.way.Captured`."""

    def __init__(self, capture: Capture, rows: dict[Destination, dict[str, Any]]) -> None:
        self._capture = capture
        self._rows = rows

    def mapping(self, destination: Destination) -> dict[str, Any] | None:
        """Return its row."""
        return self._rows.get(destination)

    def has(self, address: str) -> bool:
        """Whether the forwarder has *address*."""
        return address in self._capture.addresses

    def left_alone(self, destination: Destination) -> str | None:
        """Return why it is not captured."""
        return self._capture.why_spared(destination)


def there(row: dict[str, Any]) -> Destination:
    """Return the destination that a row is about."""
    return Destination(row["address"], row["port"])


def zone_config(settings: Settings, resolvers: Resolvers, namespace: str) -> ZoneConfig:
    """Return how names are looked up: as a pod of the first ``--namespace``, or else of *namespace*, would."""
    return ZoneConfig(
        zone=settings.cluster_domain,
        namespace=settings.namespaces[0] if settings.namespaces else namespace,
        exclude=settings.excluded_names,
        search=resolvers.search,
        name_servers=resolvers.captured,
    )


def timestamp(seconds: float | None) -> str | None:
    """Return a Unix time as RFC 3339 in UTC, which JSON readers of every language parse."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
