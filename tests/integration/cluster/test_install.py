"""``tp2 install`` says what it does and what is in the way; ``tp2 uninstall`` takes away what is ours, and no more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.cluster.conftest import Lab
from tests.integration.cluster.kubelet import Kubelet, eventually, make_pod, pending, running, waiting
from tp2.cluster.install import install, uninstall
from tp2.cluster.manifest import AUTHORIZED_KEYS, ENDPOINT, ENDPOINT_LABELS, IMAGE, NAMESPACE, Object, objects
from tp2.cluster.session import Session
from tp2.errors import ClusterError, EndpointError
from tp2.sandbox.kubeapi_resources import (
    BY_KIND,
    CLUSTER_ROLES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    NAMESPACES,
    PODS,
    ROLES,
    SERVICES,
    Resource,
    StatusError,
)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGp5dGhvbnB5dGhvbnB5dGhvbnB5dGhvbnB5dGhv somebody@laptop"
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHp5dGhvbnB5dGhvbnB5dGhvbnB5dGhvbnB5dGhv another@desk"
DEADLINE = 30.0


@pytest.fixture
async def session(lab: Lab) -> AsyncIterator[Session]:
    session = Session(lab.access())
    await session.open()
    yield session
    await session.close()


@contextlib.asynccontextmanager
async def cluster(lab: Lab, status: Object | None = None, failure: str = "") -> AsyncIterator[Kubelet]:
    """A cluster that makes pods in the endpoint's namespace."""
    async with Kubelet(lab.api, NAMESPACE, status or running(), failure).at_work() as kubelet:
        yield kubelet


async def installed(
    session: Session, *keys: str, image: str = IMAGE, steps: list[str] | None = None, **options: Any
) -> list[str]:
    """Install it; return what was reported, which is in *steps* as soon as it is."""
    steps = [] if steps is None else steps
    async with asyncio.timeout(DEADLINE):
        await install(session, objects(NAMESPACE, image, keys or (KEY,)), steps.append, **options)
    return steps


async def refused(session: Session, **options: Any) -> EndpointError:
    """How installing fails."""
    with pytest.raises(EndpointError) as raised:
        await installed(session, **{"timeout": DEADLINE, "patience": 0.1, **options})
    assert NAMESPACE in raised.value.what
    return raised.value


def there(lab: Lab, resource: Resource) -> set[str]:
    return {item["metadata"]["name"] for item in lab.api.store.objects(resource, None)}


def authorized(lab: Lab) -> list[str]:
    found = lab.api.store.get(CONFIG_MAPS, NAMESPACE, AUTHORIZED_KEYS)
    lines: list[str] = found["data"]["authorized_keys"].splitlines()
    return lines


async def test_everything_is_there_when_it_returns(lab: Lab, session: Session) -> None:
    async with cluster(lab):
        steps = await installed(session)
    for obj in objects(NAMESPACE, IMAGE, (KEY,)):
        place = obj["metadata"].get("namespace", "")
        found = lab.api.store.get(BY_KIND[obj["kind"]], place, obj["metadata"]["name"])
        assert obj["metadata"]["labels"].items() <= found["metadata"]["labels"].items()
    assert authorized(lab) == [KEY]
    assert steps[-1] == "the endpoint is ready"
    assert f"Deployment {ENDPOINT} applied" in steps


async def test_it_returns_only_when_a_pod_is_ready(lab: Lab, session: Session) -> None:
    async with cluster(lab, running(ready=False)) as kubelet:
        installing = asyncio.create_task(installed(session))
        await eventually(lambda: there(lab, PODS) != set())
        await lab.api.watched(2)
        assert not installing.done()
        kubelet.status = running()
        kubelet.look()
        await installing


async def test_installing_again_changes_nothing(lab: Lab, session: Session) -> None:
    async with cluster(lab):
        await installed(session)
        version = lab.api.store.version
        await installed(session)
    assert lab.api.store.version == version


async def test_another_image_is_waited_for_though_the_old_pod_is_ready(lab: Lab, session: Session) -> None:
    async with cluster(lab) as kubelet:
        await installed(session)
        kubelet.status = waiting("ErrImagePull", "not found")
        installing = asyncio.create_task(installed(session, image="registry.example/sshd:2"))
        await eventually(lambda: len(there(lab, PODS)) == 2)
        kubelet.status = running()
        kubelet.look()
        steps = await installing
    assert there(lab, PODS) == {f"{ENDPOINT}-2"}
    assert steps[-1] == "the endpoint is ready"


async def test_a_second_person_does_not_shut_out_the_first(lab: Lab, session: Session) -> None:
    async with cluster(lab):
        await installed(session)
        before = lab.api.store.objects(PODS, NAMESPACE)[0]
        await installed(session, OTHER_KEY)
    assert authorized(lab) == [KEY, OTHER_KEY]
    [pod] = lab.api.store.objects(PODS, NAMESPACE)
    assert pod["metadata"]["uid"] == before["metadata"]["uid"], "nobody's connections are cut for it"
    assert pod["metadata"]["annotations"]["tp2/keys"] > before["metadata"]["annotations"].get("tp2/keys", "0"), (
        "a changed annotation is what makes kubelet look at the ConfigMap at once"
    )


async def test_without_the_right_to_touch_pods_the_second_key_takes_a_minute(lab: Lab, session: Session) -> None:
    async with cluster(lab):
        await installed(session)
        lab.api.forbid("pods", verbs=("patch",))
        steps = await installed(session, OTHER_KEY)
    assert any("within about a minute" in step for step in steps)


async def test_what_people_changed_stays(lab: Lab, session: Session) -> None:
    async with cluster(lab):
        await installed(session)
        lab.api.store.merge(SERVICES, NAMESPACE, ENDPOINT, {"spec": {"type": "LoadBalancer"}})
        await installed(session)
    assert lab.api.store.get(SERVICES, NAMESPACE, ENDPOINT)["spec"]["type"] == "LoadBalancer"


# What is in the way


async def test_an_image_that_cannot_be_pulled(lab: Lab, session: Session) -> None:
    async with cluster(lab, waiting("ErrImagePull", "registry.example/sshd:1: not found")) as kubelet:
        steps: list[str] = []
        refusing = asyncio.create_task(refused(session, steps=steps))
        await eventually(lambda: any("not found" in step for step in steps))
        kubelet.status = waiting("ImagePullBackOff", 'Back-off pulling image "registry.example/sshd:1"')
        kubelet.look()
        error = await refusing
    assert "not found" in error.why, "kubelet says the cause once, and then only that it waits"
    assert "--image" in error.remedy
    assert there(lab, DEPLOYMENTS) == {ENDPOINT}, "what was applied stays: the registry may come back"


async def test_a_pod_that_no_node_takes(lab: Lab, session: Session) -> None:
    message = "0/1 nodes are available: 1 Insufficient memory."
    async with cluster(lab, pending(message)):
        error = await refused(session, timeout=1.0)
    assert message in error.why
    assert "room" in error.remedy


async def test_a_pod_that_waits_for_a_node_gets_the_whole_time(lab: Lab, session: Session) -> None:
    async with cluster(lab, pending("0/1 nodes are available")) as kubelet:
        steps: list[str] = []
        installing = asyncio.create_task(installed(session, patience=0.0, steps=steps))
        # Meanwhile it says what it waits for.
        await eventually(lambda: any("0/1 nodes" in step for step in steps))
        kubelet.status = running()
        kubelet.look()
        assert (await installing)[-1] == "the endpoint is ready"


async def test_a_namespace_whose_policy_forbids_the_pod(lab: Lab, session: Session) -> None:
    message = 'pods "tp2-endpoint-x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot'
    async with cluster(lab, failure=message):
        error = await refused(session)
    assert message in error.why


async def test_a_container_that_keeps_ending(lab: Lab, session: Session) -> None:
    ended = {"terminated": {"exitCode": 127, "reason": "Error", "message": "this image has no sshd"}}
    async with cluster(lab, waiting("CrashLoopBackOff", "back-off 10s", lastState=ended)):
        error = await refused(session)
    assert "this image has no sshd" in error.why
    assert "logs" in error.remedy


async def test_a_cluster_without_controllers(session: Session) -> None:
    error = await refused(session, timeout=0.5)
    assert "no pod was made" in error.why


async def test_missing_rights_are_named_one_by_one_before_anything_is_changed(lab: Lab, session: Session) -> None:
    lab.api.forbid("deployments", verbs=("create", "patch"))
    lab.api.forbid("namespaces", verbs=("create",))
    version = lab.api.store.version
    with pytest.raises(ClusterError) as raised:
        await installed(session)
    assert f'create deployments.apps in the namespace "{NAMESPACE}"' in raised.value.why
    assert f'patch deployments.apps in the namespace "{NAMESPACE}"' in raised.value.why
    assert "create namespaces at the cluster scope" in raised.value.why
    assert "services" not in raised.value.why
    assert "--print" in raised.value.remedy
    assert lab.api.store.version == version


async def test_whoever_may_not_hand_out_rights_still_gets_an_endpoint(lab: Lab, session: Session) -> None:
    lab.api.forbid("clusterroles")
    lab.api.forbid("roles", verbs=("create",))
    async with cluster(lab):
        steps = await installed(session)
        assert len([step for step in steps if "left out" in step]) == 2
        assert there(lab, CLUSTER_ROLES) == there(lab, ROLES) == set()
        await uninstall(session, NAMESPACE)
    assert there(lab, DEPLOYMENTS) == set()


async def test_an_object_that_the_cluster_refuses(lab: Lab, session: Session) -> None:
    lab.api.refuse(403, plural="deployments")
    with pytest.raises(ClusterError) as raised:
        await installed(session)
    assert "Deployment" in raised.value.what


async def test_expired_credentials_are_renewed_on_the_way(lab: Lab, session: Session) -> None:
    async with cluster(lab):
        lab.api.token = "another"
        lab.write()
        await installed(session)
    assert session.login == 2


async def test_an_api_server_that_is_away(lab: Lab, session: Session) -> None:
    await lab.api.stop()
    with pytest.raises(ClusterError, match="cannot reach"):
        await installed(session)


async def test_an_api_server_that_restarts_while_the_pod_is_waited_for(lab: Lab, session: Session) -> None:
    async with cluster(lab, running(ready=False)) as kubelet:
        installing = asyncio.create_task(installed(session))
        await lab.api.watched(2)
        lab.api.cut_watches()
        kubelet.status = running()
        kubelet.look()
        assert (await installing)[-1] == "the endpoint is ready"


# The namespace


async def test_a_namespace_that_was_there_before_is_left_as_it_is(lab: Lab, session: Session) -> None:
    before = lab.api.store.create(NAMESPACES, "", {"metadata": {"name": NAMESPACE, "labels": {"team": "shop"}}})
    lab.api.forbid("namespaces", verbs=("create", "patch", "delete"))
    async with cluster(lab):
        steps = await installed(session)
        assert any("left as it is" in step for step in steps)
        assert lab.api.store.get(NAMESPACES, "", NAMESPACE) == before
        await uninstall(session, NAMESPACE)
    assert lab.api.store.get(NAMESPACES, "", NAMESPACE) == before
    assert there(lab, DEPLOYMENTS) == there(lab, CONFIG_MAPS) == there(lab, CLUSTER_ROLES) == set()


async def test_a_namespace_that_is_being_deleted_is_waited_for_by_the_user(lab: Lab, session: Session) -> None:
    going = {"name": NAMESPACE, "deletionTimestamp": "2026-11-22T10:00:00Z"}
    lab.api.store.create(NAMESPACES, "", {"metadata": going})
    with pytest.raises(ClusterError, match="is being deleted"):
        await installed(session)


# Taking it away


async def test_uninstalling_takes_it_away_whole(lab: Lab, session: Session) -> None:
    before = {resource: there(lab, resource) for resource in BY_KIND.values()}
    async with cluster(lab):
        await installed(session)
        steps: list[str] = []
        await uninstall(session, NAMESPACE, steps.append)
    assert {resource: there(lab, resource) for resource in BY_KIND.values()} == before
    assert f"Namespace {NAMESPACE} deleted" in steps


async def test_uninstalling_leaves_what_others_made_under_our_names(lab: Lab, session: Session) -> None:
    role = {"metadata": {"name": "tp2-user", "labels": {"app.kubernetes.io/managed-by": "Helm"}}, "rules": []}
    lab.api.store.create(CLUSTER_ROLES, "", role)
    lab.api.store.create(NAMESPACES, "", {"metadata": {"name": NAMESPACE}})
    lab.api.store.create(CONFIG_MAPS, NAMESPACE, {"metadata": {"name": AUTHORIZED_KEYS}, "data": {}})
    make_pod(lab.api, NAMESPACE, "somebodys", running(), {"labels": dict(ENDPOINT_LABELS)})
    steps: list[str] = []
    await uninstall(session, NAMESPACE, steps.append)
    assert there(lab, CLUSTER_ROLES) == {"tp2-user"}
    assert there(lab, CONFIG_MAPS) == {AUTHORIZED_KEYS}
    assert there(lab, PODS) == {"somebodys"}
    assert len([step for step in steps if "was not made by tp2" in step]) == 3
    assert steps[-1] == f"there is no endpoint in the namespace {NAMESPACE}"


async def test_another_installations_role_stays_when_one_is_taken_away(lab: Lab, session: Session) -> None:
    async with cluster(lab):
        await installed(session)
        await uninstall(session, "elsewhere")
    assert there(lab, CLUSTER_ROLES) == {"tp2-user"}
    assert there(lab, DEPLOYMENTS) == {ENDPOINT}


def hold_namespaces(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have namespaces terminate as in a real cluster: not at once."""
    delete = lab.api.store.delete

    def held(resource: Resource, namespace: str, name: str) -> Object:
        if resource != NAMESPACES:
            return delete(resource, namespace, name)
        return lab.api.store.merge(
            resource, namespace, name, {"metadata": {"deletionTimestamp": "2026-11-22T10:00:00Z"}}
        )

    monkeypatch.setattr(lab.api.store, "delete", held)


async def test_uninstalling_waits_until_the_namespace_is_gone(
    lab: Lab, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(lab):
        await installed(session)
        hold_namespaces(lab, monkeypatch)
        leaving = asyncio.create_task(uninstall(session, NAMESPACE))
        await eventually(lambda: "deletionTimestamp" in lab.api.store.get(NAMESPACES, "", NAMESPACE)["metadata"])
        await lab.api.watched(1)
        assert not leaving.done()
        monkeypatch.undo()
        lab.api.store.delete(NAMESPACES, "", NAMESPACE)
        async with asyncio.timeout(DEADLINE):
            await leaving


async def test_a_namespace_that_does_not_go_away_is_told(
    lab: Lab, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(lab):
        await installed(session)
        hold_namespaces(lab, monkeypatch)
        with pytest.raises(EndpointError, match="does not go away"):
            await uninstall(session, NAMESPACE, timeout=0.2)


async def test_uninstalling_without_the_right_says_which(lab: Lab, session: Session) -> None:
    async with cluster(lab):
        await installed(session)
        lab.api.forbid("deployments", verbs=("delete",))
        with pytest.raises(ClusterError) as raised:
            await uninstall(session, NAMESPACE)
    assert "delete deployments.apps" in raised.value.what


async def test_nothing_is_left_running(lab: Lab, session: Session) -> None:
    before = asyncio.all_tasks()
    async with cluster(lab, failure="no"):
        await refused(session)
    assert {task for task in asyncio.all_tasks() if "tp2/cluster" in str(task.get_coro())} <= before
    with pytest.raises(StatusError):
        lab.api.store.get(PODS, NAMESPACE, ENDPOINT)
