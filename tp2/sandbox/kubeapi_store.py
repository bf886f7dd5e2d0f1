"""What the sandbox's Kubernetes API knows: objects, versions, and the history that watches replay.

Pure but for uids and timestamps. It behaves as recordings of Kubernetes 1.36 do where a client can tell: one growing
resourceVersion for the whole cluster, pages of a list that are all of one moment, an event for every change and none
for a replacement that changes nothing, "too old" for versions that were compacted, errors with the API's own words.
It validates next to nothing, and has no controllers: EndpointSlices are whatever they are set to.
"""

from __future__ import annotations

import base64
import copy
import ipaddress
import json
import re
import uuid
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tp2.sandbox.kubeapi_resources import BY_KIND, NAMESPACES, RESOURCES, Object, Resource, StatusError
from tp2.sandbox.kubeapi_selectors import Selector

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_PATH_SEGMENT = re.compile(r"[^/%]+")
_EVERYTHING = Selector()
_SNAPSHOTS = 16
_HISTORY = 10_000
_SERVICE_NETWORK = ipaddress.ip_network("10.96.0.0/16")
_FIRST_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")


class Event(NamedTuple):
    """One change: ``type`` is ADDED, MODIFIED or DELETED, ``object`` as it was then, with the change's version.

    ``before`` is what was modified, None otherwise."""

    version: int
    resource: Resource
    type: str
    object: Object
    before: Object | None = None

    def seen_through(self, selector: Selector) -> Event | None:
        """What it is to a watch that selects: an object that begins to match is added, one that no longer does is
        deleted, with its old labels and the new version. None if it is nothing."""
        matches = selector.matches(self.object)
        if self.before is None or matches == selector.matches(self.before):
            return self if matches else None
        if matches:
            return self._replace(type="ADDED")
        metadata = {**self.before["metadata"], "resourceVersion": self.object["metadata"]["resourceVersion"]}
        return self._replace(type="DELETED", object={**self.before, "metadata": metadata})


class Store:
    """The objects of one cluster. What it returns belongs to it: do not change it.

    :param first_version: the resourceVersion to begin with; a server that starts again without its objects should
        begin higher than it ended, so that versions of its earlier life are too old and not of the future.
    """

    def __init__(self, first_version: int = 1) -> None:
        self.version = first_version
        self.listeners: set[Callable[[], None]] = set()
        self._objects: dict[Resource, dict[tuple[str, str], Object]] = {resource: {} for resource in RESOURCES}
        self._history: list[Event] = []
        self._compacted = first_version
        self._snapshots: OrderedDict[tuple[Resource, str | None, Selector, int], list[Object]] = OrderedDict()
        self._addresses: set[str] = set()
        self._free = (str(address) for address in _SERVICE_NETWORK.hosts())
        for name in _FIRST_NAMESPACES:
            self.create(NAMESPACES, "", {"metadata": {"name": name}})

    # Reading

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """:raises StatusError: 404."""
        try:
            return self._objects[resource][namespace, name]
        except KeyError:
            raise _not_found(resource, name) from None

    def has(self, resource: Resource, namespace: str, name: str) -> bool:
        """Whether there is such an object."""
        return (namespace, name) in self._objects[resource]

    def objects(self, resource: Resource, namespace: str | None, selector: Selector = _EVERYTHING) -> list[Object]:
        """All selected objects of a resource (in one namespace, or anywhere), by namespace and name."""
        found = self._objects[resource]
        inside = (found[key] for key in sorted(found) if namespace is None or key[0] == namespace)
        return [obj for obj in inside if selector.matches(obj)]

    def page(
        self, resource: Resource, namespace: str | None, limit: int, token: str, selector: Selector = _EVERYTHING
    ) -> Object:
        """One page of a list: *limit* items (0 for all) from where *token* of the page before says (or ``""``).

        :raises StatusError: 400 for a token that is none, 410 if its list is no longer kept.
        """
        if token:
            version, start = _read_token(token)
            items = self._snapshots.get((resource, namespace, selector, version))
            if items is None:
                raise _continue_expired()
        else:
            version, start, items = self.version, "", self.objects(resource, namespace, selector)
            self._snapshots[resource, namespace, selector, version] = items
            while len(self._snapshots) > _SNAPSHOTS:
                self._snapshots.popitem(last=False)
        begin = bisect_right(items, start, key=_place) if start else 0
        end = begin + limit if limit else len(items)
        metadata: Object = {"resourceVersion": str(version)}
        if end < len(items):
            metadata["continue"] = _token(version, _place(items[end - 1]))
            metadata["remainingItemCount"] = len(items) - end
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": metadata,
            "items": [_without_kind(item) for item in items[begin:end]],
        }

    def since(
        self, version: int, resource: Resource, namespace: str | None, selector: Selector = _EVERYTHING
    ) -> Iterator[Event]:
        """The changes after *version*, as a watch that selects sees them.

        :raises StatusError: 410, the history does not reach back that far.
        """
        if version < self._compacted:
            raise StatusError(410, "Expired", f"too old resource version: {version} ({self._compacted})")
        begin = bisect_right(self._history, version, key=lambda event: event.version)
        for event in self._history[begin:]:
            inside = namespace is None or event.object["metadata"].get("namespace") == namespace
            seen = event.seen_through(selector) if event.resource == resource and inside else None
            if seen is not None:
                yield seen

    # Changing

    def create(self, resource: Resource, namespace: str, obj: Object) -> Object:
        """:raises StatusError: 404 unknown namespace, 409 already exists, 422 invalid name."""
        name = _valid_name(resource, obj)
        if resource.namespaced:
            self.get(NAMESPACES, "", namespace)
        if (namespace, name) in self._objects[resource]:
            message = f'{resource.qualified} "{name}" already exists'
            raise StatusError(409, "AlreadyExists", message, details=resource.details(name))
        metadata = {
            "uid": str(uuid.uuid4()),
            "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return self._store("ADDED", resource, namespace, name, obj, metadata)

    def replace(self, resource: Resource, namespace: str, name: str, obj: Object) -> Object:
        """:raises StatusError: 404, or 409 if *obj* has a resourceVersion that is not the current one."""
        old = self.get(resource, namespace, name)
        given = (obj.get("metadata") or {}).get("resourceVersion")
        if given and given != old["metadata"]["resourceVersion"]:
            raise StatusError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {resource.qualified} "{name}": the object has been modified; '
                "please apply your changes to the latest version and try again",
                details=resource.details(name),
            )
        kept = {key: old["metadata"][key] for key in ("uid", "creationTimestamp")}
        if resource.kind == "Service" and obj.get("spec", {}).get("type") != "ExternalName":
            addresses = {key: old["spec"][key] for key in ("clusterIP", "clusterIPs") if key in old["spec"]}
            obj = {**obj, "spec": {**addresses, **obj.get("spec", {})}}
        if "status" in old:
            obj = {"status": old["status"], **obj}
        return self._store("MODIFIED", resource, namespace, name, obj, kept, old)

    def merge(self, resource: Resource, namespace: str, name: str, patch: Object) -> Object:
        """Merge *patch* into the object as RFC 7396 does: as a merge patch, and as server-side apply looks to its only
        client (who owns which field is not kept, so nothing is a conflict, and lists are replaced as a whole).

        :raises StatusError: as :meth:`replace` does.
        """
        return self.replace(resource, namespace, name, _merged(self.get(resource, namespace, name), patch))

    def delete(self, resource: Resource, namespace: str, name: str) -> Object:
        """:raises StatusError: 404. Deleting a namespace deletes what is in it."""
        old = self.get(resource, namespace, name)
        if resource == NAMESPACES:
            for other in RESOURCES:
                for key in [key for key in self._objects[other] if key[0] == name]:
                    self.delete(other, *key)
        del self._objects[resource][namespace, name]
        self._addresses.difference_update(old.get("spec", {}).get("clusterIPs", ()))
        gone = copy.deepcopy(old)
        gone["metadata"]["resourceVersion"] = str(self.version + 1)
        self._record("DELETED", resource, gone)
        return gone

    def load(self, document: Any) -> None:
        """Create all objects of a JSON list, or of a List object; namespaces that they need are created too.

        :raises StatusError: one of them cannot be created.
        """
        items = document["items"] if isinstance(document, dict) else document
        list_kind = document.get("kind", "").removesuffix("List") if isinstance(document, dict) else ""
        # Namespaces go first, wherever in the file they stand.
        for item in sorted(items, key=lambda item: item.get("kind", list_kind) != "Namespace"):
            resource = BY_KIND.get(item.get("kind", list_kind))
            if resource is None:
                raise StatusError(400, "BadRequest", f"the sandbox has no {item.get('kind')!r}")
            namespace = item["metadata"].get("namespace", "default") if resource.namespaced else ""
            if namespace and ("", namespace) not in self._objects[NAMESPACES]:
                self.create(NAMESPACES, "", {"metadata": {"name": namespace}})
            if ("", item["metadata"]["name"]) not in self._objects[resource]:
                self.create(resource, namespace, item)

    def compact(self) -> None:
        """Forget the history and all lists in progress, as etcd's compaction and a restart do."""
        self._compacted = self.version
        self._history.clear()
        self._snapshots.clear()

    def _store(
        self,
        event: str,
        resource: Resource,
        namespace: str,
        name: str,
        obj: Object,
        metadata: Object,
        old: Object | None = None,
    ) -> Object:
        new = copy.deepcopy(obj)
        new = {"kind": resource.kind, "apiVersion": resource.api_version, **new}
        new["metadata"] = {**new["metadata"], "name": name, **metadata}
        if resource.namespaced:
            new["metadata"]["namespace"] = namespace
        if resource.kind == "Service":
            self._complete_service(new)
        elif resource == NAMESPACES:
            new.setdefault("spec", {"finalizers": ["kubernetes"]})
            new.setdefault("status", {"phase": "Active"})
        elif resource.kind == "Pod":
            new.setdefault("status", {"phase": "Pending"})
        elif resource.kind == "Deployment":
            generation = old["metadata"]["generation"] if old is not None else 0
            changed = old is None or new.get("spec") != old.get("spec")
            new["metadata"]["generation"] = generation + changed
            new.setdefault("status", {})
        if old is not None:
            new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
            if new == old:
                return old
        new["metadata"]["resourceVersion"] = str(self.version + 1)
        self._objects[resource][namespace, name] = new
        self._record(event, resource, new, old)
        return new

    def _record(self, event: str, resource: Resource, obj: Object, before: Object | None = None) -> None:
        self.version += 1
        self._history.append(Event(self.version, resource, event, obj, before))
        if len(self._history) > 2 * _HISTORY:
            self._compacted = self._history[-_HISTORY - 1].version
            del self._history[:-_HISTORY]
        for listener in tuple(self.listeners):
            listener()

    def _complete_service(self, service: Object) -> None:
        spec: Object = service.setdefault("spec", {})
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        service.setdefault("status", {"loadBalancer": {}})
        for port in spec.get("ports") or ():
            port.setdefault("protocol", "TCP")
            port.setdefault("targetPort", port.get("port"))
        if spec["type"] == "ExternalName":
            return
        if not spec.get("clusterIP"):
            spec["clusterIP"] = next(address for address in self._free if address not in self._addresses)
        spec.setdefault("clusterIPs", [spec["clusterIP"]])
        self._addresses.update(spec["clusterIPs"])


def _place(obj: Object) -> str:
    metadata = obj["metadata"]
    return f"{metadata.get('namespace', '')}\0{metadata['name']}"


def _token(version: int, place: str) -> str:
    word = json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": place})
    return base64.urlsafe_b64encode(word.encode()).decode().rstrip("=")


def _read_token(token: str) -> tuple[int, str]:
    try:
        word = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return int(word["rv"]), str(word["start"])
    except (ValueError, KeyError, TypeError) as error:
        raise StatusError(400, "BadRequest", f"invalid continue token: continue key is not valid: {error}") from error


def _continue_expired() -> StatusError:
    return StatusError(
        410,
        "Expired",
        "The provided continue parameter is too old to display a consistent list result. You can start a new list "
        "without the continue parameter.",
    )


def _not_found(resource: Resource, name: str) -> StatusError:
    return StatusError(404, "NotFound", f'{resource.qualified} "{name}" not found', details=resource.details(name))


def _valid_name(resource: Resource, obj: Object) -> str:
    metadata = obj.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    pattern = _LABEL if resource.kind in ("Service", "Namespace") else _PATH_SEGMENT
    if isinstance(name, str) and pattern.fullmatch(name) and len(name) <= 253:
        return name
    details = {"name": name, "kind": resource.kind}
    message = f'{resource.kind} "{name}" is invalid: metadata.name: Invalid value: "{name}"'
    raise StatusError(422, "Invalid", message, details=details)


def _merged(old: Object, patch: Object) -> Object:
    merged = {key: value for key, value in old.items() if key not in patch}
    for key, value in patch.items():
        if isinstance(value, dict):
            below = old.get(key)
            merged[key] = _merged(below if isinstance(below, dict) else {}, value)
        elif value is not None:
            merged[key] = value
    return merged


def _without_kind(obj: Object) -> Object:
    # Items of a LIST carry neither; objects of a watch do.
    return {key: value for key, value in obj.items() if key not in ("kind", "apiVersion")}
