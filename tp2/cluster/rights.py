"""Every right that a user of tp2 needs in the cluster, each with what it is for: the one place to read them.

Pure. The roles in the manifest (:mod:`tp2.cluster.manifest`) are made from these tables, and the check before a
connection (:func:`tp2.cluster.discover.missing_rights`) asks for the same ones, so the two cannot drift apart.
A right is written as RBAC writes it: verb, resource, API group, scope.

https://kubernetes.io/docs/reference/access-authn-authz/rbac/
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple


class Right(NamedTuple):
    """One verb on one resource. ``resource`` may be a subresource (``pods/log``), ``group`` is ``""`` for core/v1."""

    verb: str
    resource: str
    group: str = ""
    purpose: str = ""

    def in_words(self, namespace: str | None) -> str:
        """As the API server puts it when it refuses: ``list services in the namespace "shop"``."""
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {resource} {scope_in_words(namespace)}"


def scope_in_words(namespace: str | None) -> str:
    """A namespace, or the whole cluster, in RBAC's words."""
    return "at the cluster scope" if namespace is None else f'in the namespace "{namespace}"'


_DISCOVERY: Final = "discovery.k8s.io"

CATALOG_RIGHTS: Final = (
    Right("list", "services", "", "the names and addresses that are answered"),
    Right("watch", "services", "", "their changes"),
    Right("list", "endpointslices", _DISCOVERY, "the pods behind headless services"),
    Right("watch", "endpointslices", _DISCOVERY, "their changes"),
)
"""What is followed for the names, over the whole cluster or in some namespaces."""

NAMESPACE_RIGHTS: Final = (
    Right("list", "namespaces", "", "a namespace without services is known, too; tp2 works without"),
    Right("watch", "namespaces", "", "their changes; tp2 works without"),
)
"""What tp2 makes use of at the cluster scope if it may, and does without otherwise."""

ENDPOINT_RIGHTS: Final = (
    Right("list", "pods", "", "the endpoint's pods"),
    Right("watch", "pods", "", "to know at once when they are replaced"),
    Right("get", "pods/log", "", "the public host key that a pod made and printed"),
    Right("get", "pods/portforward", "", "SSH through the API server: the WebSocket's handshake is a GET"),
    Right("create", "pods/portforward", "", "the same: the server checks both verbs"),
    Right("get", "services", "", "the address of a load balancer, if the endpoint has one"),
    Right("get", "deployments", "apps", "why there is no pod"),
)
"""What is used in the namespace of the SSH endpoint."""


def rules(rights: Iterable[Right]) -> list[dict[str, Any]]:
    """The rules of a Role or ClusterRole (rbac.authorization.k8s.io/v1) that grant exactly *rights*, by resource."""
    verbs: dict[tuple[str, str], list[str]] = {}
    for right in rights:
        verbs.setdefault((right.group, right.resource), []).append(right.verb)
    return [
        {"apiGroups": [group], "resources": [resource], "verbs": allowed}
        for (group, resource), allowed in verbs.items()
    ]


def table(rights: Iterable[Right]) -> str:
    """One line per right: verb, resource, what for."""
    return "\n".join(f"{right.verb:<7} {right.resource:<17} {right.purpose}" for right in rights)
