"""What the cluster has, as an immutable snapshot: the words in which the rest of tp2 speaks of Kubernetes.

Pure. :mod:`tp2.cluster.builder` makes a new snapshot for every change and never touches one that it handed out,
so a reader may keep a :class:`Catalog` for as long as it likes and sees one moment of the cluster in it. DNS
answers from it (:mod:`tp2.dns.zone`); nothing in here knows that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a Service (what clients of its ClusterIP connect to) or of an EndpointSlice (what clients of a
    headless Service connect to). ``name`` is ``""`` for an unnamed port; ``protocol`` is TCP, UDP or SCTP."""

    name: str
    port: int
    protocol: str = "TCP"


@dataclass(frozen=True, slots=True)
class Service:
    """A Service (core/v1). ``cluster_ips`` is empty for headless and ExternalName services.

    ``cluster_ips`` keeps the order of the API, so the first is of the service's preferred family.
    ``external_name`` is the CNAME target of an ExternalName service, without a trailing dot, else ``""``.
    """

    namespace: str
    name: str
    cluster_ips: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    headless: bool = False
    external_name: str = ""
    publish_not_ready: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of an EndpointSlice (discovery.k8s.io/v1) with the ports of its slice.

    ``hostname`` is the endpoint's hostname or ``""``; ``ready`` already takes ``conditions`` and
    publishNotReadyAddresses into account; ``pod`` is ``namespace/name`` of the pod behind it, or ``""``.
    """

    address: str
    ports: tuple[Port, ...] = ()
    hostname: str = ""
    ready: bool = True
    pod: str = ""


@dataclass(frozen=True, slots=True)
class Catalog:
    """A snapshot. ``generation`` grows with every change, so readers may cache against it; it is 0 as long as
    nothing is known.

    Services and endpoints are found by ``(namespace, name)`` of the service. Endpoints of all slices of a service
    stand together, without duplicates; those of slices whose service is unknown are left out, and a service
    without any has no entry. All addresses are in the form of :func:`str` of :mod:`ipaddress`.

    ``listed`` has the only namespaces whose services the user may list; it is empty if that is all of them.
    """

    generation: int = 0
    services: Mapping[tuple[str, str], Service] = field(default_factory=dict)
    endpoints: Mapping[tuple[str, str], tuple[Endpoint, ...]] = field(default_factory=dict)
    namespaces: frozenset[str] = frozenset()
    services_by_address: Mapping[str, Service] = field(default_factory=dict)
    endpoints_by_address: Mapping[str, tuple[tuple[Service, Endpoint], ...]] = field(default_factory=dict)
    listed: frozenset[str] = frozenset()

    def service(self, namespace: str, name: str) -> Service | None:
        """The service of that name, or None. Names are lower case, as Kubernetes keeps them."""
        return self.services.get((namespace, name))

    def ready_endpoints(self, namespace: str, name: str) -> tuple[Endpoint, ...]:
        """The endpoints of a service that clients should be sent to; empty if there are none, or no such service."""
        return tuple(e for e in self.endpoints.get((namespace, name), ()) if e.ready)

    def has_namespace(self, namespace: str) -> bool:
        """Whether the namespace exists, as far as tp2 may see: namespaces that may not be listed are known by
        their services."""
        return namespace in self.namespaces
