"""A strict check of Kubernetes objects against the API reference, for the kinds and fields that the manifest uses.

Stricter than the API server: a field that is not in the schema is an error, also where the server would drop it in
silence, and so is a field of the API that is merely not known here. Sources: the API reference of Kubernetes 1.36
(https://kubernetes.io/docs/reference/kubernetes-api/) and the server's validation of names, labels and quantities.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

Check = Callable[[Any, str], Iterator[str]]
"""Takes a value and its path; yields what is wrong with it."""

_DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_DNS_SUBDOMAIN = rf"{_DNS_LABEL}(\.{_DNS_LABEL})*"
_QUALIFIED = rf"({_DNS_SUBDOMAIN}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?"


def text(pattern: str = r"[\s\S]+") -> Check:
    """A string that matches *pattern* as a whole."""

    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, str):
            yield f"{path}: {value!r} is no string"
        elif not re.fullmatch(pattern, value):
            yield f"{path}: {value!r} does not match {pattern}"

    return check


def number(low: int, high: int) -> Check:
    """An integer from *low* to *high*."""

    def check(value: Any, path: str) -> Iterator[str]:
        if type(value) is not int or not low <= value <= high:
            yield f"{path}: {value!r} is no integer from {low} to {high}"

    return check


def boolean(value: Any, path: str) -> Iterator[str]:
    """true or false."""
    if type(value) is not bool:
        yield f"{path}: {value!r} is no boolean"


def one_of(*checks: Check) -> Check:
    """Any of several forms."""

    def check(value: Any, path: str) -> Iterator[str]:
        if all(any(form(value, path)) for form in checks):
            yield f"{path}: {value!r} has none of the allowed forms"

    return check


def words(*allowed: str) -> Check:
    """One of some strings."""
    return text("|".join(map(re.escape, allowed)))


def list_of(item: Check, *, least: int = 1, unique: str = "") -> Check:
    """A list; *unique* is a key that no two items may share."""

    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, list) or len(value) < least:
            yield f"{path}: {value!r} is no list of at least {least}"
            return
        for index, entry in enumerate(value):
            yield from item(entry, f"{path}[{index}]")
        if unique and len({entry.get(unique) for entry in value}) < len(value):
            yield f"{path}: two items have the same {unique}"

    return check


def map_of(key: str, item: Check) -> Check:
    """A mapping with keys of a form."""

    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is no mapping"
            return
        for name, entry in value.items():
            yield from text(key)(name, f"{path} key")
            yield from item(entry, f"{path}.{name}")

    return check


def obj(required: dict[str, Check], optional: dict[str, Check] | None = None) -> Check:
    """A mapping with exactly these fields."""
    known = {**required, **(optional or {})}

    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is no mapping"
            return
        for name in required:
            if name not in value:
                yield f"{path}: {name} is missing"
        for name, entry in value.items():
            if name in known:
                yield from known[name](entry, f"{path}.{name}")
            else:
                yield f"{path}: unknown field {name!r}"

    return check


_labels = map_of(_QUALIFIED, text(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"))
_annotations = map_of(_QUALIFIED, text(r"[\s\S]*"))
_label = text(_DNS_LABEL)
_port_name = text(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_port = number(1, 65535)
_path = text(r"/[^:\0]*")
_quantity = text(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_resources = map_of("cpu|memory", _quantity)


def _metadata(*, namespaced: bool) -> Check:
    place = {"namespace": _label} if namespaced else {}
    return obj({"name": text(_DNS_SUBDOMAIN), **place}, {"labels": _labels, "annotations": _annotations})


def _kind(api_version: str, kind: str, *, namespaced: bool = True, **fields: Check) -> Check:
    return obj(
        {"apiVersion": words(api_version), "kind": words(kind), "metadata": _metadata(namespaced=namespaced), **fields}
    )


_security = obj(
    {"allowPrivilegeEscalation": boolean, "capabilities": obj({"drop": list_of(text("[A-Z_]+"))})},
    {"readOnlyRootFilesystem": boolean},
)
_probe = obj(
    {"tcpSocket": obj({"port": one_of(_port_name, _port)})},
    {
        name: number(1, 3600)
        for name in ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold")
    },
)
_mount = obj({"name": _label, "mountPath": _path}, {"subPath": text(r"[^/].*"), "readOnly": boolean})
_container = obj(
    {"name": _label, "image": text(r"[a-z0-9.:/_-]+:[A-Za-z0-9_.-]+(@sha256:[0-9a-f]{64})?")},
    {
        "command": list_of(text()),
        "args": list_of(text()),
        "ports": list_of(obj({"containerPort": _port}, {"name": _port_name, "protocol": words("TCP", "UDP", "SCTP")})),
        "resources": obj({}, {"requests": _resources, "limits": _resources}),
        "securityContext": _security,
        "readinessProbe": _probe,
        "livenessProbe": _probe,
        "volumeMounts": list_of(_mount, unique="mountPath"),
    },
)
_volume = one_of(
    obj({"name": _label, "configMap": obj({"name": text(_DNS_SUBDOMAIN)}, {"optional": boolean})}),
    obj({"name": _label, "emptyDir": obj({}, {"medium": words("", "Memory"), "sizeLimit": _quantity})}),
)
_pod_security = obj(
    {
        "runAsNonRoot": boolean,
        "runAsUser": number(0, 2**31 - 1),
        "runAsGroup": number(0, 2**31 - 1),
        "seccompProfile": obj({"type": words("RuntimeDefault", "Localhost", "Unconfined")}),
    }
)
_pod = obj(
    {"containers": list_of(_container, unique="name")},
    {
        "initContainers": list_of(_container, unique="name"),
        "serviceAccountName": text(_DNS_SUBDOMAIN),
        "automountServiceAccountToken": boolean,
        "enableServiceLinks": boolean,
        "nodeSelector": _labels,
        "terminationGracePeriodSeconds": number(0, 3600),
        "securityContext": _pod_security,
        "volumes": list_of(_volume, unique="name"),
    },
)
_deployment = obj(
    {
        "selector": obj({"matchLabels": _labels}),
        "template": obj({"metadata": obj({"labels": _labels}, {"annotations": _annotations}), "spec": _pod}),
    },
    {
        "replicas": number(0, 100),
        "strategy": obj(
            {"type": words("RollingUpdate")},
            {"rollingUpdate": obj({"maxSurge": number(0, 100), "maxUnavailable": number(0, 100)})},
        ),
    },
)
_service = obj(
    {
        "selector": _labels,
        "ports": list_of(
            obj(
                {"port": _port},
                {"name": _label, "targetPort": one_of(_port_name, _port), "protocol": words("TCP", "UDP", "SCTP")},
            ),
            unique="name",
        ),
    },
    {"type": words("ClusterIP", "NodePort", "LoadBalancer")},
)
_rules = list_of(
    obj(
        {
            "apiGroups": list_of(text(rf"|{_DNS_SUBDOMAIN}")),
            "resources": list_of(text("[a-z/]+")),
            "verbs": list_of(text("[a-z]+")),
        }
    )
)
_RBAC = "rbac.authorization.k8s.io/v1"

KINDS = {
    "Namespace": _kind("v1", "Namespace", namespaced=False),
    "ServiceAccount": _kind("v1", "ServiceAccount", automountServiceAccountToken=boolean),
    "ConfigMap": _kind("v1", "ConfigMap", data=map_of(r"[-._a-zA-Z0-9]{1,253}", text(r"[\s\S]*"))),
    "Deployment": _kind("apps/v1", "Deployment", spec=_deployment),
    "Service": _kind("v1", "Service", spec=_service),
    "ClusterRole": _kind(_RBAC, "ClusterRole", namespaced=False, rules=_rules),
    "Role": _kind(_RBAC, "Role", rules=_rules),
}


def errors_of(item: Any) -> list[str]:
    """What is wrong with a Kubernetes object."""
    kind = item.get("kind") if isinstance(item, dict) else None
    check = KINDS.get(str(kind))
    return list(check(item, str(kind))) if check else [f"unknown kind {kind!r}"]
