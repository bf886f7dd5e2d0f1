"""What the user of the sandbox's Kubernetes API may do: everything, or what a role of its grants, but for what a test
forbids.

Refusals and SelfSubjectAccessReviews come from the same table, in the words that recordings of Kubernetes 1.36 have.
A subresource is a resource of its own, written ``pods/portforward``, as in a Role.
https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tp2.sandbox.kubeapi_resources import CLUSTER_ROLES, ROLES, Object, Resource, StatusError, Target

USER = "system:serviceaccount:shop:sandbox"


class _Ban(NamedTuple):
    verbs: frozenset[str]
    except_in: frozenset[str]


class Rights:
    """The rights of the one user there is.

    :param role: the ClusterRole, and the Roles, that the user is bound to: those of this name. Empty for everything.
    :param objects: gives the objects of a kind that there are.
    """

    def __init__(self, role: str = "", objects: Callable[[Resource], list[Object]] = lambda resource: []) -> None:
        self._role = role
        self._objects = objects
        self._bans: dict[str, _Ban] = {}

    def forbid(self, plural: str, *, verbs: tuple[str, ...] = (), except_in: tuple[str, ...] = ()) -> None:
        """Forbid *verbs* (all if none is named) on a resource, everywhere or except in some namespaces."""
        self._bans[plural] = _Ban(frozenset(verbs), frozenset(except_in))

    def allow(self, plural: str) -> None:
        """Take a :meth:`forbid` back."""
        self._bans.pop(plural, None)

    def may(self, verb: str, plural: str, group: str, namespace: str | None) -> bool:
        """Whether *verb* is allowed on *plural* of *group* in *namespace* (None or empty: cluster-wide)."""
        ban = self._bans.get(plural)
        forbidden = ban is not None and namespace not in ban.except_in and not (ban.verbs and verb not in ban.verbs)
        return not forbidden and (not self._role or self._granted(verb, plural, group, namespace))

    def _granted(self, verb: str, plural: str, group: str, namespace: str | None) -> bool:
        roles = [*self._objects(CLUSTER_ROLES), *(self._objects(ROLES) if namespace else ())]
        return any(
            verb in rule["verbs"] and plural in rule["resources"] and group in rule["apiGroups"]
            for role in roles
            if role["metadata"]["name"] == self._role and role["metadata"].get("namespace", namespace) == namespace
            for rule in role["rules"]
        )

    def check(self, target: Target, verb: str) -> None:
        """:raises StatusError: 403, *verb* is not allowed on *target*."""
        resource = target.resource
        plural = f"{resource.plural}/{target.subresource}" if target.subresource else resource.plural
        if self.may(verb, plural, resource.group, target.namespace):
            return
        scope = f'in the namespace "{target.namespace}"' if target.namespace else "at the cluster scope"
        raise forbidden(
            target, f'User "{USER}" cannot {verb} resource "{plural}" in API group "{resource.group}" {scope}'
        )

    def review(self, review: Any) -> Object:
        """Answer a SelfSubjectAccessReview.

        :raises StatusError: 422, it does not ask about a resource.
        """
        spec = review.get("spec") if isinstance(review, dict) else None
        attributes = spec.get("resourceAttributes") if isinstance(spec, dict) else None
        if not isinstance(attributes, dict):
            raise StatusError(
                422,
                "Invalid",
                '.authorization.k8s.io "" is invalid: spec.resourceAttributes: Invalid value: null: exactly one of '
                "nonResourceAttributes or resourceAttributes must be specified",
                details={"group": "authorization.k8s.io"},
            )
        plural = "/".join(filter(None, (attributes.get("resource"), attributes.get("subresource"))))
        group = str(attributes.get("group") or "")
        allowed = self.may(str(attributes.get("verb")), plural, group, attributes.get("namespace"))
        return {
            "kind": "SelfSubjectAccessReview",
            "apiVersion": "authorization.k8s.io/v1",
            "metadata": {},
            "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
            "status": {"allowed": allowed, **({"reason": "RBAC: allowed by the sandbox"} if allowed else {})},
        }


def forbidden(target: Target, why: str) -> StatusError:
    """A 403 about *target*."""
    named = f' "{target.name}"' if target.name else ""
    message = f"{target.resource.qualified}{named} is forbidden: {why}"
    return StatusError(403, "Forbidden", message, details=target.resource.details(target.name))
