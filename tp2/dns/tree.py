"""What there is at each name below the cluster's domain, as a tree of names: nodes with addresses, ports and aliases.

Pure. :mod:`tp2.dns.zone` says which shapes of names there are, and makes answers out of these nodes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tp2.cluster.catalog import Catalog, Endpoint, Port, Service
from tp2.dns.records import Record, Type, name_record, soa_record, text_record

# Seconds. CoreDNS's default: a client that keeps an answer this long follows a replaced service soon enough, and one
# that asks again costs next to nothing here.
TTL = 5
# RFC 2308: long enough to stop a client from asking in a loop, short enough that a new service is seen soon.
NEGATIVE_TTL = 5
SCHEMA_VERSION = "1.1.0"
# The specification's example: it does not change while a cluster lives.
_SCHEMA_TTL = 28800

# What Kubernetes takes for a hostname (RFC 1123). Slices that somebody wrote by hand may have others.
_HOSTNAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII | re.IGNORECASE)
_DASHED_ADDRESS = re.compile(r"[0-9a-f-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class ZoneConfig:
    """What the user chose.

    :param zone: the cluster's domain.
    :param namespace: the one whose services have one-label names.
    :param exclude: names that are never the cluster's, each with all names below it; ``*.`` before one is the same.
    :param search: this machine's search list; see :func:`tp2.dns.zone.resolve_expanded`.
    :param name_servers: the addresses under which clients reach tp2's DNS: those of the zone's NS record.
    """

    zone: str = "cluster.local"
    namespace: str = "default"
    exclude: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    name_servers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "zone", _normal(self.zone))
        object.__setattr__(self, "namespace", _normal(self.namespace))
        object.__setattr__(self, "exclude", tuple(filter(None, (_normal(n.removeprefix("*")) for n in self.exclude))))
        object.__setattr__(self, "search", tuple(filter(None, map(_normal, self.search))))


class Host(NamedTuple):
    """An address that has a name: ``name`` in full, ``label`` as people shorten it, ``ports`` that it serves."""

    name: str
    label: str
    address: str
    ports: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """Everything there is at one name. All named ports of *service*, if any, have an SRV record there too."""

    reason: str
    hosts: tuple[Host, ...] = ()
    servers: tuple[tuple[Host, int], ...] = ()
    service: Service | None = None
    alias: str = ""
    records: tuple[Record, ...] = ()


def find(qname: str, catalog: Catalog, config: ZoneConfig) -> Node | None:
    """What is at *qname*, which is in the zone; None if the name does not exist."""
    labels = qname[: -len(config.zone)].split(".")[:-1]
    match labels:
        case []:
            return Node("the zone", records=(soa(config.zone, catalog, config), _ns(config)))
        case ["dns-version"]:
            return Node("schema version", records=(text_record(qname, Type.TXT, _SCHEMA_TTL, SCHEMA_VERSION),))
        case ["ns", "dns"]:
            return Node("the name server", hosts=tuple(name_server_hosts(catalog, config)))
        case ["dns"] | ["svc"] | ["pod"]:
            return Node("has only names below it")
        case [namespace, "svc" | "pod"]:
            return Node("a namespace") if catalog.has_namespace(namespace) else None
        case [dashed, namespace, "pod"]:
            return _find_pod(qname, dashed, namespace, catalog)
        case [*below, "svc"]:
            return find_below_service(below, catalog, config)
        case _:
            return None


def find_below_service(labels: list[str], catalog: Catalog, config: ZoneConfig) -> Node | None:
    """What is at the labels, of which the last two are a service's name and namespace."""
    if not 2 <= len(labels) <= 4:
        return None
    service = catalog.service(labels[-1], labels[-2])
    if service is None:
        return None
    match labels[:-2]:
        case []:
            return _find_service(service, catalog, config)
        case [protocol] if protocol.startswith("_"):
            named = any(port.protocol.lower() == protocol[1:] for _, port in servers(service, catalog, config))
            return Node("has only names below it") if named else None
        case [endpoint]:
            hosts = tuple(h for h in _endpoint_hosts(service, catalog, config) if h.name.partition(".")[0] == endpoint)
            return Node("endpoint of a service", hosts, tuple(_numbers(_named_ports(hosts)))) if hosts else None
        case [port, protocol] if port.startswith("_") and protocol.startswith("_"):
            found = tuple(
                (host, candidate.port)
                for host, candidate in servers(service, catalog, config)
                # Case does not count on either side (specification section 2.1).
                if candidate.name.lower() == port[1:] and candidate.protocol.lower() == protocol[1:]
            )
            return Node("port of a service", servers=found) if found else None
        case _:
            return None


def servers(service: Service, catalog: Catalog, config: ZoneConfig) -> Iterator[tuple[Host, Port]]:
    """Every named port with every address that serves it; an unnamed port has no SRV record."""
    return _named_ports(
        _endpoint_hosts(service, catalog, config) if service.headless else _cluster_hosts(service, config)
    )


def hostname(endpoint: Endpoint) -> str:
    """The specification's _hostname_: the endpoint's own, else a generated one, here CoreDNS's."""
    if _HOSTNAME.fullmatch(endpoint.hostname):
        return endpoint.hostname.lower()
    return endpoint.address.replace(".", "-").replace(":", "-")


def full_name(service: Service, config: ZoneConfig) -> str:
    """A service's name in full."""
    return f"{service.name}.{service.namespace}.svc.{config.zone}"


def name_server_hosts(catalog: Catalog, config: ZoneConfig) -> Iterable[Host]:
    """Where a client can ask about the zone: tp2, else the cluster, where every distribution has a kube-dns."""
    name = _name_server(config)
    if config.name_servers:
        return (Host(name, name, address, ()) for address in config.name_servers)
    service = catalog.service("kube-system", "kube-dns")
    hosts = _cluster_hosts(service, config) if service is not None else ()
    return (host._replace(name=name) for host in hosts)


def soa(owner: str, catalog: Catalog, config: ZoneConfig) -> Record:
    """The SOA record of the zone, or of another *owner* that is answered from it."""
    serial = catalog.generation & 0xFFFFFFFF
    return soa_record(owner, _name_server(config), f"hostmaster.{config.zone}", serial, NEGATIVE_TTL)


def _normal(name: str) -> str:
    return name.strip(".").lower()


def _find_service(service: Service, catalog: Catalog, config: ZoneConfig) -> Node | None:
    if service.external_name:
        return Node("ExternalName service", alias=service.external_name.rstrip(".").lower())
    if not service.headless:
        return Node("service", hosts=_cluster_hosts(service, config), service=service)
    hosts = _endpoint_hosts(service, catalog, config)
    # Specification section 2.4.1: without a ready endpoint the name does not exist.
    return Node("headless service", hosts=hosts, service=service) if hosts else None


def _find_pod(qname: str, dashed: str, namespace: str, catalog: Catalog) -> Node | None:
    """Specification section 2.6: any address, in any namespace that exists."""
    if not catalog.has_namespace(namespace) or not _DASHED_ADDRESS.fullmatch(dashed):
        return None
    four = dashed.count("-") == 3 and "--" not in dashed
    try:
        address = str(ipaddress.ip_address(dashed.replace("-", "." if four else ":")))
    except ValueError:
        return None
    found = catalog.endpoints_by_address.get(address, ())
    ports = tuple(port for _, endpoint in found for port in endpoint.ports)
    return Node("pod", hosts=(Host(qname, f"{dashed}.{namespace}", address, ports),))


def _cluster_hosts(service: Service, config: ZoneConfig) -> tuple[Host, ...]:
    name = full_name(service, config)
    label = f"{service.name}.{service.namespace}"
    return tuple(Host(name, label, address, service.ports) for address in service.cluster_ips)


def _endpoint_hosts(service: Service, catalog: Catalog, config: ZoneConfig) -> tuple[Host, ...]:
    name = full_name(service, config)
    label = f"{service.name}.{service.namespace}"
    return tuple(
        Host(
            f"{hostname(endpoint)}.{name}",
            f"{endpoint.hostname}.{label}" if endpoint.hostname else label,
            endpoint.address,
            endpoint.ports,
        )
        for endpoint in catalog.ready_endpoints(service.namespace, service.name)
    )


def _named_ports(hosts: Iterable[Host]) -> Iterator[tuple[Host, Port]]:
    return ((host, port) for host in hosts for port in host.ports if port.name)


def _numbers(ports: Iterable[tuple[Host, Port]]) -> Iterator[tuple[Host, int]]:
    return ((host, port.port) for host, port in ports)


def _name_server(config: ZoneConfig) -> str:
    return f"ns.dns.{config.zone}"


def _ns(config: ZoneConfig) -> Record:
    return name_record(config.zone, Type.NS, _name_server(config), TTL)
