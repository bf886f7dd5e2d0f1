"""The SSH endpoint as Kubernetes objects: what ``tp2 install`` applies, and what it prints for ``kubectl apply``.

Pure: parameters in, objects or YAML out. ``deploy/proxy.yaml`` is this YAML with the defaults and without keys, and a
test says so. It holds no secret: the host key is made in the pod (:mod:`tp2.cluster.sshd` says how), and who may log
in is a ConfigMap of public keys beside it.

**The image** has to bring OpenSSH's sshd, ssh-keygen and a POSIX shell, nothing else: user, configuration and
commands come from here. The default is LinuxServer.io's ``openssh-server``. Its sshd is made to run as an ordinary
user (its own start script drops root before it starts sshd on port 2222); it is rebuilt about every week with
Alpine's updates, for amd64 and arm64; every build keeps a tag of its own (``VERSION-lsNUMBER``), which is what
pinning needs; and the registry it is on does not count pulls per address, as Docker Hub does. Its init system (s6)
needs root and is never run: the pod's command takes its place. ``deploy/Dockerfile`` builds an image from Debian that
does the same, for those who want their own.

Fields that are left out keep what people set: ``kubectl scale`` (``replicas``, 1 if nobody did) and a load balancer
(``type`` of the Service) outlive the next ``tp2 install``, because a server-side apply owns only what it names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import yaml

from tp2 import __version__
from tp2.cluster import sshd
from tp2.cluster.rights import CATALOG_RIGHTS, ENDPOINT_RIGHTS, NAMESPACE_RIGHTS, rules, table

Object = dict[str, Any]

NAMESPACE: Final = "tp2-system"
IMAGE: Final = "lscr.io/linuxserver/openssh-server:10.3_p1-r2-ls243"

ENDPOINT: Final = "tp2-endpoint"
"""Name of the Deployment, the Service and the ServiceAccount."""
CONFIG: Final = "tp2-sshd"
AUTHORIZED_KEYS: Final = "tp2-authorized-keys"
USERS: Final = "tp2-user"
"""Name of the ClusterRole and of the Role for people who use tp2."""

HOST_KEY_CONTAINER: Final = "host-key"
"""The init container whose log is the public host key."""
SSHD_CONTAINER: Final = "sshd"
SERVICE_PORT: Final = "ssh"

ENDPOINT_LABELS: Final = {"app.kubernetes.io/name": "tp2", "app.kubernetes.io/component": "endpoint"}
"""What the endpoint's pods are selected by."""

_INSTANCE: Final = "app.kubernetes.io/instance"
_MANAGED_BY: Final = "app.kubernetes.io/managed-by"


def objects(namespace: str, image: str, authorized_keys: Sequence[str]) -> list[Object]:
    """The endpoint, in the order in which its objects have to be applied.

    :param namespace: where it goes; the Namespace itself is the first object.
    :param image: a container image with sshd, ssh-keygen and a POSIX shell.
    :param authorized_keys: public keys, one line each as in ``authorized_keys``; without any, that ConfigMap is left
        out (the pod starts without it and takes it up when it is there).
    """
    keys = [_authorized_keys(namespace, authorized_keys)] if authorized_keys else []
    config = {"sshd_config": sshd.CONFIG, "passwd": sshd.PASSWD}
    return [
        _namespace(namespace),
        _object("v1", "ServiceAccount", ENDPOINT, namespace, automountServiceAccountToken=False),
        _object("v1", "ConfigMap", CONFIG, namespace, data=config),
        *keys,
        _deployment(namespace, image, config),
        _service(namespace),
        _object(_RBAC, "ClusterRole", USERS, None, namespace, rules=rules((*CATALOG_RIGHTS, *NAMESPACE_RIGHTS))),
        _object(_RBAC, "Role", USERS, namespace, rules=rules(ENDPOINT_RIGHTS)),
    ]


def is_ours(obj: Object, namespace: str) -> bool:
    """Whether *obj* bears the labels of an endpoint that tp2 put into *namespace*."""
    labels = obj["metadata"].get("labels") or {}
    return labels.get(_MANAGED_BY) == "tp2" and labels.get(_INSTANCE) == namespace


def selector(labels: dict[str, str]) -> str:
    """The value of ``labelSelector`` that finds objects with all of *labels*."""
    return ",".join(f"{key}={value}" for key, value in labels.items())


def merged_keys(present: str, added: Iterable[str]) -> list[str]:
    """The lines of an ``authorized_keys`` text with *added* ones after them, unless it has their keys already.

    A second person's ``tp2 install`` must not shut out the first.
    """
    lines = [line.strip() for line in present.splitlines() if line.strip()]
    known = {_blob(line) for line in lines}
    for line in added:
        if _blob(line) not in known:
            known.add(_blob(line))
            lines.append(line.strip())
    return lines


def to_yaml(items: Iterable[Object]) -> str:
    """The objects as YAML documents for ``kubectl apply -f``, with comments for whoever reads them first."""
    items = list(items)
    parts = [_as_comment(_HEADER)]
    for item in items:
        comment = _COMMENTS.get((item["kind"], item["metadata"]["name"]), "")
        text = yaml.dump(item, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
        parts.append("---\n" + _as_comment(comment) + text)
        if item["metadata"]["name"] == CONFIG and not any(o["metadata"]["name"] == AUTHORIZED_KEYS for o in items):
            parts.append("\n" + _as_comment(_NO_KEYS.format(namespace=item["metadata"]["namespace"])))
    return "".join(parts)


_RBAC: Final = "rbac.authorization.k8s.io/v1"


def _object(
    api_version: str, kind: str, name: str, namespace: str | None, instance: str | None = None, **fields: Any
) -> Object:
    metadata: Object = {"name": name}
    if namespace is not None:
        metadata["namespace"] = namespace
    metadata["labels"] = {
        **ENDPOINT_LABELS,
        _INSTANCE: instance or namespace,
        "app.kubernetes.io/version": __version__,
        _MANAGED_BY: "tp2",
    }
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}


def _namespace(name: str) -> Object:
    namespace = _object("v1", "Namespace", name, None, name)
    namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "restricted"
    return namespace


def _authorized_keys(namespace: str, lines: Sequence[str]) -> Object:
    text = "".join(f"{line.strip()}\n" for line in lines)
    return _object("v1", "ConfigMap", AUTHORIZED_KEYS, namespace, data={sshd.AUTHORIZED_KEYS_FILE: text})


def _service(namespace: str) -> Object:
    port = {"name": SERVICE_PORT, "port": 22, "targetPort": SERVICE_PORT, "protocol": "TCP"}
    return _object("v1", "Service", ENDPOINT, namespace, spec={"selector": dict(ENDPOINT_LABELS), "ports": [port]})


def _deployment(namespace: str, image: str, config: dict[str, str]) -> Object:
    # A pod reads its configuration once: another one has to make another pod.
    digest = hashlib.sha256("\0".join(config.values()).encode()).hexdigest()[:16]
    template = {
        "metadata": {"labels": dict(ENDPOINT_LABELS), "annotations": {"tp2/config": digest}},
        "spec": _pod(image),
    }
    spec = {
        "selector": {"matchLabels": dict(ENDPOINT_LABELS)},
        # The new pod answers before the old one goes.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": template,
    }
    return _object("apps/v1", "Deployment", ENDPOINT, namespace, spec=spec)


def _pod(image: str) -> Object:
    # Of https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, nothing is left out.
    security = {
        "runAsNonRoot": True,
        "runAsUser": sshd.UID,
        "runAsGroup": sshd.UID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    probe = {"tcpSocket": {"port": SERVICE_PORT}, "timeoutSeconds": 3}
    return {
        "serviceAccountName": ENDPOINT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "terminationGracePeriodSeconds": 5,
        "securityContext": security,
        "initContainers": [
            {
                **_container(HOST_KEY_CONTAINER, image, sshd.MAKE_HOST_KEY),
                "volumeMounts": [_PASSWD_MOUNT, {"name": "host-key", "mountPath": sshd.HOST_KEY_DIRECTORY}],
            }
        ],
        "containers": [
            {
                **_container(SSHD_CONTAINER, image, sshd.RUN_SSHD),
                "ports": [{"name": SERVICE_PORT, "containerPort": sshd.PORT, "protocol": "TCP"}],
                "readinessProbe": {**probe, "periodSeconds": 5},
                "livenessProbe": {**probe, "periodSeconds": 20, "failureThreshold": 3},
                "volumeMounts": [
                    _PASSWD_MOUNT,
                    {"name": "config", "mountPath": sshd.CONFIG_DIRECTORY, "readOnly": True},
                    {"name": "authorized-keys", "mountPath": sshd.AUTHORIZED_KEYS_DIRECTORY, "readOnly": True},
                    {"name": "host-key", "mountPath": sshd.HOST_KEY_DIRECTORY, "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": CONFIG}},
            {"name": "authorized-keys", "configMap": {"name": AUTHORIZED_KEYS, "optional": True}},
            {"name": "host-key", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ],
    }


_PASSWD_MOUNT: Final = {"name": "config", "mountPath": "/etc/passwd", "subPath": "passwd", "readOnly": True}


def _container(name: str, image: str, script: str) -> Object:
    return {
        "name": name,
        "image": image,
        "command": ["/bin/sh", "-c", script],
        # A connection takes about 8 MiB, and encryption up to a whole core while it is busy.
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "2", "memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }


def _blob(line: str) -> str:
    """The key itself: comments and options may differ."""
    return next((word for word in line.split() if word.startswith("AAAA")), line.strip())


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are, and repeats what is repeated instead of pointing at it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _as_comment(text: str) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())


_HEADER: Final = f"""\
tp2's SSH endpoint: TCP forwarding into the cluster for people with a key, and nothing else.
Written by `tp2 install --print`; `tp2 install` applies the same objects, `tp2 uninstall` takes them away.

There is no secret in here. The pod makes its host key when it starts, and prints the public half in the log of its
init container "{HOST_KEY_CONTAINER}", where `tp2 up` reads it."""

_NO_KEYS: Final = f"""\
Who may log in: public keys, one a line. `tp2 install` makes this ConfigMap with your key in it; by hand:

  kubectl --namespace {{namespace}} create configmap {AUTHORIZED_KEYS} \\
    --from-file={sshd.AUTHORIZED_KEYS_FILE}=$HOME/.ssh/id_ed25519.pub

The pod need not be restarted: it sees the keys within about a minute."""

_COMMENTS: Final = {
    ("ConfigMap", AUTHORIZED_KEYS): "Who may log in: public keys, one a line. `tp2 install` adds yours.",
    ("Service", ENDPOINT): """\
Nothing needs to reach this Service: tp2 goes through the API server. With `type: LoadBalancer` it goes there instead,
where that answers.""",
    ("ClusterRole", USERS): f"""\
For people who use tp2: exactly what it asks for. Over the whole cluster:

{table((*CATALOG_RIGHTS, *NAMESPACE_RIGHTS))}

Bind it to them, or, for some namespaces only, with a RoleBinding in each of those (and use `tp2 up --namespace`):

  kubectl create clusterrolebinding {USERS} --clusterrole={USERS} --group=developers
  kubectl --namespace shop create rolebinding {USERS} --clusterrole={USERS} --group=developers""",
    ("Role", USERS): f"""\
The same, in the endpoint's namespace:

{table(ENDPOINT_RIGHTS)}

  kubectl --namespace NAMESPACE create rolebinding {USERS} --role={USERS} --group=developers""",
}
