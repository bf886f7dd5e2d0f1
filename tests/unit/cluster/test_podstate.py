"""Why the endpoint is not ready is told in the words of whoever knows it, with what to do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.cluster.recordings import recorded
from tp2.cluster.podstate import (
    deployment_problem,
    is_ready,
    is_rolled_out,
    pod_problem,
)

NAME = "tp2-endpoint-7c9f-abcde"
SCHEDULED = {"type": "PodScheduled", "status": "True"}


def pod(*conditions: dict[str, Any], going: bool = False, **status: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": NAME, "namespace": "tp2-system"}
    if going:
        metadata["deletionTimestamp"] = "2026-11-22T10:00:00Z"
    return {"metadata": metadata, "status": {"conditions": list(conditions), **status}}


def waiting(reason: str, message: str = "", **fields: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    return {"name": "sshd", "image": "registry.example/sshd:1", "state": state, **fields}


def test_a_ready_pod_is_ready_until_it_is_deleted() -> None:
    ready = {"type": "Ready", "status": "True"}
    assert is_ready(pod(SCHEDULED, ready))
    assert not is_ready(pod(SCHEDULED, ready, going=True)), "its Ready condition stays True while it terminates"
    assert not is_ready(pod(SCHEDULED, {"type": "Ready", "status": "False"}))
    assert not is_ready(pod())


def test_a_pod_without_a_node_is_pending_in_the_schedulers_words() -> None:
    message = "0/3 nodes are available: 3 Insufficient memory."
    problem = pod_problem(pod({"type": "PodScheduled", "status": "False", "message": message}, phase="Pending"))
    assert message in problem.why
    assert "pending" in problem.why
    assert not problem.stuck, "a node may be added"


def test_an_image_that_cannot_be_pulled_is_told_in_kubelets_words() -> None:
    message = 'failed to resolve reference "registry.example/sshd:1": not found'
    first = pod_problem(pod(SCHEDULED, containerStatuses=[waiting("ErrImagePull", message)]))
    assert "registry.example/sshd:1" in first.why
    assert message in first.why
    assert "--image" in first.remedy
    assert not first.stuck, "kubelet tries again in ten seconds"
    again = pod_problem(pod(SCHEDULED, containerStatuses=[waiting("ImagePullBackOff", "Back-off pulling image")]))
    assert again.stuck
    assert not again.detailed, "older kubelets say the cause with ErrImagePull only"


def test_an_image_that_cannot_be_pulled_for_the_init_container_is_told_too() -> None:
    status = {**waiting("ImagePullBackOff", "Back-off: ErrImagePull: unauthorized"), "name": "host-key"}
    problem = pod_problem(pod(SCHEDULED, initContainerStatuses=[status]))
    assert "unauthorized" in problem.why
    assert problem.detailed


def test_a_container_that_cannot_be_made_is_told() -> None:
    message = "container has runAsNonRoot and image will run as root"
    problem = pod_problem(pod(SCHEDULED, containerStatuses=[waiting("CreateContainerConfigError", message)]))
    assert message in problem.why
    assert problem.stuck


def test_a_container_that_keeps_ending_says_how_and_where_to_look() -> None:
    ended = {"terminated": {"exitCode": 127, "reason": "Error", "message": "this image has no sshd\n"}}
    problem = pod_problem(pod(SCHEDULED, containerStatuses=[waiting("CrashLoopBackOff", lastState=ended)]))
    assert "exit code 127" in problem.why
    assert "this image has no sshd" in problem.why
    assert f"kubectl -n tp2-system logs {NAME} -c sshd" in problem.remedy
    assert problem.stuck


def test_a_container_that_ended_once_may_yet_come() -> None:
    status = {"name": "sshd", "state": {"terminated": {"exitCode": 255, "reason": "Error"}}}
    problem = pod_problem(pod(SCHEDULED, containerStatuses=[status]))
    assert "exit code 255" in problem.why
    assert not problem.stuck


def test_an_init_container_that_is_done_is_no_problem() -> None:
    done = {"name": "host-key", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    running = {"name": "sshd", "state": {"running": {}}}
    problem = pod_problem(pod(SCHEDULED, phase="Running", initContainerStatuses=[done], containerStatuses=[running]))
    assert "does not answer yet" in problem.why


def test_an_evicted_pod_says_why() -> None:
    message = "The node was low on resource: memory."
    problem = pod_problem(pod(SCHEDULED, phase="Failed", reason="Evicted", message=message))
    assert f"Evicted: {message}" in problem.why


def deployment(*conditions: dict[str, Any], wanted: int = 1, **status: Any) -> dict[str, Any]:
    metadata = {"name": "tp2-endpoint", "namespace": "tp2-system", "generation": 2}
    return {"metadata": metadata, "spec": {"replicas": wanted}, "status": {"conditions": list(conditions), **status}}


@pytest.mark.parametrize(
    "message",
    [
        'pods "tp2-endpoint-7c9f-abcde" is forbidden: violates PodSecurity "restricted:latest": seccompProfile',
        'pods "tp2-endpoint-7c9f-abcde" is forbidden: exceeded quota: compute, requested: memory=32Mi',
    ],
)
def test_a_deployment_that_may_not_make_pods_says_what_forbids_it(message: str) -> None:
    problem = deployment_problem(deployment({"type": "ReplicaFailure", "status": "True", "message": message}))
    assert problem is not None
    assert message in problem.why
    assert problem.stuck
    assert ("profile" in problem.remedy) == ("PodSecurity" in message)


def test_a_deployment_that_was_scaled_down_says_how_to_scale_it_up() -> None:
    problem = deployment_problem(deployment(wanted=0))
    assert problem is not None
    assert "--replicas=1" in problem.remedy


def test_a_deployment_that_is_well_has_no_problem() -> None:
    assert deployment_problem(deployment({"type": "Progressing", "status": "True"})) is None


DONE = {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}


def test_a_rollout_is_done_when_only_new_pods_are_left() -> None:
    assert is_rolled_out(deployment(**DONE))


@pytest.mark.parametrize(
    "change",
    [
        {"observedGeneration": 1},
        {"replicas": 2},
        {"updatedReplicas": 0},
        {"availableReplicas": 0},
        {"availableReplicas": None},
    ],
)
def test_a_rollout_is_not_done_before(change: dict[str, Any]) -> None:
    assert not is_rolled_out(deployment(**{**DONE, **change}))


def test_recorded_pods_are_understood() -> None:
    for item in recorded("list-pods.json")["items"]:
        conditions = {entry["type"]: entry["status"] for entry in item["status"]["conditions"]}
        assert is_ready(item) == (conditions["Ready"] == "True" and "deletionTimestamp" not in item["metadata"])
        assert item["metadata"]["name"] in pod_problem(item).why


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "conditions",
                    "containerStatuses",
                    "state",
                    "waiting",
                    "terminated",
                    "reason",
                    "message",
                    "type",
                    "status",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100)
@given(_json, _json)
def test_whatever_stands_in_a_status_is_survived(status: object, spec: object) -> None:
    strange: dict[str, Any] = {"metadata": {"name": NAME}, "status": status, "spec": spec}
    assert pod_problem(strange).why
    is_ready(strange)
    is_rolled_out(strange)
    deployment_problem(strange)
