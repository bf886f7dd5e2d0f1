"""The daemon's part of ``tp2 explain``: what it would do with a name, or with a connection, if it came now. Pure.

Nothing is looked up, mapped or counted for it. Out comes an object for the control socket; what it means for somebody
who waits for a page is said by :mod:`tp2.diagnosis.explain`.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from tp2.capture.targets import name_of
from tp2.cluster.catalog import Catalog, Endpoint, Port, Service
from tp2.dns.message import Rcode
from tp2.dns.records import Type
from tp2.dns.zone import Answer, ZoneConfig, resolve, resolve_expanded
from tp2.types import Destination

#: The most destinations that are told of.
MOST = 20


class Captured(Protocol):
    """What is known of captured destinations."""

    def mapping(self, destination: Destination) -> Mapping[str, Any] | None:
        """Return the row of ``tp2 mappings`` that is about *destination*, if there is one."""

    def has(self, address: str) -> bool:
        """Whether connections to an address of the cluster's come to tp2, mapped or not."""

    def left_alone(self, destination: Destination) -> str | None:
        """Return why *destination* is not captured although the cluster has it."""


def of_name(name: str, catalog: Catalog, config: ZoneConfig) -> dict[str, Any]:
    """Say who answers a question for the addresses of *name*, why, and with what.

    ``who`` is ``cluster``, ``upstream``, or ``upstream first``: then the cluster, if nobody else has the name.

    :param name: in lower case, without a trailing dot.
    """
    answers = _answers(name, catalog, config)
    excluded = next((e for e in config.exclude if name == e or name.endswith(f".{e}")), None)
    said: dict[str, Any] = {"name": name, "rcode": None, "records": [], "chase": None}
    if answers:
        return {**said, **_said(answers), "who": "cluster"}
    if excluded is not None:
        return {**said, "who": "upstream", "why": f"--exclude {excluded} says that it is not the cluster's"}
    later = _first(resolve_expanded(name, kind, catalog, config) for kind in (Type.A, Type.AAAA))
    if later:
        return {**said, **_said(later), "who": "upstream first"}
    why = "it is not below the cluster's domain, and no service is called so"
    return {**said, "who": "upstream", "why": why}


def destinations(
    host: str, port: int | None, names: Iterable[dict[str, Any]], catalog: Catalog, config: ZoneConfig
) -> list[Destination]:
    """Return where connections to *host* would go: an address, or the first of *names* that the cluster has.

    :param names: what :func:`of_name` says of those that a resolver would ask for, in its order.
    """
    try:
        return [Destination(str(ipaddress.ip_address(host)), port or 0)]
    except ValueError:
        pass
    for entry in names:
        answers = _answers(entry["name"], catalog, config) or _first(
            resolve_expanded(entry["name"], kind, catalog, config) for kind in (Type.A, Type.AAAA)
        )
        found = dict.fromkeys(wanted.destination for answer in answers for wanted in answer.wanted)
        if port is not None:
            found = dict.fromkeys(Destination(text, port) for text in _said(answers)["records"] if _is_address(text))
        if found or entry["who"] == "cluster":
            return list(found)[:MOST]
    return []


def of_destination(there: Destination, catalog: Catalog, captured: Captured) -> dict[str, Any]:
    """Say what happens to a connection to *there*, and what is behind it."""
    known = there.address in catalog.services_by_address or there.address in catalog.endpoints_by_address
    row = captured.mapping(there)
    return {
        "address": there.address,
        "port": there.port,
        "name": name_of(there, catalog),
        "known": known,
        "left_alone": captured.left_alone(there) if known or row else None,
        "captured": captured.has(there.address),
        "mapping": dict(row) if row else None,
        "service": _behind(there, catalog),
    }


def _answers(name: str, catalog: Catalog, config: ZoneConfig) -> list[Answer]:
    return _first(resolve(name, kind, catalog, config) for kind in (Type.A, Type.AAAA))


def _first(answers: Iterable[Answer | None]) -> list[Answer]:
    return [answer for answer in answers if answer is not None]


def _said(answers: list[Answer]) -> dict[str, Any]:
    best = next((answer for answer in answers if answer.answers), answers[0]) if answers else None
    return {
        "why": best.reason if best else "",
        "rcode": Rcode(best.rcode).name if best else None,
        "records": list(dict.fromkeys(text for answer in answers for text in _texts(answer))),
        "chase": best.chase if best else None,
    }


def _texts(answer: Answer) -> Iterator[str]:
    for record in answer.answers:
        value = record.parts[0]
        if record.type in (Type.A, Type.AAAA) and isinstance(value, bytes):
            yield str(ipaddress.ip_address(value))
        elif record.type == Type.CNAME:
            yield f"CNAME {value!s}"


def _is_address(text: str) -> bool:
    return not text.startswith("CNAME ")


def near(name: str, catalog: Catalog, config: ZoneConfig) -> str:
    """Return services whose names are nearly *name*, in words: ``web.shop and web.blog``; empty if there are none."""
    short = name.removesuffix(f".{config.zone}").removesuffix(".svc")
    known = [f"{service}.{namespace}" for namespace, service in catalog.services]
    return " and ".join(difflib.get_close_matches(short, known, 2, 0.7))


def _behind(there: Destination, catalog: Catalog) -> dict[str, Any] | None:
    service = catalog.services_by_address.get(there.address)
    if service is not None:
        endpoints = catalog.endpoints.get((service.namespace, service.name), ())
        named = next((p for p in service.ports if p.port == there.port and p.protocol == "TCP"), None)
        return _described(service, endpoints, named)
    for owner, endpoint in catalog.endpoints_by_address.get(there.address, ()):
        named = next((p for p in endpoint.ports if p.port == there.port), None)
        return {**_described(owner, (endpoint,), named), "headless": True}
    return None


def _described(service: Service, endpoints: tuple[Endpoint, ...], port: Port | None) -> dict[str, Any]:
    ready = [endpoint for endpoint in endpoints if endpoint.ready]
    # A service's port leads to the endpoints' port of the same name.
    serving = [e for e in ready if port is None or any(p.name == port.name for p in e.ports)]
    return {
        "namespace": service.namespace,
        "name": service.name,
        "headless": service.headless,
        "has_port": port is not None,
        "ports": sorted({p.port for p in service.ports if p.protocol == "TCP"}),
        "endpoints": len(endpoints),
        "ready": len(ready),
        "serving": len(serving),
        "pods": [endpoint.pod or endpoint.address for endpoint in serving[:5]],
    }
