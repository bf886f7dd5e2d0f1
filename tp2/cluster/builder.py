"""Keeps the catalog: lists and watch events go in, immutable snapshots come out.

Pure, and incremental. One builder lives as long as the cluster connection. It remembers what every object said and
which services and addresses a change touches; :meth:`CatalogBuilder.snapshot` works out those again and nothing
else. The dictionaries of a snapshot are copied before they are changed (one C-level copy of those that did change),
so a snapshot that was handed out stays as it was, and a burst of events between two snapshots costs one copy.

What is the same in every order of arrival: endpoints may come before their service, slices of one service in any
order, and the result depends only on the objects, not on how they came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from tp2.cluster.catalog import Catalog, Endpoint, Service
from tp2.cluster.objects import Key, Slice, key_of, parse_service, parse_slice

SERVICE = "Service"
ENDPOINT_SLICE = "EndpointSlice"
NAMESPACE = "Namespace"

_Name = TypeVar("_Name", bound=str | tuple[str, str])
_Value = TypeVar("_Value")


class CatalogBuilder:
    """The mutable side of the catalog. Not thread-safe; a kind is one of SERVICE, ENDPOINT_SLICE, NAMESPACE.

    :param listed: see :class:`Catalog`.
    """

    def __init__(self, *, listed: frozenset[str] = frozenset()) -> None:
        self._services: dict[Key, Service] = {}
        self._slices: dict[Key, Slice] = {}
        self._namespaces: set[str] = set()
        self._slices_of: dict[Key, dict[str, Slice]] = {}
        self._services_in: Counter[str] = Counter()
        # Who claims an address: several services may share a pod, and for a moment even a ClusterIP.
        self._claims: dict[str, set[Key]] = {}
        self._endpoints_at: dict[str, dict[Key, tuple[Endpoint, ...]]] = {}
        self._dirty: dict[Key, None] = {}
        self._dirty_namespaces = False
        # Generation 0 is the catalog of a cluster that nothing is known of yet: an empty cluster is something else.
        self._catalog = Catalog(generation=1, listed=listed)

    def replace(self, kind: str, namespace: str | None, items: object) -> None:
        """Take *items* as all there is of *kind* (in *namespace*, or anywhere if None): what is not in them is gone."""
        relist = self.relist(kind, namespace)
        relist.page(items)
        relist.finish()

    def relist(self, kind: str, namespace: str | None) -> Relist:
        """The same as :meth:`replace` for a list that comes in pages."""
        return Relist(self, kind, namespace)

    def apply(self, kind: str, event_type: str, obj: object) -> None:
        """Take in one watch event. *event_type* is ADDED, MODIFIED or DELETED; others (BOOKMARK) change nothing."""
        key = key_of(obj, namespaced=kind != NAMESPACE) if event_type in ("ADDED", "MODIFIED", "DELETED") else None
        if key is not None:
            self._put(kind, key, obj if event_type != "DELETED" else None)

    def snapshot(self) -> Catalog:
        """The catalog as it is now: the same object as last time if nothing changed that matters."""
        if self._dirty or self._dirty_namespaces:
            self._catalog = self._rebuilt(self._catalog)
        return self._catalog

    # What each object says

    def _put(self, kind: str, key: Key, obj: object | None) -> None:
        if kind == SERVICE:
            self._put_service(key, None if obj is None else parse_service(key, obj))
        elif kind == ENDPOINT_SLICE:
            self._put_slice(key, None if obj is None else parse_slice(key, obj))
        elif kind == NAMESPACE:
            self._put_namespace(key.name, exists=obj is not None)

    def _put_service(self, key: Key, service: Service | None) -> None:
        old = self._services.get(key)
        if service == old:
            return
        if service is None:
            del self._services[key]
        else:
            self._services[key] = service
        self._services_in[key.namespace] += (service is not None) - (old is not None)
        self._dirty_namespaces = self._dirty_namespaces or service is None or old is None
        self._dirty[key] = None

    def _put_slice(self, key: Key, new: Slice | None) -> None:
        old = self._slices.get(key)
        if new == old:
            return
        if old is not None:
            del self._slices[key]
            siblings = self._slices_of[old.service]
            del siblings[key.name]
            if not siblings:
                del self._slices_of[old.service]
            self._dirty[old.service] = None
        if new is not None:
            self._slices[key] = new
            self._slices_of.setdefault(new.service, {})[key.name] = new
            self._dirty[new.service] = None

    def _put_namespace(self, name: str, *, exists: bool) -> None:
        if exists == (name in self._namespaces):
            return
        (self._namespaces.add if exists else self._namespaces.discard)(name)
        self._dirty_namespaces = True

    def _keys(self, kind: str) -> Iterable[Key]:
        if kind == SERVICE:
            return self._services.keys()
        if kind == ENDPOINT_SLICE:
            return self._slices.keys()
        return [Key("", name) for name in self._namespaces]

    # What follows from them

    def _rebuilt(self, old: Catalog) -> Catalog:
        services: dict[tuple[str, str], Service | None] = {}
        endpoints: dict[tuple[str, str], tuple[Endpoint, ...]] = {}
        claimed: set[str] = set()
        served: set[str] = set()
        for key in self._dirty:
            service_before, service = old.services.get(key), self._services.get(key)
            endpoints_before, merged = old.endpoints.get(key, ()), self._merged(key, service)
            if service_before != service:
                services[key] = service
                claimed |= self._claim(key, service_before, service)
            if endpoints_before != merged:
                endpoints[key] = merged
            if service_before != service or endpoints_before != merged:
                served |= self._serve(key, endpoints_before, merged, moved=service_before != service)
        namespaces = self._all_namespaces() if self._dirty_namespaces else old.namespaces
        self._dirty.clear()
        self._dirty_namespaces = False
        if not services and not endpoints and namespaces == old.namespaces:
            return old
        return Catalog(
            generation=old.generation + 1,
            services=_edited(old.services, services),
            endpoints=_edited(old.endpoints, endpoints),
            namespaces=namespaces,
            listed=old.listed,
            services_by_address=_edited(
                old.services_by_address, {address: self._service_at(address) for address in claimed}
            ),
            endpoints_by_address=_edited(
                old.endpoints_by_address, {address: self._served_at(address) for address in served}
            ),
        )

    def _merged(self, key: Key, service: Service | None) -> tuple[Endpoint, ...]:
        """All endpoints of a service in the order of its slices' names, each once.

        An endpoint may stand in two slices while the controller moves it; it is ready if one of them says so.
        https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#duplicate-endpoints
        """
        if service is None:
            return ()
        merged: dict[tuple[object, ...], Endpoint] = {}
        for _, part in sorted(self._slices_of.get(key, {}).items()):
            for endpoint in part.endpoints:
                identity = (endpoint.address, endpoint.ports, endpoint.hostname, endpoint.pod)
                if endpoint.ready:
                    merged[identity] = endpoint
                elif service.publish_not_ready:
                    merged[identity] = replace(endpoint, ready=True)
                else:
                    merged.setdefault(identity, endpoint)
        return tuple(merged.values())

    def _claim(self, key: Key, before: Service | None, after: Service | None) -> set[str]:
        """Note the service's addresses, and return those whose owner has to be worked out again."""
        old, new = (set(service.cluster_ips) if service else set[str]() for service in (before, after))
        for address in old - new:
            self._claims[address].discard(key)
            if not self._claims[address]:
                del self._claims[address]
        for address in new:
            self._claims.setdefault(address, set()).add(key)
        return old | new

    def _service_at(self, address: str) -> Service | None:
        # Two claim it while one is deleted and the other created: any choice will do that is always the same.
        keys = self._claims.get(address)
        return self._services[min(keys)] if keys else None

    def _serve(self, key: Key, before: tuple[Endpoint, ...], after: tuple[Endpoint, ...], *, moved: bool) -> set[str]:
        """Note the service's endpoints by address, and return the addresses that have to be worked out again:
        all of them if the service itself changed (*moved*)."""
        grouped: dict[str, tuple[Endpoint, ...]] = {}
        for endpoint in after:
            grouped[endpoint.address] = (*grouped.get(endpoint.address, ()), endpoint)
        touched = {endpoint.address for endpoint in before} - grouped.keys()
        for address in touched:
            del self._endpoints_at[address][key]
            if not self._endpoints_at[address]:
                del self._endpoints_at[address]
        for address, endpoints in grouped.items():
            served = self._endpoints_at.setdefault(address, {})
            if moved or served.get(key) != endpoints:
                served[key] = endpoints
                touched.add(address)
        return touched

    def _served_at(self, address: str) -> tuple[tuple[Service, Endpoint], ...]:
        served = self._endpoints_at.get(address, {})
        return tuple((self._services[key], endpoint) for key in sorted(served) for endpoint in served[key])

    def _all_namespaces(self) -> frozenset[str]:
        return frozenset(self._namespaces) | {name for name, count in self._services_in.items() if count}


class Relist:
    """A list in progress. Its pages take effect as they come; :meth:`finish` removes what was in none of them.

    A list that breaks off is simply forgotten: what its pages said was true, and nothing was removed.
    """

    def __init__(self, builder: CatalogBuilder, kind: str, namespace: str | None) -> None:
        self._builder = builder
        self._kind = kind
        self._namespace = namespace
        self._seen: set[Key] = set()

    def page(self, items: object) -> None:
        """Take in the ``items`` of one page."""
        for obj in items if isinstance(items, list) else ():
            key = key_of(obj, namespaced=self._kind != NAMESPACE)
            if key is not None:
                self._seen.add(key)
                self._builder._put(self._kind, key, obj)

    def finish(self) -> None:
        """The last page was seen: what the list did not contain is gone."""
        for key in set(self._builder._keys(self._kind)) - self._seen:
            if self._namespace is None or key.namespace == self._namespace:
                self._builder._put(self._kind, key, None)


def _edited(mapping: Mapping[_Name, _Value], edits: Mapping[_Name, _Value | None]) -> Mapping[_Name, _Value]:
    """*mapping* with *edits*, as a new one if there are any; an empty value removes its key."""
    if not edits:
        return mapping
    edited = dict(mapping)
    for key, value in edits.items():
        if value:
            edited[key] = value
        else:
            edited.pop(key, None)
    return edited
