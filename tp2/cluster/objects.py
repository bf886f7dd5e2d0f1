"""From the API's JSON to the catalog's words: what each field means, and what is made of a strange one.

Pure. Objects come from a cluster of any version, through any proxy, with slices written by hand or by somebody's
controller. So nothing here raises: a field that makes no sense counts as absent, an object without a usable name
or body is skipped, and a debug line says so.

Fields and defaults are those of the API reference: Service v1 core, EndpointSlice v1 discovery.k8s.io.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from tp2.cluster.catalog import Endpoint, Port, Service

logger = logging.getLogger(__name__)

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
"""The label that ties an EndpointSlice to its Service."""

TOLERATE_UNREADY_ANNOTATION = "service.alpha.kubernetes.io/tolerate-unready-endpoints"
"""What publishNotReadyAddresses was before it was a field; the DNS specification (section 2.1) still goes by it."""

_PROTOCOLS = frozenset(("TCP", "UDP", "SCTP"))


class Key(NamedTuple):
    """What tells objects of one kind apart. ``namespace`` is ``""`` for cluster-scoped kinds."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Slice:
    """An EndpointSlice: endpoints of the service named by its label, before publishNotReadyAddresses is applied."""

    service: Key
    endpoints: tuple[Endpoint, ...]


def key_of(obj: object, *, namespaced: bool) -> Key | None:
    """The namespace and name of *obj*, or None if it has none that could be used."""
    metadata = _dict(_dict(obj).get("metadata"))
    name = metadata.get("name")
    namespace = metadata.get("namespace") if namespaced else ""
    if _is_word(name) and (_is_word(namespace) or not namespaced):
        return Key(str(namespace), name)
    logger.debug("skipped an object without a usable name: metadata has %s", sorted(map(repr, metadata)))
    return None


def parse_service(key: Key, obj: object) -> Service | None:
    """A Service (core/v1), or None if its ``spec`` is unusable."""
    spec = _dict(obj).get("spec")
    if not isinstance(spec, dict):
        logger.debug("skipped service %s/%s: no spec", *key)
        return None
    external = spec.get("type") == "ExternalName"
    name = spec.get("externalName")
    addresses = [] if external else (_list(spec.get("clusterIPs")) or [spec.get("clusterIP")])
    return Service(
        namespace=key.namespace,
        name=key.name,
        cluster_ips=_addresses(addresses),
        ports=_ports(spec.get("ports")),
        headless="None" in addresses,
        external_name=name.rstrip(".") if external and isinstance(name, str) else "",
        publish_not_ready=spec.get("publishNotReadyAddresses") is True or _tolerates_unready(obj),
    )


def parse_slice(key: Key, obj: object) -> Slice | None:
    """An EndpointSlice, or None if it names no service.

    Addresses that are names (``addressType: FQDN``) are left out.
    """
    fields = _dict(obj)
    service = _dict(_dict(fields.get("metadata")).get("labels")).get(SERVICE_NAME_LABEL)
    if not _is_word(service):
        logger.debug("skipped endpoint slice %s/%s: it names no service", *key)
        return None
    ports = _ports(fields.get("ports"))
    endpoints: list[Endpoint] = []
    for entry in _list(fields.get("endpoints")):
        endpoint = _dict(entry)
        # "ready: nil should be interpreted as true" (EndpointConditions)
        ready = _dict(endpoint.get("conditions")).get("ready") is not False
        hostname = endpoint.get("hostname")
        # CoreDNS answers with every address of an endpoint; Kubernetes' own controller writes exactly one.
        endpoints.extend(
            Endpoint(address, ports, hostname if _is_word(hostname) else "", ready, _pod(endpoint))
            for address in _addresses(_list(endpoint.get("addresses")))
        )
    return Slice(Key(key.namespace, service), tuple(endpoints))


def _tolerates_unready(obj: object) -> bool:
    annotations = _dict(_dict(_dict(obj).get("metadata")).get("annotations"))
    return annotations.get(TOLERATE_UNREADY_ANNOTATION) == "true"


def _pod(endpoint: dict[object, object]) -> str:
    target = _dict(endpoint.get("targetRef"))
    namespace, name = target.get("namespace"), target.get("name")
    if target.get("kind") == "Pod" and _is_word(namespace) and _is_word(name):
        return f"{namespace}/{name}"
    return ""


def _ports(value: object) -> tuple[Port, ...]:
    ports: list[Port] = []
    for entry in _list(value):
        fields = _dict(entry)
        number, name, protocol = fields.get("port"), fields.get("name"), fields.get("protocol") or "TCP"
        # bool is an int to Python; a slice's port may be null, which names no port that could be mapped.
        if type(number) is not int or not 1 <= number <= 65535:
            continue
        if isinstance(protocol, str) and protocol in _PROTOCOLS:
            ports.append(Port(name if isinstance(name, str) else "", number, protocol))
    return tuple(ports)


def _addresses(values: list[object]) -> tuple[str, ...]:
    """The IP addresses among *values*, canonical, in their order, each once. ``None`` and ``""`` are no addresses."""
    found = (_canonical(value) for value in values if isinstance(value, str))
    return tuple(dict.fromkeys(address for address in found if address))


# A slice of 1,000 endpoints comes again whole when one of them changes: remembered, its addresses cost a tenth.
@functools.lru_cache(maxsize=65536)
def _canonical(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    # A zone (fe80::1%eth0) means something on one machine only.
    return "" if getattr(address, "scope_id", None) else str(address)


def _dict(value: object) -> dict[object, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _is_word(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value)
