"""What a destination is called, and what a user means by a name: for ``tp2 map`` and the like. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from tp2.cluster.catalog import Catalog
from tp2.dns.message import Rcode
from tp2.dns.records import Type
from tp2.dns.zone import Answer, ZoneConfig, resolve
from tp2.errors import UsageError
from tp2.settings import parse_address, parse_target
from tp2.types import Destination, Wanted


def name_of(destination: Destination, catalog: Catalog) -> str:
    """Return what people call *destination*: ``web.shop``, ``db-0.db.shop``; ``""`` if it has no name."""
    service = catalog.services_by_address.get(destination.address)
    if service is not None:
        return f"{service.name}.{service.namespace}"
    for owner, endpoint in catalog.endpoints_by_address.get(destination.address, ()):
        label = f"{owner.name}.{owner.namespace}"
        return f"{endpoint.hostname}.{label}" if endpoint.hostname else label
    return ""


def targets(text: str, catalog: Catalog, config: ZoneConfig) -> list[Wanted]:
    """Return the destinations that a user means by ``IP:PORT`` or ``NAME[:PORT]``: without a port, all TCP ports.

    :raises UsageError: it is neither, or the cluster has no such name, or nothing to connect to behind it.
    """
    host, port = parse_target(text)
    try:
        address = parse_address(host)
    except UsageError:
        return list(_of_name(host, port, catalog, config))
    assert port is not None
    destination = Destination(address, port)
    return [Wanted(name_of(destination, catalog) or address, destination, 0)]


def _of_name(name: str, port: int | None, catalog: Catalog, config: ZoneConfig) -> Iterator[Wanted]:
    answers = [a for kind in (Type.A, Type.AAAA) if (a := resolve(name, kind, catalog, config)) is not None]
    if not answers:
        raise UsageError(
            f"cannot map {name}",
            "the cluster has no such name",
            "write it as SERVICE.NAMESPACE, or give an address as IP:PORT",
        )
    if any(answer.chase is not None for answer in answers):
        raise UsageError(
            f"cannot map {name}", f"it is {answers[0].reason}, outside of the cluster", "connect to that directly"
        )
    failed = next((answer for answer in answers if answer.rcode != Rcode.NOERROR), None)
    if failed is not None:
        raise UsageError(f"cannot map {name}", failed.reason, "see 'kubectl get services' for what there is")
    # Nobody has been given an answer, so nobody has one in a cache.
    found = {item.destination: item._replace(ttl=0) for answer in answers for item in answer.wanted}
    if port is not None:
        labels = {item.destination.address: item.name for item in found.values()}
        addresses = [address for answer in answers for address in _addresses(answer)]
        found = {
            there: Wanted(labels.get(there.address, name), there, 0)
            for there in (Destination(address, port) for address in addresses)
        }
    if not found:
        raise UsageError(f"cannot map {name}", "it has no TCP port", f"name the port: {name}:PORT")
    yield from found.values()


def _addresses(answer: Answer) -> Iterator[str]:
    for record in answer.answers:
        if record.type in (Type.A, Type.AAAA):
            yield str(ipaddress.ip_address(record.parts[0]))
