"""What the cluster's names are: a question and a snapshot of the cluster give an answer.

Pure. The records are those of the Kubernetes DNS specification (kubernetes/dns, ``docs/specification.md``, schema
1.1.0); where it is silent, they are what CoreDNS's kubernetes plugin gives. These shapes of names exist below the
zone:

1.  (the zone itself)                            SOA, NS
2.  ``dns-version``                              TXT
3.  ``ns.dns``                                   A, AAAA: where DNS is served
4.  ``dns``, ``svc``, ``pod``                    nothing, but there are names below
5.  NAMESPACE ``.svc``, NAMESPACE ``.pod``       likewise
6.  SERVICE.NAMESPACE ``.svc``                   A, AAAA, SRV of all named ports; or CNAME (ExternalName)
7.  ENDPOINT.SERVICE.NAMESPACE ``.svc``          A, AAAA
8.  _PROTOCOL.SERVICE.NAMESPACE ``.svc``         nothing, but there are names below
9.  _PORT._PROTOCOL.SERVICE.NAMESPACE ``.svc``   SRV
10. A-B-C-D.NAMESPACE ``.pod``                   A; AAAA likewise with the colons of an IPv6 address as dashes

and outside of it these:

11. D.C.B.A ``.in-addr.arpa``, NIBBLES ``.ip6.arpa``   PTR, for addresses that the cluster has
12. 6 to 9 as a pod of the configured namespace may shorten them, that is without what its search list adds
    (``NAMESPACE.svc.ZONE``, ``svc.ZONE``, ``ZONE``, in this order): ``web``, ``web.shop``, ``web.shop.svc``

A name of 1 to 10 that does not exist is NXDOMAIN: the zone is ours, and a question about it is never forwarded. A
name of 11 or 12 is answered only when the object exists, since the internet has a ``.dev`` whether or not the cluster
has a namespace of that name; but then whatever it has no records for is NODATA at once.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from tp2.cluster.catalog import Catalog, Endpoint, Port, Service
from tp2.dns.message import Rcode
from tp2.dns.records import Record, Type, address_record, name_record, soa_record, srv_record, text_record
from tp2.types import Destination, Wanted

# Seconds. CoreDNS's default: a client that keeps an answer this long follows a replaced service soon enough, and one
# that asks again costs next to nothing here.
TTL = 5
# RFC 2308: long enough to stop a client from asking in a loop, short enough that a new service is seen soon.
NEGATIVE_TTL = 5
SCHEMA_VERSION = "1.1.0"
# The specification's example: it does not change while a cluster lives.
_SCHEMA_TTL = 28800
# RFC 1034 section 3.6.2 asks resolvers to go on, and loops to be noticed; CoreDNS gives up as early.
_LONGEST_ALIAS_CHAIN = 8


@dataclass(frozen=True, slots=True)
class ZoneConfig:
    """What the user chose.

    :param zone: the cluster's domain.
    :param namespace: the one whose services have one-label names.
    :param exclude: names that are never the cluster's, each with all names below it.
    :param search: this machine's search list; see :func:`resolve_expanded`.
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
        object.__setattr__(self, "exclude", tuple(filter(None, map(_normal, self.exclude))))
        object.__setattr__(self, "search", tuple(filter(None, map(_normal, self.search))))


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer, authoritatively.

    ``wanted`` is every TCP destination that the records make a client connect to. ``chase`` is the target of a CNAME
    that lies outside of the cluster: its records, found elsewhere, belong behind ``answers``, and its response code
    replaces ``rcode``. ``reason`` says in a few words, for the log, what the name turned out to be.
    """

    rcode: Rcode
    reason: str
    answers: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    wanted: tuple[Wanted, ...] = ()
    chase: str | None = None


class _Host(NamedTuple):
    """An address that has a name: ``name`` in full, ``label`` as people shorten it, ``ports`` that it serves."""

    name: str
    label: str
    address: str
    ports: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class _Node:
    """Everything there is at one name. All named ports of *service*, if any, have an SRV record there too."""

    reason: str
    hosts: tuple[_Host, ...] = ()
    servers: tuple[tuple[_Host, int], ...] = ()
    service: Service | None = None
    alias: str = ""
    records: tuple[Record, ...] = ()


def is_cluster_name(qname: str, config: ZoneConfig) -> bool:
    """Whether only the cluster could know *qname* (lower case, no trailing dot), whatever it has at the moment."""
    return not _excluded(qname, config) and (_in_zone(qname, config.zone) or _in_zone(qname, "svc"))


def resolve(qname: str, qtype: int, catalog: Catalog, config: ZoneConfig) -> Answer | None:
    """Answer a question of class IN.

    :param qname: as :mod:`tp2.dns.message` writes names: lower case, without the trailing dot.
    :returns: None when the name is not the cluster's, so that somebody else is to be asked.
    """
    if _excluded(qname, config):
        return None
    if _in_zone(qname, config.zone):
        return _answer_in_zone(qname, qname, qtype, catalog, config)
    if qname.endswith(".arpa"):
        return _answer_reverse(qname, qtype, catalog, config)
    return _answer_short(qname, qname, qtype, catalog, config)


def resolve_expanded(qname: str, qtype: int, catalog: Catalog, config: ZoneConfig) -> Answer | None:
    """Answer a question about a name that does not exist anywhere else.

    A client with a search list asks for ``web.corp.example`` when its user says ``web``. Most then ask for ``web`` too,
    but some (systemd-resolved among them) send no name of one label, and this is all that is ever heard of it.

    :returns: None unless *qname* is a short name under an entry of the search list.
    """
    if not _excluded(qname, config):
        for domain in config.search:
            if qname.endswith(f".{domain}"):
                answer = _answer_short(qname[: -len(domain) - 1], qname, qtype, catalog, config)
                if answer is not None:
                    return answer
    return None


def _normal(name: str) -> str:
    return name.strip(".").lower()


def _excluded(qname: str, config: ZoneConfig) -> bool:
    return any(_in_zone(qname, name) for name in config.exclude)


def _in_zone(qname: str, zone: str) -> bool:
    return qname.endswith(zone) and (len(qname) == len(zone) or qname[-len(zone) - 1] == ".")


def _answer_in_zone(owner: str, qname: str, qtype: int, catalog: Catalog, config: ZoneConfig) -> Answer:
    node = _find(qname, catalog, config)
    soa = _soa(config.zone, catalog, config)
    if node is None:
        return Answer(Rcode.NXDOMAIN, "no such name in the cluster", authority=(soa,))
    return _answer_from(node, owner, qtype, catalog, config, soa)


def _answer_reverse(qname: str, qtype: int, catalog: Catalog, config: ZoneConfig) -> Answer | None:
    address = _reversed_address(qname)
    if address is None:
        return None
    service = catalog.services_by_address.get(address)
    if service is not None:
        names = [_full_name(service, config)]
    else:
        found = catalog.endpoints_by_address.get(address, ())
        names = [f"{_hostname(endpoint)}.{_full_name(owner, config)}" for owner, endpoint in found if endpoint.ready]
    if not names:
        return None
    pointers = tuple(name_record(qname, Type.PTR, name, TTL) for name in dict.fromkeys(names))
    node = _Node("address in the cluster", records=pointers)
    return _answer_from(node, qname, qtype, catalog, config, _soa(qname, catalog, config))


def _answer_short(short: str, owner: str, qtype: int, catalog: Catalog, config: ZoneConfig) -> Answer | None:
    """Answer for the name *short*, as a pod would understand it, under the name *owner*."""
    for expanded in _expansions(short, config):
        labels = expanded.split(".")
        node = _find_below_service(labels, catalog, config)
        if node is not None:
            return _answer_from(node, owner, qtype, catalog, config, _soa(owner, catalog, config))
        if len(labels) == 2 and catalog.service(labels[1], labels[0]) is not None:
            # The service exists but has nobody to send a client to. The SOA is the parent's: a name that does not
            # exist cannot be a zone.
            soa = _soa(owner.partition(".")[2], catalog, config)
            return Answer(Rcode.NXDOMAIN, f"headless service {expanded} has no ready endpoint", authority=(soa,))
    return None


def _expansions(qname: str, config: ZoneConfig) -> Iterator[str]:
    """*qname* under each entry of a pod's search list, without ``svc.ZONE``."""
    yield f"{qname}.{config.namespace}"
    yield qname
    if qname.endswith(".svc"):
        yield qname[: -len(".svc")]


def _find(qname: str, catalog: Catalog, config: ZoneConfig) -> _Node | None:
    """What is at *qname*, which is in the zone; None if the name does not exist."""
    labels = qname[: -len(config.zone)].split(".")[:-1]
    match labels:
        case []:
            return _Node("the zone", records=(_soa(config.zone, catalog, config), _ns(config)), hosts=())
        case ["dns-version"]:
            return _Node("schema version", records=(text_record(qname, Type.TXT, _SCHEMA_TTL, SCHEMA_VERSION),))
        case ["ns", "dns"]:
            return _Node("the name server", hosts=tuple(_name_server_hosts(catalog, config)))
        case ["dns"] | ["svc"] | ["pod"]:
            return _Node("has only names below it")
        case [namespace, "svc" | "pod"]:
            return _Node("a namespace") if catalog.has_namespace(namespace) else None
        case [dashed, namespace, "pod"]:
            return _find_pod(qname, dashed, namespace, catalog)
        case [*below, "svc"]:
            return _find_below_service(below, catalog, config)
        case _:
            return None


def _find_below_service(labels: list[str], catalog: Catalog, config: ZoneConfig) -> _Node | None:
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
            named = any(port.protocol.lower() == protocol[1:] for _, port in _servers(service, catalog, config))
            return _Node("has only names below it") if named else None
        case [endpoint]:
            hosts = tuple(h for h in _endpoint_hosts(service, catalog, config) if h.name.partition(".")[0] == endpoint)
            return _Node("endpoint of a service", hosts=hosts) if hosts else None
        case [port, protocol] if port.startswith("_") and protocol.startswith("_"):
            servers = tuple(
                (host, candidate.port)
                for host, candidate in _servers(service, catalog, config)
                if candidate.name == port[1:] and candidate.protocol.lower() == protocol[1:]
            )
            return _Node("port of a service", servers=servers) if servers else None
        case _:
            return None


def _find_service(service: Service, catalog: Catalog, config: ZoneConfig) -> _Node | None:
    if service.external_name:
        return _Node("ExternalName service", alias=service.external_name.rstrip(".").lower())
    if not service.headless:
        return _Node("service", hosts=_cluster_hosts(service, config), service=service)
    hosts = _endpoint_hosts(service, catalog, config)
    # Specification section 2.4.1: without a ready endpoint the name does not exist.
    return _Node("headless service", hosts=hosts, service=service) if hosts else None


def _find_pod(qname: str, dashed: str, namespace: str, catalog: Catalog) -> _Node | None:
    """Specification section 2.6: any address, in any namespace that exists."""
    if not catalog.has_namespace(namespace):
        return None
    four = dashed.count("-") == 3 and "--" not in dashed
    try:
        address = str(ipaddress.ip_address(dashed.replace("-", "." if four else ":")))
    except ValueError:
        return None
    found = catalog.endpoints_by_address.get(address, ())
    ports = tuple(port for _, endpoint in found for port in endpoint.ports)
    return _Node("pod", hosts=(_Host(qname, f"{dashed}.{namespace}", address, ports),))


def _name_server_hosts(catalog: Catalog, config: ZoneConfig) -> Iterable[_Host]:
    """Where a client can ask about the zone: tp2, else the cluster, where every distribution has a kube-dns."""
    name = _name_server(config)
    if config.name_servers:
        return (_Host(name, name, address, ()) for address in config.name_servers)
    service = catalog.service("kube-system", "kube-dns")
    hosts = _cluster_hosts(service, config) if service is not None else ()
    return (host._replace(name=name) for host in hosts)


def _cluster_hosts(service: Service, config: ZoneConfig) -> tuple[_Host, ...]:
    name = _full_name(service, config)
    label = f"{service.name}.{service.namespace}"
    return tuple(_Host(name, label, address, service.ports) for address in service.cluster_ips)


def _endpoint_hosts(service: Service, catalog: Catalog, config: ZoneConfig) -> tuple[_Host, ...]:
    name = _full_name(service, config)
    label = f"{service.name}.{service.namespace}"
    return tuple(
        _Host(
            f"{_hostname(endpoint)}.{name}",
            f"{endpoint.hostname}.{label}" if endpoint.hostname else label,
            endpoint.address,
            endpoint.ports,
        )
        for endpoint in catalog.ready_endpoints(service.namespace, service.name)
    )


def _servers(service: Service, catalog: Catalog, config: ZoneConfig) -> Iterator[tuple[_Host, Port]]:
    """Every named port with every address that serves it; an unnamed port has no SRV record."""
    hosts = _endpoint_hosts(service, catalog, config) if service.headless else _cluster_hosts(service, config)
    return ((host, port) for host in hosts for port in host.ports if port.name)


def _hostname(endpoint: Endpoint) -> str:
    """The specification's _hostname_: the endpoint's own, else a generated one, here CoreDNS's."""
    return (endpoint.hostname or endpoint.address.replace(".", "-").replace(":", "-")).lower()


def _full_name(service: Service, config: ZoneConfig) -> str:
    return f"{service.name}.{service.namespace}.svc.{config.zone}"


def _name_server(config: ZoneConfig) -> str:
    return f"ns.dns.{config.zone}"


def _ns(config: ZoneConfig) -> Record:
    return name_record(config.zone, Type.NS, _name_server(config), TTL)


def _soa(owner: str, catalog: Catalog, config: ZoneConfig) -> Record:
    serial = catalog.generation & 0xFFFFFFFF
    return soa_record(owner, _name_server(config), f"hostmaster.{config.zone}", serial, NEGATIVE_TTL)


def _answer_from(node: _Node, owner: str, qtype: int, catalog: Catalog, config: ZoneConfig, soa: Record) -> Answer:
    """The records of *node* that *qtype* asks for, under the name *owner*."""
    if node.alias:
        return _answer_alias(node, owner, qtype, catalog, config, soa)
    additional: list[_Host] = []
    if qtype == Type.ANY:
        # RFC 8482 section 4.2: something small that says so, since nobody has a use for everything.
        answers = [text_record(owner, Type.HINFO, TTL, "RFC8482", "")]
        hosts: list[_Host] = []
    elif qtype == Type.SRV:
        hosts = []
        servers = node.servers
        if node.service is not None:
            servers = tuple((host, port.port) for host, port in _servers(node.service, catalog, config))
        answers = list(_srv_records(servers, owner))
        additional = [host for host, _ in servers]
    else:
        hosts = [host for host in node.hosts if (Type.AAAA if ":" in host.address else Type.A) == qtype]
        answers = [address_record(owner, host.address, TTL) for host in hosts]
        answers += (record for record in node.records if record.type == qtype)
        if any(record.type == Type.NS for record in answers):
            additional = list(_name_server_hosts(catalog, config))
    if not answers:
        return Answer(Rcode.NOERROR, f"{node.reason}, which has no such record", authority=(soa,))
    return Answer(
        Rcode.NOERROR,
        node.reason,
        tuple(dict.fromkeys(answers)),
        additional=tuple(dict.fromkeys(address_record(host.name, host.address, TTL) for host in additional)),
        wanted=_wanted([*hosts, *additional]),
    )


def _srv_records(servers: Iterable[tuple[_Host, int]], owner: str) -> Iterator[Record]:
    targets = list(dict.fromkeys((host.name, port) for host, port in servers))
    # As CoreDNS does it: everybody the same share of a hundred.
    weight = max(1, 100 // len(targets)) if targets else 0
    return (srv_record(owner, weight, port, name, TTL) for name, port in targets)


def _answer_alias(node: _Node, owner: str, qtype: int, catalog: Catalog, config: ZoneConfig, soa: Record) -> Answer:
    """A CNAME and what it leads to, as far as the cluster knows (RFC 1034 section 3.6.2)."""
    chain = [name_record(owner, Type.CNAME, node.alias, TTL)]
    if qtype in (Type.CNAME, Type.ANY):
        return Answer(Rcode.NOERROR, node.reason, tuple(chain))
    target = node.alias
    while len(chain) <= _LONGEST_ALIAS_CHAIN:
        if not _in_zone(target, config.zone) or _excluded(target, config):
            return Answer(Rcode.NOERROR, f"{node.reason} for {target}", tuple(chain), chase=target)
        found = _find(target, catalog, config)
        if found is None or not found.alias:
            end = _answer_in_zone(target, target, qtype, catalog, config)
            return replace(end, answers=(*chain, *end.answers), reason=f"{node.reason} for {target}: {end.reason}")
        chain.append(name_record(target, Type.CNAME, found.alias, TTL))
        target = found.alias
    return Answer(Rcode.SERVFAIL, f"the chain of ExternalName services from {owner} has no end")


def _wanted(hosts: Iterable[_Host]) -> tuple[Wanted, ...]:
    found = {
        Destination(host.address, port.port): host.label
        for host in hosts
        for port in host.ports
        if port.protocol == "TCP"
    }
    return tuple(Wanted(name, destination, TTL) for destination, name in found.items())


def _reversed_address(qname: str) -> str | None:
    """The address whose name below ``in-addr.arpa`` (RFC 1035 section 3.5) or ``ip6.arpa`` (RFC 3596 section 2.5)
    this is."""
    labels = qname.split(".")
    labels.reverse()
    try:
        if labels[:2] == ["arpa", "in-addr"] and len(labels) == 6:
            return str(ipaddress.IPv4Address(".".join(labels[2:])))
        if labels[:2] == ["arpa", "ip6"] and len(labels) == 34 and all(len(nibble) == 1 for nibble in labels[2:]):
            return str(ipaddress.IPv6Address(bytes.fromhex("".join(labels[2:]))))
    except ValueError:
        return None
    return None
