"""Kubernetes objects for the sandbox, written as a user would think of them. Pure."""

from __future__ import annotations

from typing import Any

#: A Kubernetes object as JSON has it.
Object = dict[str, Any]


def namespace(name: str) -> Object:
    """Return a Namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def service(where: str, name: str, cluster_ip: str, ports: dict[str, int]) -> Object:
    """Return a Service of type ClusterIP (``None`` for a headless one); *ports* are named TCP ports."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": where, "name": name},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ipFamilies": [_family(cluster_ip)],
            "selector": {"app": name},
            "ports": [_port(key, number) for key, number in ports.items()],
        },
    }


def endpoint_slice(where: str, name: str, addresses: dict[str, str], ports: dict[str, int]) -> Object:
    """Return an EndpointSlice of service *name*: hostnames (or pod names) and their addresses, and target ports."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": where,
            "name": f"{name}-1",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": _family(next(iter(addresses.values()), "")),
        "endpoints": [
            {
                "addresses": [address],
                "hostname": hostname,
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "targetRef": {"kind": "Pod", "namespace": where, "name": hostname},
            }
            for hostname, address in addresses.items()
        ],
        "ports": [{"name": key, "port": number, "protocol": "TCP"} for key, number in ports.items()],
    }


def _family(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def _port(name: str, number: int) -> Object:
    return {"name": name, "port": number, "targetPort": number, "protocol": "TCP"}
