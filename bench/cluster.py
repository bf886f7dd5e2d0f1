"""A cluster of as many services as a bench wants, as a real API server would list them. Pure.

Every service has a ClusterIP, one port and three endpoints. The objects carry what an API server and ``kubectl apply``
put into them besides, since reading that is part of following a real cluster: about 1 kB each.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from tp2.sandbox.objects import Object, endpoint_slice, service

#: Namespaces, among which the services are dealt out one by one.
NAMESPACES: Final = 20

#: Ready addresses behind each service.
ENDPOINTS: Final = 3

PORT: Final = 80


class Name(NamedTuple):
    """A service of the bench: its name in full, and the address that is the right answer."""

    full: str
    address: str


def name(number: int) -> Name:
    """Return the name of service *number*, from 0."""
    return Name(f"web-{number:05}.{_namespace(number)}.svc.cluster.local", _address("10.96", number))


def objects(services: int) -> list[Object]:
    """Return the Services and EndpointSlices numbered from 0 to *services* - 1."""
    return [item for number in range(services) for item in (cluster_service(number), slice_of(number))]


def cluster_service(number: int) -> Object:
    """Return the Service *number*."""
    where, called = _namespace(number), f"web-{number:05}"
    item = service(where, called, _address("10.96", number), {"http": PORT})
    applied = {key: item[key] for key in ("apiVersion", "kind", "metadata")} | {"spec": {"selector": {"app": called}}}
    item["metadata"] |= {
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(applied) + "\n"},
        "labels": {"app.kubernetes.io/name": called, "app.kubernetes.io/part-of": where},
    }
    item["spec"] |= {"ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster"}
    return item


def slice_of(number: int) -> Object:
    """Return the EndpointSlice of Service *number*."""
    where, called = _namespace(number), f"web-{number:05}"
    first = number * ENDPOINTS
    addresses = {f"{called}-{index}": _address("10.244", first + index) for index in range(ENDPOINTS)}
    item = endpoint_slice(where, called, addresses, {"http": 8080})
    item["metadata"] |= {
        "generateName": f"{called}-",
        "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": called, "controller": True}],
    }
    item["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] = "endpointslice-controller.k8s.io"
    for endpoint in item["endpoints"]:
        endpoint["nodeName"] = f"node-{number % 7}"
    return item


def _namespace(number: int) -> str:
    return f"team-{number % NAMESPACES:02}"


def _address(network: str, number: int) -> str:
    # Without .0 and .255, as people expect of addresses.
    return f"{network}.{1 + number // 254}.{1 + number % 254}"
