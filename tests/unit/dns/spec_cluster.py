"""A cluster with one of everything that the DNS specification speaks of, as the Kubernetes API would list it."""

from __future__ import annotations

from typing import Any

from tp2.cluster.builder import ENDPOINT_SLICE, NAMESPACE, SERVICE, CatalogBuilder
from tp2.cluster.catalog import Catalog

Object = dict[str, Any]


def service(name: str, *addresses: str, ports: list[Object] | None = None, **spec: Any) -> Object:
    namespace, _, name = name.rpartition("/")
    ports = [{"name": "http", "port": 80, "protocol": "TCP"}] if ports is None else ports
    ips = {"clusterIP": addresses[0], "clusterIPs": list(addresses)} if addresses else {}
    return {
        "metadata": {"namespace": namespace or "shop", "name": name, **spec.pop("metadata", {})},
        "spec": {"type": "ClusterIP", **ips, "ports": ports, **spec},
    }


def external(name: str, target: str) -> Object:
    return service(name, type="ExternalName", externalName=target)


def port(name: str, number: int, protocol: str = "TCP") -> Object:
    return {"name": name, "port": number, "protocol": protocol}


def endpoint(address: str, hostname: str = "", **conditions: bool | None) -> Object:
    named = {"hostname": hostname} if hostname else {}
    return {"addresses": [address], "conditions": conditions or {"ready": True, "serving": True}, **named}


def part(name: str, *endpoints: Object, ports: list[Object] | None = None, suffix: str = "a") -> Object:
    """An EndpointSlice of the service *name*."""
    namespace, _, name = name.rpartition("/")
    six = any(":" in address for one in endpoints for address in one["addresses"])
    return {
        "metadata": {
            "namespace": namespace or "shop",
            "name": f"{name}-{suffix}",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv6" if six else "IPv4",
        "endpoints": list(endpoints),
        "ports": [port("http", 8080)] if ports is None else ports,
    }


POSTGRES = [port("postgres", 5432)]
NAMESPACES = ("default", "kube-system", "shop", "bare", "svc")
SERVICES = [
    service("web", "10.96.0.10", ports=[port("http", 80), port("metrics", 9100)]),
    service("first-api", clusterIP="10.96.0.19"),
    service("dual", "10.96.0.11", "fd00:96::11"),
    service("six", "fd00:96::12"),
    service("plain", "10.96.0.13", ports=[{"port": 8080, "protocol": "TCP"}]),
    service("mixed", "10.96.0.14", ports=[port("dns", 53, "UDP"), port("dns-tcp", 53), {"name": "n", "port": 1}]),
    service("calls", "10.96.0.15", ports=[port("s1ap", 36412, "SCTP")]),
    service("outward", "10.96.0.16", type="LoadBalancer", externalIPs=["192.0.2.7"]),
    service("db", "None", ports=POSTGRES),
    service("empty", "None", ports=POSTGRES),
    service("alone", "None", ports=POSTGRES),
    service("eager", "None", publishNotReadyAddresses=True),
    service(
        "tolerant",
        "None",
        metadata={"annotations": {"service.alpha.kubernetes.io/tolerate-unready-endpoints": "true"}},
    ),
    service("portless", "None", ports=[]),
    service("unnamed", "None", ports=[{"port": 7000}]),
    service("halves", "None", ports=[port("a", 1000), port("b", 2000)]),
    service("odd", "None"),
    service("kubernetes", "10.96.0.1", ports=[port("https", 443)])
    | {"metadata": {"namespace": "default", "name": "kubernetes"}},
    service("default/cart", "10.96.0.20"),
    service("kube-system/kube-dns", "10.96.0.53", ports=[port("dns", 53, "UDP"), port("dns-tcp", 53)]),
    service("svc/svc", "10.96.0.21"),
    external("outside", "www.example.com"),
    external("outside-dot", "WWW.Example.com."),
    external("inside", "web.shop.svc.cluster.local"),
    external("inside-db", "db.shop.svc.cluster.local."),
    external("twice", "inside.shop.svc.cluster.local"),
    external("nowhere", "gone.shop.svc.cluster.local"),
    external("onto-itself", "onto-itself.shop.svc.cluster.local"),
    external("ring", "ring2.shop.svc.cluster.local"),
    external("ring2", "ring.shop.svc.cluster.local"),
    *(external(f"deep{n}", f"deep{n + 1}.shop.svc.cluster.local") for n in range(12)),
    external("deep12", "web.shop.svc.cluster.local"),
    external("shallow", "deep6.shop.svc.cluster.local"),
]
SLICES = [
    part("web", endpoint("10.244.0.20"), endpoint("10.244.0.21", "web-b"), ports=[port("http", 8080)]),
    part(
        "db",
        endpoint("10.244.0.5", "db-0"),
        endpoint("10.244.0.6", "DB-1"),
        endpoint("10.244.0.7", ready=None),
        endpoint("10.244.0.8", "db-8", ready=False, serving=True, terminating=True),
        endpoint("10.244.0.9", "db-9", ready=False),
        ports=POSTGRES,
    ),
    part("db", endpoint("fd00:244::5", "db-0"), endpoint("fd00:244::7"), ports=POSTGRES, suffix="b"),
    part("empty", endpoint("10.244.1.1", "empty-0", ready=False), ports=POSTGRES),
    part("eager", endpoint("10.244.1.2", "eager-0", ready=False)),
    part("tolerant", endpoint("10.244.1.3", "tolerant-0", ready=False)),
    part("portless", endpoint("10.244.1.4"), ports=[]),
    part("unnamed", endpoint("10.244.1.5"), ports=[{"port": 7000}]),
    part("halves", endpoint("10.244.1.6", "h-0"), endpoint("10.244.1.7", "h-1"), ports=[port("a", 1000)]),
    part("halves", endpoint("10.244.1.6", "h-0"), ports=[port("b", 2000)], suffix="b"),
    part("odd", endpoint("10.244.1.8", "x" * 64), endpoint("10.244.1.9", "a.b"), ports=[port("HTTP", 8080)]),
    part("svc/svc", endpoint("10.244.0.20")),
    part("default/kubernetes", endpoint("203.0.113.7"), ports=[port("https", 6443)]),
]


def catalog() -> Catalog:
    """What tp2 makes of all this."""
    builder = CatalogBuilder()
    builder.replace(NAMESPACE, None, [{"metadata": {"name": name}} for name in NAMESPACES])
    builder.replace(SERVICE, None, SERVICES)
    builder.replace(ENDPOINT_SLICE, None, SLICES)
    return builder.snapshot()
