"""What the cluster's names are: a question and a snapshot of the cluster give an answer.

Pure. The records are those of the Kubernetes DNS specification (kubernetes/dns, ``docs/specification.md``, schema
1.1.0); where it is silent, they are what CoreDNS's kubernetes plugin gives. These shapes of names exist below the
zone (:mod:`tp2.dns.tree` finds them):

1.  (the zone itself)                            SOA, NS
2.  ``dns-version``                              TXT
3.  ``ns.dns``                                   A, AAAA: where DNS is served
4.  ``dns``, ``svc``, ``pod``                    nothing, but there are names below
5.  NAMESPACE ``.svc``, NAMESPACE ``.pod``       likewise
6.  SERVICE.NAMESPACE ``.svc``                   A, AAAA, SRV of all named ports; or CNAME (ExternalName)
7.  ENDPOINT.SERVICE.NAMESPACE ``.svc``          A, AAAA, SRV of all named ports
8.  _PROTOCOL.SERVICE.NAMESPACE ``.svc``         nothing, but there are names below
9.  _PORT._PROTOCOL.SERVICE.NAMESPACE ``.svc``   SRV
10. A-B-C-D.NAMESPACE ``.pod``                   A; AAAA likewise with the colons of an IPv6 address as dashes

and outside of it these:

11. D.C.B.A ``.in-addr.arpa``, NIBBLES ``.ip6.arpa``   PTR, for addresses that the cluster has
12. 6 to 9 as a pod of the configured namespace may shorten them, that is without what its search list adds
    (``NAMESPACE.svc.ZONE``, ``svc.ZONE``, ``ZONE``, in this order): ``web``, ``web.shop``, ``web.shop.svc``
13. 6, 7, 9 and 10 in full, with an entry of this machine's search list behind: a resolver with ``ndots:5`` asks for
    that first

A name of 1 to 10 that does not exist is NXDOMAIN: the zone is ours, and a question about it is never forwarded. A
name of 11 to 13 is answered only when the object exists, since the internet has a ``.dev`` whether or not the cluster
has a namespace of that name; but then whatever it has no records for is NODATA at once.

Where the user may list the services of some namespaces only, the others' names are SERVFAIL: they may exist.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tp2.cluster.catalog import Catalog
from tp2.dns import tree
from tp2.dns.message import Rcode
from tp2.dns.records import Record, Type, address_record, name_record, srv_record, text_record
from tp2.dns.tree import TTL, Host, Node, ZoneConfig
from tp2.types import Destination, Wanted

__all__ = ["Answer", "ZoneConfig", "could_be_short", "is_cluster_name", "resolve", "resolve_expanded"]

# RFC 1034 section 3.6.2 asks resolvers to go on, and loops to be noticed; CoreDNS gives up as early.
_LONGEST_ALIAS_CHAIN = 8


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


def is_cluster_name(qname: str, config: ZoneConfig) -> bool:
    """Whether only the cluster could know *qname* (lower case, no trailing dot), whatever it has at the moment."""
    return not _excluded(qname, config) and (_in_zone(qname, config.zone) or _in_zone(qname, "svc"))


def could_be_short(qname: str, config: ZoneConfig) -> bool:
    """Whether *qname* could be ``SERVICE`` or ``SERVICE.NAMESPACE``, an entry of the search list behind it or not.

    Names of more labels are as good as always somebody else's.
    """
    shorts = [qname, *(short for short, _ in _unexpanded(qname, config))]
    return any(short and short.count(".") < 2 and not _excluded(short, config) for short in shorts)


def resolve(qname: str, qtype: int, catalog: Catalog, config: ZoneConfig) -> Answer | None:
    """Answer a question of class IN.

    :param qname: as :mod:`tp2.dns.message` writes names: lower case, without the trailing dot.
    :returns: None when the name is not the cluster's, so that somebody else is to be asked.
    """
    if _excluded(qname, config):
        return None
    if _in_zone(qname, config.zone):
        return _answer_in_zone(qname, qtype, catalog, config)
    if qname.endswith(".arpa"):
        return _answer_reverse(qname, qtype, catalog, config)
    answer = _answer_short(qname, qname, qtype, catalog, config)
    return answer if answer is not None else _answer_expanded_full(qname, qtype, catalog, config)


def resolve_expanded(qname: str, qtype: int, catalog: Catalog, config: ZoneConfig) -> Answer | None:
    """Answer a question about a name that does not exist anywhere else.

    A client with a search list asks for ``web.corp.example`` when its user says ``web``. Most then ask for ``web`` too,
    but some (systemd-resolved among them) send no name of one label, and this is all that is ever heard of it.

    :returns: None unless *qname* is a short name under an entry of the search list, or one that tp2 may not know.
    """
    if not _excluded(qname, config):
        for short, _ in _unexpanded(qname, config):
            answer = None if _excluded(short, config) else _answer_short(short, qname, qtype, catalog, config)
            if answer is not None:
                return answer
        if qname.endswith(".svc"):
            return _answer_unseen(f"{qname}.{config.zone}", catalog, config)
    return None


def _excluded(qname: str, config: ZoneConfig) -> bool:
    return any(_in_zone(qname, name) for name in config.exclude)


def _in_zone(qname: str, zone: str) -> bool:
    return qname.endswith(zone) and (len(qname) == len(zone) or qname[-len(zone) - 1] == ".")


def _answer_in_zone(qname: str, qtype: int, catalog: Catalog, config: ZoneConfig) -> Answer:
    node = tree.find(qname, catalog, config)
    soa = tree.soa(config.zone, catalog, config)
    if node is None:
        unseen = _answer_unseen(qname, catalog, config)
        if unseen is not None:
            return unseen
        return Answer(Rcode.NXDOMAIN, "no such name in the cluster", authority=(soa,))
    return _answer_from(node, qname, qtype, catalog, config, soa)


def _answer_unseen(qname: str, catalog: Catalog, config: ZoneConfig) -> Answer | None:
    """The answer for a name in the zone that may exist where the user may not list services; None for all others."""
    match qname[: -len(config.zone)].split(".")[:-1]:
        case [*_, namespace, "svc"] | [*_, namespace, "pod"] if catalog.listed and namespace not in catalog.listed:
            seen = ", ".join(sorted(catalog.listed))
            why = f"tp2 is not allowed to list the services of namespace {namespace}, only those of {seen}"
            return Answer(Rcode.SERVFAIL, why)
    return None


def _answer_expanded_full(qname: str, qtype: int, catalog: Catalog, config: ZoneConfig) -> Answer | None:
    """Answer for a full name that has an entry of the search list behind it.

    Nobody but the cluster can have meant something by it, and whoever answers for every name below the entry's domain
    would answer for this one too, so that the resolver would not come to ask for the name itself.
    """
    for full, domain in _unexpanded(qname, config):
        if _in_zone(full, config.zone) and not _excluded(full, config):
            node = tree.find(full, catalog, config)
            if node is not None and (node.hosts or node.servers or node.alias):
                soa = tree.soa(f"{config.zone}.{domain}", catalog, config)
                return _answer_from(node, qname, qtype, catalog, config, soa)
    return None


def _answer_reverse(qname: str, qtype: int, catalog: Catalog, config: ZoneConfig) -> Answer | None:
    address = _reversed_address(qname)
    if address is None:
        return None
    service = catalog.services_by_address.get(address)
    if service is not None:
        names = [tree.full_name(service, config)]
    else:
        found = catalog.endpoints_by_address.get(address, ())
        names = [
            f"{tree.hostname(endpoint)}.{tree.full_name(owner, config)}" for owner, endpoint in found if endpoint.ready
        ]
    if not names:
        return None
    pointers = tuple(name_record(qname, Type.PTR, name, TTL) for name in dict.fromkeys(names))
    node = Node("address in the cluster", records=pointers)
    return _answer_from(node, qname, qtype, catalog, config, tree.soa(qname, catalog, config))


def _answer_short(short: str, owner: str, qtype: int, catalog: Catalog, config: ZoneConfig) -> Answer | None:
    """Answer for the name *short*, as a pod would understand it, under the name *owner*."""
    for expanded in _expansions(short, config):
        labels = expanded.split(".")
        node = tree.find_below_service(labels, catalog, config)
        if node is not None:
            return _answer_from(node, owner, qtype, catalog, config, tree.soa(owner, catalog, config))
        if len(labels) == 2 and catalog.service(labels[1], labels[0]) is not None:
            # The service exists but has nobody to send a client to. The SOA is the parent's: a name that does not
            # exist cannot be a zone.
            soa = tree.soa(owner.partition(".")[2], catalog, config)
            return Answer(Rcode.NXDOMAIN, f"headless service {expanded} has no ready endpoint", authority=(soa,))
    return None


def _expansions(qname: str, config: ZoneConfig) -> Iterator[str]:
    """*qname* under each entry of a pod's search list, without ``svc.ZONE``."""
    yield f"{qname}.{config.namespace}"
    yield qname
    if qname.endswith(".svc"):
        yield qname[: -len(".svc")]


def _unexpanded(qname: str, config: ZoneConfig) -> Iterator[tuple[str, str]]:
    """What *qname* was before a resolver put an entry of this machine's search list behind it, and the entry."""
    return ((qname[: -len(domain) - 1], domain) for domain in config.search if qname.endswith(f".{domain}"))


def _answer_from(node: Node, owner: str, qtype: int, catalog: Catalog, config: ZoneConfig, soa: Record) -> Answer:
    """The records of *node* that *qtype* asks for, under the name *owner*."""
    if node.alias:
        return _answer_alias(node, owner, qtype, catalog, config, soa)
    additional: list[Host] = []
    if qtype == Type.ANY:
        # RFC 8482 section 4.2: something small that says so, since nobody has a use for everything.
        answers = [text_record(owner, Type.HINFO, TTL, "RFC8482", "")]
        hosts: list[Host] = []
    elif qtype == Type.SRV:
        hosts = []
        servers = node.servers
        if node.service is not None:
            servers = tuple((host, port.port) for host, port in tree.servers(node.service, catalog, config))
        answers = list(_srv_records(servers, owner))
        additional = [host for host, _ in servers]
    else:
        hosts = [host for host in node.hosts if (Type.AAAA if ":" in host.address else Type.A) == qtype]
        answers = [address_record(owner, host.address, TTL) for host in hosts]
        answers += (record for record in node.records if record.type == qtype)
        if any(record.type == Type.NS for record in answers):
            additional = list(tree.name_server_hosts(catalog, config))
    if not answers:
        return Answer(Rcode.NOERROR, f"{node.reason}, which has no such record", authority=(soa,))
    return Answer(
        Rcode.NOERROR,
        node.reason,
        tuple(dict.fromkeys(answers)),
        additional=tuple(dict.fromkeys(address_record(host.name, host.address, TTL) for host in additional)),
        wanted=_wanted([*hosts, *additional]),
    )


def _srv_records(servers: Iterable[tuple[Host, int]], owner: str) -> Iterator[Record]:
    targets = list(dict.fromkeys((host.name, port) for host, port in servers))
    # As CoreDNS does it: everybody the same share of a hundred.
    weight = max(1, 100 // len(targets)) if targets else 0
    return (srv_record(owner, weight, port, name, TTL) for name, port in targets)


def _answer_alias(node: Node, owner: str, qtype: int, catalog: Catalog, config: ZoneConfig, soa: Record) -> Answer:
    """A CNAME and what it leads to, as far as the cluster knows (RFC 1034 section 3.6.2)."""
    chain = [name_record(owner, Type.CNAME, node.alias, TTL)]
    if qtype in (Type.CNAME, Type.ANY):
        return Answer(Rcode.NOERROR, node.reason, tuple(chain))
    target = node.alias
    while len(chain) <= _LONGEST_ALIAS_CHAIN:
        if not _in_zone(target, config.zone) or _excluded(target, config):
            return Answer(Rcode.NOERROR, f"{node.reason} for {target}", tuple(chain), chase=target)
        found = tree.find(target, catalog, config)
        if found is None or not found.alias:
            end = _answer_in_zone(target, qtype, catalog, config)
            return replace(end, answers=(*chain, *end.answers), reason=f"{node.reason} for {target}: {end.reason}")
        chain.append(name_record(target, Type.CNAME, found.alias, TTL))
        target = found.alias
    return Answer(Rcode.SERVFAIL, f"the chain of ExternalName services from {owner} has no end")


def _wanted(hosts: Iterable[Host]) -> tuple[Wanted, ...]:
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
