"""A cluster that makes pods: controllers, scheduler and kubelet in one, over the sandbox's Kubernetes API.

What was applied is what runs: the pod's real sshd, with the Deployment's commands and security context and with the
ConfigMaps' files. What it has instead of a container runtime is :mod:`tp2.sandbox.pod`.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from tp2.cluster import sshd
from tp2.cluster.manifest import AUTHORIZED_KEYS, CONFIG, ENDPOINT, NAMESPACE
from tp2.sandbox.box import Sandbox
from tp2.sandbox.objects import Object
from tp2.sandbox.pod import PodFiles, pod_object

#: Seconds between two looks. Watching would be sooner, and another client of the API to get wrong.
LOOK = 0.1

SCHEDULED = {"type": "PodScheduled", "status": "True"}
NOT_READY = {"type": "Ready", "status": "False"}


def unschedulable(message: str) -> Object:
    """The status of a pod that no node takes."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def unpullable(image: str, reason: str, message: str) -> Object:
    """The status of a pod whose image cannot be had."""
    container = {"name": "sshd", "image": image, "ready": False}
    container["state"] = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "conditions": [SCHEDULED, NOT_READY], "containerStatuses": [container]}


class Kubelet:
    """Works while its context lasts, in a thread.

    :param kubeconfig: of the cluster's administrator.
    :param address: the pod's.
    :param obstacles: statuses that pods have one after the other instead of running; the last one stays.
    """

    def __init__(self, box: Sandbox, kubeconfig: Path, address: str, *obstacles: Object) -> None:
        self._box = box
        self._kubeconfig = kubeconfig
        self._address = address
        self._obstacles = list(obstacles)
        self._pod = ""
        self._files: PodFiles | None = None
        self._process: subprocess.Popen[Any] | None = None
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="kubelet")

    def __enter__(self) -> Kubelet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._kill()
        if self._failure is not None:
            raise self._failure

    @property
    def runs(self) -> bool:
        """Whether the pod's sshd runs."""
        return self._process is not None and self._process.poll() is None

    def _run(self) -> None:
        try:
            while not self._stopped.wait(LOOK):
                self._look()
        except BaseException as error:
            self._failure = error

    def _look(self) -> None:
        deployments = self._ask("GET", "/apis/apps/v1/deployments")["items"]
        if not deployments:
            if self._pod:
                self._kill()
                self._box.cluster.run("ip", "addr", "del", f"{self._address}/32", "dev", "lo")
                self._pod = ""
            return
        deployment = deployments[0]
        name = f"{ENDPOINT}-{deployment['metadata']['generation']}"
        if self._obstacles:
            status = self._obstacles.pop(0) if len(self._obstacles) > 1 else self._obstacles[0]
            self._report(name, {**pod_object(name, "", ""), "status": status})
            self._deployment(deployment, available=0)
        elif name != self._pod:
            self._start(name, deployment)
            self._deployment(deployment, available=1)
        elif self._files is not None and (keys := self._config_maps().get(AUTHORIZED_KEYS)):
            _replace(self._files.authorized_keys, keys["data"][sshd.AUTHORIZED_KEYS_FILE])

    def _start(self, name: str, deployment: Object) -> None:
        maps = self._config_maps()
        directory = Path(tempfile.mkdtemp(prefix="pod-", dir=self._box.directory))
        applied = [{**deployment, "kind": "Deployment"}, *({**item, "kind": "ConfigMap"} for item in maps.values())]
        assert CONFIG in maps
        self._kill()
        self._files = PodFiles(directory, self._address, sshd.PORT, applied=applied)
        self._box.cluster.run("ip", "addr", "replace", f"{self._address}/32", "dev", "lo")
        log = self._box.cluster.run(*self._files.command("initContainers"))
        self._process = self._box.cluster.start(*self._files.command("containers"), stdin=subprocess.DEVNULL)
        self._box.cluster.wait_listening(self._address, sshd.PORT)
        self._pod = name
        self._report(name, pod_object(name, self._address, log))

    def _kill(self) -> None:
        if self._process is not None:
            self._box.cluster.kill(*self._box.cluster.family(self._process.pid))
            self._process.wait()
            self._process = None

    def _report(self, name: str, pod: Object) -> None:
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        for other in self._ask("GET", pods)["items"]:
            if other["metadata"]["name"] == name:
                self._ask("PATCH", f"{pods}/{name}", {"status": pod["status"]})
                return
            self._ask("DELETE", f"{pods}/{other['metadata']['name']}")
        self._ask("POST", pods, pod)

    def _deployment(self, deployment: Object, available: int) -> None:
        generation = deployment["metadata"]["generation"]
        status = {"observedGeneration": generation, "replicas": 1, "updatedReplicas": 1, "availableReplicas": available}
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{ENDPOINT}"
        self._ask("PATCH", path, {"status": status})

    def _config_maps(self) -> dict[str, Object]:
        items = self._ask("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps")["items"]
        return {item["metadata"]["name"]: item for item in items}

    def _ask(self, method: str, path: str, body: Object | None = None) -> Any:
        return self._box.request(method, path, body, self._kubeconfig)


def _replace(path: Path, text: str) -> None:
    """Put another file in its place, at once, as kubelet does; the pod has its directory mounted."""
    if not path.exists() or path.read_text() != text:
        new = path.with_name("new")
        new.write_text(text)
        new.replace(path)
