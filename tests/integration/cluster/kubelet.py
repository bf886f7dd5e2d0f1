"""What a cluster does with the endpoint's Deployment: controllers, scheduler and kubelet in one, over the store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from tp2.cluster.manifest import ENDPOINT
from tp2.sandbox.kubeapi_resources import DEPLOYMENTS, PODS, Object
from tp2.sandbox.kubeapi_server import KubeApi

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGp5dGhvbnB5dGhvbnB5dGhvbnB5dGhvbnB5dGhv"
SCHEDULED = {"type": "PodScheduled", "status": "True"}


def running(*, ready: bool = True) -> Object:
    """The status of a pod whose containers run."""
    return {
        "phase": "Running",
        "podIP": "10.244.0.9",
        "conditions": [SCHEDULED, {"type": "Ready", "status": str(ready)}],
        "containerStatuses": [{"name": "sshd", "state": {"running": {}}, "ready": ready}],
    }


def waiting(reason: str, message: str, **fields: Any) -> Object:
    """The status of a pod whose container cannot start."""
    state = {"waiting": {"reason": reason, "message": message}}
    container = {"name": "sshd", "image": "registry.example/sshd:1", "state": state, **fields}
    conditions = [SCHEDULED, {"type": "Ready", "status": "False"}]
    return {"phase": "Pending", "conditions": conditions, "containerStatuses": [container]}


def pending(message: str) -> Object:
    """The status of a pod that no node takes."""
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [scheduled]}


class Kubelet:
    """Makes a pod for every generation of the Deployment, once the former one is rolled out.

    :param status: what becomes of a pod; may be set anew at any time, then call :meth:`look`.
    :param failure: why no pod can be made, if none can.
    """

    def __init__(self, api: KubeApi, namespace: str, status: Object, failure: str = "") -> None:
        self.status = status
        self.failure = failure
        self._api = api
        self._namespace = namespace
        self._changed = asyncio.Event()

    def look(self) -> None:
        """Bring the cluster to what it should be, soon."""
        self._changed.set()

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[Kubelet]:
        """Work for as long as the context lasts."""
        task = asyncio.create_task(self._run())
        self._api.store.listeners.add(self.look)
        try:
            yield self
        finally:
            self._api.store.listeners.discard(self.look)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._reconcile()
            await self._changed.wait()
            self._changed.clear()

    def _reconcile(self) -> None:
        store = self._api.store
        if not store.has(DEPLOYMENTS, self._namespace, ENDPOINT):
            for pod in store.objects(PODS, self._namespace):
                store.delete(PODS, self._namespace, pod["metadata"]["name"])
            return
        deployment = store.get(DEPLOYMENTS, self._namespace, ENDPOINT)
        generation = deployment["metadata"]["generation"]
        if self.failure:
            condition = {"type": "ReplicaFailure", "status": "True", "message": self.failure}
            self._report(deployment, conditions=[condition])
            return
        name = f"{ENDPOINT}-{generation}"
        if not store.has(PODS, self._namespace, name):
            make_pod(self._api, self._namespace, name, self.status, deployment["spec"]["template"]["metadata"])
        elif store.get(PODS, self._namespace, name)["status"] != self.status:
            store.merge(PODS, self._namespace, name, {"status": self.status})
        ready = {"type": "Ready", "status": "True"} in self.status["conditions"]
        former = [pod["metadata"]["name"] for pod in store.objects(PODS, self._namespace)]
        former.remove(name)
        for other in former if ready else ():
            store.delete(PODS, self._namespace, other)
        total = 1 if ready else 1 + len(former)
        self._report(
            deployment,
            conditions=[],
            observedGeneration=generation,
            replicas=total,
            updatedReplicas=1,
            availableReplicas=1 if ready or former else 0,
        )

    def _report(self, deployment: Object, **status: Any) -> None:
        if {**deployment["status"], **status} != deployment["status"]:
            self._api.store.merge(DEPLOYMENTS, self._namespace, ENDPOINT, {"status": status})


def make_pod(
    api: KubeApi, namespace: str, name: str, status: Object, metadata: Object, log: str = f"{HOST_KEY} tp2\n"
) -> Object:
    """Create a pod of the endpoint that has said *log*."""
    pod = {"metadata": {**metadata, "name": name}, "spec": {}, "status": status}
    api.logs[namespace, name] = log
    return api.store.create(PODS, namespace, pod)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what has no event."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
