"""The endpoint's pod without a container runtime: the manifest's own commands and files, in namespaces of the kernel.

As in the pod, the process is alone in its PID namespace, runs as the manifest's user without any capability and
without a way to gain one, sees a read-only root file system and the pod's ``/etc/passwd``, and finds its volumes where
the manifest mounts them. Other than in the pod, it shares the network of whoever runs it: so sshd listens on one
address instead of all.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

from tp2.cluster import sshd
from tp2.cluster.manifest import AUTHORIZED_KEYS, CONFIG, ENDPOINT, ENDPOINT_LABELS, IMAGE, NAMESPACE, objects
from tp2.sandbox.kubeapi_resources import LOG
from tp2.sandbox.objects import Object

Containers = Literal["initContainers", "containers"]


class PodFiles:
    """The pod's volumes in a directory, and the commands that run its containers on them.

    :param directory: where the volumes are made.
    :param address: where sshd listens, with *port*.
    :param without: directives to take out of sshd's configuration, to see what the others do alone.
    :param applied: the endpoint's objects as a cluster has them, if not the manifest's.
    """

    def __init__(
        self, directory: Path, address: str, port: int, without: Sequence[str] = (), applied: Sequence[Object] = ()
    ) -> None:
        self.authorized_keys: Final = directory / "authorized-keys" / sshd.AUTHORIZED_KEYS_FILE
        self.host_key: Final = directory / "host-key" / Path(sshd.HOST_KEY).name
        self._directory = directory
        found = {(item["kind"], item["metadata"]["name"]): item for item in applied or objects(NAMESPACE, IMAGE, ())}
        self._spec: Any = found["Deployment", ENDPOINT]["spec"]["template"]["spec"]
        files: dict[str, str] = found["ConfigMap", CONFIG]["data"]
        for volume in self._spec["volumes"]:
            (directory / volume["name"]).mkdir(parents=True)
        lines = [line for line in files["sshd_config"].splitlines() if line.partition(" ")[0] not in without]
        elsewhere = {f"Port {sshd.PORT}": f"Port {port}\nListenAddress {address}"}
        config = "\n".join(elsewhere.get(line, line) for line in lines) + "\n"
        for name, text in {**files, "sshd_config": config}.items():
            (directory / "config" / name).write_text(text)
        if keys := found.get(("ConfigMap", AUTHORIZED_KEYS)):
            self.authorized_keys.write_text(keys["data"][sshd.AUTHORIZED_KEYS_FILE])

    def command(self, containers: Containers, command: Sequence[str] = ()) -> list[str]:
        """Return the command that runs the first of the pod's *containers*, or another *command* in its place."""
        container = self._spec[containers][0]
        mounts = []
        for mount in container["volumeMounts"]:
            source = shlex.quote(str(self._directory / mount["name"] / mount.get("subPath", "")))
            target = shlex.quote(mount["mountPath"])
            if "subPath" not in mount:
                mounts.append(f"mkdir -p {target}")
            mounts.append(f"mount --bind {source} {target}")
            if mount.get("readOnly"):
                mounts.append(f"mount -o remount,bind,ro {target}")
        script = "\n".join(
            (
                "set -e",
                # The directory of all mount points that an image does not have.
                "mount -t tmpfs tmpfs /run",
                *mounts,
                "mount -o remount,bind,ro /",
                'exec setpriv --inh-caps=-all --ambient-caps=-all --bounding-set=-all --no-new-privs -- "$@"',
            )
        )
        user = [f"--map-user={sshd.UID}", f"--map-group={sshd.UID}"]
        unshare = ["unshare", "--user", *user, "--mount", "--pid", "--fork", "--kill-child", "--keep-caps"]
        return [*unshare, "sh", "-c", script, "sh", *(command or container["command"])]


def pod_object(name: str, address: str, log: str, *, ready: bool = True) -> Object:
    """Return the Pod of an endpoint that runs at *address*, and whose init container has printed *log*."""
    condition = {"type": "Ready", "status": str(ready)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": NAMESPACE,
            "name": name,
            "labels": dict(ENDPOINT_LABELS),
            "annotations": {LOG: log},
        },
        "spec": {},
        "status": {
            "phase": "Running",
            "podIP": address,
            "conditions": [{"type": "PodScheduled", "status": "True"}, condition],
            "containerStatuses": [{"name": "sshd", "state": {"running": {}}, "ready": ready}],
        },
    }
