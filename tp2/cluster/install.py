"""Putting the SSH endpoint into a cluster, and taking it away again.

Installing changes nothing until all the rights that it needs are there. Then every object is applied in order, and
the Deployment is waited for: the API's watches say when something has happened, and the objects say what. What is in
the way is reported as soon as it is seen; what only a person can mend ends the waiting after :data:`PATIENCE`. What
was applied stays in any case: the next ``tp2 install`` goes on from there, ``tp2 uninstall`` takes it away.

Uninstalling takes away what bears our labels and nothing else. A namespace that was there before is never labelled,
so it stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from tp2.cluster import sshd
from tp2.cluster.api import RESOURCES, Api, Forbidden, Refused, group_of
from tp2.cluster.manifest import (
    AUTHORIZED_KEYS,
    ENDPOINT,
    ENDPOINT_LABELS,
    IMAGE,
    Object,
    is_ours,
    merged_keys,
    objects,
    selector,
)
from tp2.cluster.podstate import Problem, deployment_problem, is_going, is_ready, is_rolled_out, pod_problem
from tp2.cluster.rights import Right
from tp2.cluster.session import Session
from tp2.errors import ClusterError, EndpointError

TIMEOUT: Final = 180.0
"""Seconds until a pod must be ready: a node may have to be added first, and an image of 30 MiB pulled."""

PATIENCE: Final = 15.0
"""Seconds for which something may stand still that only a person can mend: kubelet's first retry comes after ten."""

_FOR_OTHERS: Final = ("ClusterRole", "Role")
"""Kinds that an installer who may not hand out rights goes on without: people who use the endpoint need them."""

Report = Callable[[str], None]


async def install(
    session: Session,
    wanted: Sequence[Object],
    report: Report,
    *,
    timeout: float = TIMEOUT,
    patience: float = PATIENCE,
) -> None:
    """Apply *wanted* (of :func:`tp2.cluster.manifest.objects`) and wait until the endpoint takes connections.

    Keys that are authorized already stay. A namespace that is there already, and not ours, stays as it is.

    :param report: told every step, in a few words.
    :raises ClusterError: the API cannot be reached, or rights are missing: all of them are named.
    :raises EndpointError: it does not become ready, with the reason.
    """
    api = Api(session)
    namespace: str = wanted[0]["metadata"]["name"]
    if await _is_anothers(api, namespace):
        report(f"namespace {namespace} is there already: left as it is")
        wanted = wanted[1:]
    await _check_rights(api, wanted, namespace)
    keys_changed = False
    for obj in wanted:
        if (obj["kind"], obj["metadata"]["name"]) == ("ConfigMap", AUTHORIZED_KEYS):
            obj, keys_changed = await _with_present_keys(api, obj)
        await _apply(api, obj, report)
    if keys_changed:
        await _hurry_keys(api, namespace, report)
    await _wait_ready(api, namespace, report, timeout, patience)
    report("the endpoint is ready")


async def uninstall(
    session: Session, namespace: str, report: Report = lambda step: None, *, timeout: float = TIMEOUT
) -> None:
    """Take the endpoint in *namespace* away, and return when it is gone.

    :raises ClusterError: the API cannot be reached, or does not allow it.
    :raises EndpointError: something does not go away in time.
    """
    api = Api(session)
    everything = reversed(objects(namespace, IMAGE, ("",)))
    there = [found for obj in everything if (found := await _present(api, obj, report)) is not None]
    ours = [obj for obj in there if is_ours(obj, namespace)]
    for obj in there:
        if obj not in ours:
            report(f"{obj['kind']} {obj['metadata']['name']} was not made by tp2: left as it is")
    for obj in ours:
        await api.delete(obj)
        report(f"{obj['kind']} {obj['metadata']['name']} deleted")
    if not ours:
        report(f"there is no endpoint in the namespace {namespace}")
        return
    try:
        async with asyncio.timeout(timeout):
            for obj in ours:
                await _gone(api, obj)
    except TimeoutError:
        raise EndpointError(
            f"the endpoint in the namespace {namespace!r} does not go away",
            f"after {timeout:g} s something is still there",
            f"see what holds it: `kubectl describe namespace {namespace}`",
        ) from None


async def _check_rights(api: Api, wanted: Sequence[Object], namespace: str) -> None:
    needed: dict[tuple[Right, str | None], None] = {}
    for obj in wanted:
        if obj["kind"] in _FOR_OTHERS:
            continue
        resource = RESOURCES[obj["kind"]]
        # A server-side apply is a PATCH, and a creation too if there is nothing yet.
        for verb in ("get", "create", "patch") if obj["kind"] == "ConfigMap" else ("create", "patch"):
            needed[Right(verb, resource.plural, group_of(resource)), obj["metadata"].get("namespace")] = None
    needed |= {(Right("get", "deployments", "apps"), namespace): None, (Right("list", "pods"), namespace): None}
    denied = [right.in_words(scope) for right, scope in await api.denied(needed)]
    if denied:
        raise ClusterError(
            "not allowed to install the SSH endpoint",
            "your rights do not include to " + ", ".join(denied),
            "ask an administrator to install it (`tp2 install --print` is what to apply), or for these rights",
        )


async def _is_anothers(api: Api, namespace: str) -> bool:
    try:
        present = await api.get("Namespace", None, namespace)
    except Forbidden:
        # Whoever may not even look at it has not the right to make it, but may have been given one to work in.
        return True
    if present is None:
        return False
    if present["metadata"].get("deletionTimestamp"):
        raise ClusterError(
            "cannot install the SSH endpoint",
            f"the namespace {namespace!r} is being deleted",
            "wait until it is gone, then try again",
        )
    return not is_ours(present, namespace)


async def _present(api: Api, obj: Object, report: Report) -> Object | None:
    kind, name = obj["kind"], obj["metadata"]["name"]
    try:
        return await api.get(kind, obj["metadata"].get("namespace"), name)
    except Forbidden as error:
        if kind not in (*_FOR_OTHERS, "Namespace"):
            raise
        report(f"{kind} {name}: {error.what}, left as it is")
        return None


async def _with_present_keys(api: Api, obj: Object) -> tuple[Object, bool]:
    present = await api.get("ConfigMap", obj["metadata"]["namespace"], AUTHORIZED_KEYS) or {}
    before = str((present.get("data") or {}).get(sshd.AUTHORIZED_KEYS_FILE) or "")
    lines = merged_keys(before, obj["data"][sshd.AUTHORIZED_KEYS_FILE].splitlines())
    text = "".join(f"{line}\n" for line in lines)
    return {**obj, "data": {sshd.AUTHORIZED_KEYS_FILE: text}}, text != before


async def _apply(api: Api, obj: Object, report: Report) -> None:
    name = f"{obj['kind']} {obj['metadata']['name']}"
    try:
        await api.apply(obj)
    except Forbidden as error:
        if obj["kind"] not in _FOR_OTHERS:
            # The rights were asked for before, so this is a policy of the cluster.
            raise ClusterError(f"the cluster refuses the {name}", error.why, error.remedy) from error
        report(f"{name} left out: {error.what}; other people need the rights in it from an administrator")
    else:
        report(f"{name} applied")


async def _hurry_keys(api: Api, namespace: str, report: Report) -> None:
    """Have kubelet look at the ConfigMap now and not within a minute, which a change of the pod's annotations does.

    https://kubernetes.io/docs/tasks/configure-pod-container/configure-pod-configmap/#mounted-configmaps-are-updated-automatically
    """
    try:
        for pod in await api.select("Pod", namespace, ENDPOINT_LABELS):
            annotations = pod["metadata"].get("annotations") or {}
            count = int(annotations.get("tp2/keys", "0")) + 1
            change = {"metadata": {"annotations": {"tp2/keys": str(count)}}}
            await api.patch("Pod", namespace, pod["metadata"]["name"], change)
    except (Forbidden, Refused, ValueError):
        report("a pod that runs already takes your key up within about a minute")


class _Waiting:
    """What is known while the Deployment is waited for."""

    def __init__(self, report: Report) -> None:
        self.problem: Problem | None = None
        self.stuck_since: float | None = None
        self._report = report

    def note(self, problem: Problem | None, now: float) -> None:
        """Keep *problem*, unless it only repeats without the cause what was said with it."""
        if problem is None or not problem.stuck:
            self.stuck_since = None
        elif self.stuck_since is None:
            self.stuck_since = now
        if problem is not None and not problem.detailed and self.problem is not None:
            return
        if problem is not None and problem != self.problem:
            self._report(problem.why)
        self.problem = problem


async def _wait_ready(api: Api, namespace: str, report: Report, timeout: float, patience: float) -> None:
    clock = asyncio.get_running_loop().time
    waiting = _Waiting(report)
    deadline = clock() + timeout
    limit = asyncio.timeout_at(deadline)

    async def check() -> bool | None:
        deployment = await api.get("Deployment", namespace, ENDPOINT)
        pods = await api.select("Pod", namespace, ENDPOINT_LABELS)
        if deployment is not None and is_rolled_out(deployment) and any(map(is_ready, pods)):
            return True
        unready = [pod for pod in pods if not is_ready(pod) and not is_going(pod)]
        # The newest is the one that is being rolled out.
        unready.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
        problem = deployment_problem(deployment) if deployment else None
        waiting.note(problem or (pod_problem(unready[-1]) if unready else None), clock())
        stuck = waiting.stuck_since
        limit.reschedule(deadline if stuck is None else min(deadline, stuck + patience))
        return None

    pods = {"labelSelector": selector(ENDPOINT_LABELS)}
    deployment = {"fieldSelector": f"metadata.name={ENDPOINT}"}
    try:
        async with limit:
            await api.until(check, (("Pod", namespace, pods), ("Deployment", namespace, deployment)))
    except TimeoutError:
        problem = waiting.problem
        raise EndpointError(
            f"the SSH endpoint in the namespace {namespace!r} does not become ready",
            problem.why if problem else f"no pod was made within {timeout:g} s",
            (problem.remedy if problem else f"see `kubectl -n {namespace} describe deployment {ENDPOINT}`")
            + "; then run `tp2 install` again",
        ) from None


async def _gone(api: Api, obj: Object) -> None:
    kind, name, place = obj["kind"], obj["metadata"]["name"], obj["metadata"].get("namespace")

    async def check() -> bool | None:
        present = await api.get(kind, place, name)
        return True if present is None or present["metadata"]["uid"] != obj["metadata"]["uid"] else None

    await api.until(check, ((kind, place, {"fieldSelector": f"metadata.name={name}"}),))
