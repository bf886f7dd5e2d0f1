"""Which resources the sandbox's Kubernetes API has, how its paths name them, and how its errors do.

Pure, and without state. Another kind of object is another line of :data:`RESOURCES`: the store and the server know
nothing of a kind but what is said here, except where they say so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Object = dict[str, Any]


LOG = "sandbox.tp2/log"
"""The annotation of a pod with what its containers have printed, where nobody else says so."""


class Resource(NamedTuple):
    """A resource as the API's paths and messages have it; ``group`` is empty for core/v1."""

    kind: str
    group: str
    plural: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """``v1`` or ``GROUP/v1``."""
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def qualified(self) -> str:
        """``services`` or ``deployments.apps``, as error messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def details(self, name: str = "") -> Object:
        """The ``details`` of a Status about this resource."""
        named = {"name": name} if name else {}
        group = {"group": self.group} if self.group else {}
        return {**named, **group, "kind": self.plural}

    def bookmark(self, version: int, *, initial: bool) -> Object:
        """The object of a BOOKMARK: nothing but a version, and the kind's empty values."""
        metadata: Object = {"resourceVersion": str(version)}
        if initial:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        empty: Object = {"spec": {}, "status": {"loadBalancer": {}} if self.kind == "Service" else {}}
        if self.kind == "EndpointSlice":
            empty = {"addressType": "", "endpoints": None, "ports": None}
        return {"kind": self.kind, "apiVersion": self.api_version, "metadata": metadata, **empty}


_RBAC = "rbac.authorization.k8s.io"

NAMESPACES = Resource("Namespace", "", "namespaces", namespaced=False)
SERVICES = Resource("Service", "", "services", namespaced=True)
ENDPOINT_SLICES = Resource("EndpointSlice", "discovery.k8s.io", "endpointslices", namespaced=True)
PODS = Resource("Pod", "", "pods", namespaced=True)
CONFIG_MAPS = Resource("ConfigMap", "", "configmaps", namespaced=True)
SECRETS = Resource("Secret", "", "secrets", namespaced=True)
SERVICE_ACCOUNTS = Resource("ServiceAccount", "", "serviceaccounts", namespaced=True)
EVENTS = Resource("Event", "", "events", namespaced=True)
DEPLOYMENTS = Resource("Deployment", "apps", "deployments", namespaced=True)
NETWORK_POLICIES = Resource("NetworkPolicy", "networking.k8s.io", "networkpolicies", namespaced=True)
DISRUPTION_BUDGETS = Resource("PodDisruptionBudget", "policy", "poddisruptionbudgets", namespaced=True)
ROLES = Resource("Role", _RBAC, "roles", namespaced=True)
ROLE_BINDINGS = Resource("RoleBinding", _RBAC, "rolebindings", namespaced=True)
CLUSTER_ROLES = Resource("ClusterRole", _RBAC, "clusterroles", namespaced=False)
CLUSTER_ROLE_BINDINGS = Resource("ClusterRoleBinding", _RBAC, "clusterrolebindings", namespaced=False)

RESOURCES = (
    NAMESPACES,
    SERVICES,
    ENDPOINT_SLICES,
    PODS,
    CONFIG_MAPS,
    SECRETS,
    SERVICE_ACCOUNTS,
    EVENTS,
    DEPLOYMENTS,
    NETWORK_POLICIES,
    DISRUPTION_BUDGETS,
    ROLES,
    ROLE_BINDINGS,
    CLUSTER_ROLES,
    CLUSTER_ROLE_BINDINGS,
)
BY_KIND = {resource.kind: resource for resource in RESOURCES}


class StatusError(Exception):
    """An answer that is a Status object: ``status`` is its JSON, ``code`` the HTTP status."""

    def __init__(self, code: int, reason: str, message: str, *, details: Object | None = None) -> None:
        super().__init__(code, reason, message)
        self.code = code
        self.metadata: Object = {}
        self.status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": message,
            **({"reason": reason} if reason else {}),
            **({"details": details} if details is not None else {}),
            "code": code,
        }


class Target(NamedTuple):
    """What a path is about. ``namespace`` is None for all of them, ``name`` is empty for a collection, and
    ``subresource`` (of a named object) for the object itself."""

    resource: Resource
    namespace: str | None
    name: str
    subresource: str = ""


def target_of(path: str) -> Target:
    """Read a path of the API.

    :raises StatusError: 404, there is no such resource.
    """
    for resource in RESOURCES:
        prefix = f"/apis/{resource.group}/v1/" if resource.group else "/api/v1/"
        words = path.removeprefix(prefix).split("/") if path.startswith(prefix) else []
        match words:
            case [plural] if plural == resource.plural:
                return Target(resource, None, "")
            case [plural, name] if plural == resource.plural and not resource.namespaced:
                return Target(resource, None, name)
            case ["namespaces", namespace, plural] if plural == resource.plural and resource.namespaced:
                return Target(resource, namespace, "")
            case ["namespaces", namespace, plural, name] if plural == resource.plural and resource.namespaced:
                return Target(resource, namespace, name)
            case ["namespaces", namespace, plural, name, sub] if plural == resource.plural and resource.namespaced:
                return Target(resource, namespace, name, sub)
    raise StatusError(404, "NotFound", "the server could not find the requested resource", details={})
