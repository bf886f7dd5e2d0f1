"""Why the endpoint is not there yet, read from what kubelet, scheduler and controllers wrote into their objects.

Pure. A :class:`Problem` says what is the matter, what to do, and whether waiting alone may mend it: an image that
cannot be pulled is tried again for ever, yet a person who waits for it should hear of it soon.

https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tp2.cluster.manifest import Object


@dataclass(frozen=True, slots=True)
class Problem:
    """:param stuck: whether it stays as it is until somebody does something.
    :param detailed: whether ``why`` has the cause; kubelet says it once, and then only that it waits."""

    why: str
    remedy: str
    stuck: bool = False
    detailed: bool = True


_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_CONFIGURATION = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError")


def is_ready(pod: Object) -> bool:
    """Whether the pod takes connections, and will go on to."""
    return not is_going(pod) and _condition(pod, "Ready").get("status") == "True"


def is_going(pod: Object) -> bool:
    """Whether the pod is being deleted. It may still be ready; new connections belong elsewhere."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def pod_problem(pod: Object) -> Problem:
    """Why a pod is not ready."""
    name, namespace = pod["metadata"]["name"], pod["metadata"].get("namespace", "default")
    status = _dict(pod.get("status"))
    if is_going(pod):
        return Problem(f"the pod {name} is being deleted", "wait for the next one")
    if status.get("phase") == "Failed":
        why = ": ".join(str(status[key]) for key in ("reason", "message") if status.get(key)) or "it failed"
        return Problem(f"the pod {name} has failed: {why}", f"see `kubectl -n {namespace} describe pod {name}`", True)
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        why = scheduled.get("message") or scheduled.get("reason") or "no reason was given"
        return Problem(
            f"the pod {name} is pending: {why}",
            "make room for it in the cluster, or add a node that it may run on",
        )
    for container in _containers(status):
        if problem := _container_problem(name, namespace, container):
            return problem
    if not scheduled:
        return Problem(f"the pod {name} is pending: no scheduler has looked at it yet", "wait, or see whether one runs")
    if status.get("phase") == "Running" and _containers(status):
        return Problem(
            f"the pod {name} runs, but sshd does not answer yet", f"see `kubectl -n {namespace} logs {name}`"
        )
    return Problem(f"the pod {name} is starting", f"see `kubectl -n {namespace} describe pod {name}`")


def _container_problem(pod: str, namespace: str, container: Object) -> Problem | None:
    name, state = container.get("name", ""), _dict(container.get("state"))
    waiting, terminated = _dict(state.get("waiting")), _dict(state.get("terminated"))
    reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
    if reason in _PULL:
        return Problem(
            f"the image {container.get('image')} cannot be pulled: {message or reason} ({reason})",
            "give one that the cluster's nodes can pull with --image, or let them reach its registry; "
            "deploy/Dockerfile builds one",
            stuck=reason != "ErrImagePull",
            detailed=reason != "ImagePullBackOff" or "ErrImagePull" in message,
        )
    if reason in _CONFIGURATION:
        return Problem(
            f"the container {name} of the pod {pod} cannot be started: {message or reason} ({reason})",
            "check that the image has a shell and OpenSSH's sshd; `tp2 install` puts everything else in place",
            stuck=True,
        )
    last = _dict(_dict(container.get("lastState")).get("terminated"))
    ended = terminated if terminated.get("exitCode") else last if reason == "CrashLoopBackOff" else {}
    if ended or reason == "CrashLoopBackOff":
        how = f"exit code {ended.get('exitCode')}" + (f", {ended['reason']}" if ended.get("reason") else "")
        said = f": {' '.join(str(ended['message']).split())}" if ended.get("message") else ""
        return Problem(
            f"the container {name} of the pod {pod} keeps ending ({how if ended else reason}){said}",
            f"see what it says: `kubectl -n {namespace} logs {pod} -c {name}`",
            stuck=reason == "CrashLoopBackOff",
        )
    return None


def deployment_problem(deployment: Object) -> Problem | None:
    """Why a Deployment has no pods, as far as its controller says: pod security, a quota, nobody wants any."""
    name, namespace = deployment["metadata"]["name"], deployment["metadata"].get("namespace", "default")
    if _dict(deployment.get("spec")).get("replicas") == 0:
        return Problem(
            f"the Deployment {name} is scaled down to 0",
            f"scale it up: `kubectl -n {namespace} scale deployment {name} --replicas=1`",
            stuck=True,
        )
    failure = _condition(deployment, "ReplicaFailure")
    if failure.get("status") != "True":
        return None
    message = str(failure.get("message") or failure.get("reason") or "no reason was given")
    remedy = "ask whoever set that limit in the namespace; the endpoint needs 32 MiB and hundredths of a core"
    if "PodSecurity" in message or "violates" in message:
        remedy = (
            "the endpoint keeps to the restricted profile: look for a policy of the cluster's own that asks for more"
        )
    return Problem(f"the Deployment {name} may not make a pod: {message}", remedy, stuck=True)


def is_rolled_out(deployment: Object) -> bool:
    """Whether all pods are of the newest template, and available: what ``kubectl rollout status`` waits for."""
    status = _dict(deployment.get("status"))
    wanted = _dict(deployment.get("spec")).get("replicas")
    seen = _int(status.get("observedGeneration")) >= _int(deployment["metadata"].get("generation"))
    updated, total, available = (_int(status.get(key)) for key in ("updatedReplicas", "replicas", "availableReplicas"))
    return seen and updated >= max(_int(wanted), 1) and total == updated and available >= updated


def _containers(status: Object) -> list[Object]:
    return [*_dicts(status.get("initContainerStatuses")), *_dicts(status.get("containerStatuses"))]


def _condition(obj: Object, kind: str) -> Object:
    conditions = _dicts(_dict(obj.get("status")).get("conditions"))
    return next((condition for condition in conditions if condition.get("type") == kind), {})


def _dict(value: Any) -> Object:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[Object]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0
