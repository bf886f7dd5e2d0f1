"""What the user of the sandbox's Kubernetes API may do: everything, but for what a test forbids.

Refusals and SelfSubjectAccessReviews come from the same table, in the words that recordings of Kubernetes 1.36 have.
A subresource is a resource of its own, written ``pods/portforward``, as in a Role.
https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tp2.sandbox.kubeapi_resources import Object, StatusError, Target

USER = "system:serviceaccount:shop:sandbox"


class _Ban(NamedTuple):
    verbs: frozenset[str]
    except_in: frozenset[str]


class Rights:
    """The rights of the one user there is."""

    def __init__(self) -> None:
        self._bans: dict[str, _Ban] = {}

    def forbid(self, plural: str, *, verbs: tuple[str, ...] = (), except_in: tuple[str, ...] = ()) -> None:
        """Forbid *verbs* (all if none is named) on a resource, everywhere or except in some namespaces."""
        self._bans[plural] = _Ban(frozenset(verbs), frozenset(except_in))

    def allow(self, plural: str) -> None:
        """Take a :meth:`forbid` back."""
        self._bans.pop(plural, None)

    def may(self, verb: str, plural: str, namespace: str | None) -> bool:
        """Whether *verb* is allowed on *plural* in *namespace* (None or empty: cluster-wide)."""
        ban = self._bans.get(plural)
        return ban is None or namespace in ban.except_in or bool(ban.verbs and verb not in ban.verbs)

    def check(self, target: Target, verb: str) -> None:
        """:raises StatusError: 403, *verb* is not allowed on *target*."""
        resource = target.resource
        plural = f"{resource.plural}/{target.subresource}" if target.subresource else resource.plural
        if self.may(verb, plural, target.namespace):
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
        allowed = self.may(str(attributes.get("verb")), plural, attributes.get("namespace"))
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
