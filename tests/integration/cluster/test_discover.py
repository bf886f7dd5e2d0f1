"""The endpoint is found with the key that it must present, and when it is not there, it is said why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.cluster.conftest import Lab
from tests.integration.cluster.kubelet import HOST_KEY, make_pod, pending, running, waiting
from tp2.cluster.discover import Candidate, LoadBalancer, find, follow, missing_rights
from tp2.cluster.manifest import ENDPOINT, ENDPOINT_LABELS, NAMESPACE, Object
from tp2.cluster.rights import CATALOG_RIGHTS, ENDPOINT_RIGHTS
from tp2.cluster.session import Session
from tp2.errors import ClusterError, EndpointError
from tp2.sandbox.kubeapi_resources import DEPLOYMENTS, NAMESPACES, PODS, SERVICES

OTHER_KEY = HOST_KEY.replace("IGp5", "IHp5")
DEADLINE = 30.0


@pytest.fixture
async def session(lab: Lab) -> AsyncIterator[Session]:
    lab.api.store.create(NAMESPACES, "", {"metadata": {"name": NAMESPACE}})
    session = Session(lab.access())
    await session.open()
    yield session
    await session.close()


def pod(
    lab: Lab, name: str, status: Object | None = None, *, log: str = f"{HOST_KEY} tp2\n", **metadata: Any
) -> Object:
    """A pod of the endpoint."""
    return make_pod(lab.api, NAMESPACE, name, status or running(), {"labels": dict(ENDPOINT_LABELS), **metadata}, log)


def deployment(lab: Lab, **status: Any) -> None:
    lab.api.store.create(DEPLOYMENTS, NAMESPACE, {"metadata": {"name": ENDPOINT}, "spec": {}, "status": status})


def service(lab: Lab, port: int = 22, *ingress: Object) -> None:
    ports = [{"name": "metrics", "port": 9090}, {"name": "ssh", "port": port}]
    status = {"loadBalancer": {"ingress": list(ingress)} if ingress else {}}
    obj = {"metadata": {"name": ENDPOINT}, "spec": {"ports": ports}, "status": status}
    lab.api.store.create(SERVICES, NAMESPACE, obj)


async def not_found(session: Session) -> EndpointError:
    with pytest.raises(EndpointError) as raised:
        await find(session, NAMESPACE)
    return raised.value


async def test_a_ready_pod_is_found_with_its_host_key(lab: Lab, session: Session) -> None:
    made = pod(lab, "one")
    service(lab)
    found = await find(session, NAMESPACE)
    assert found.candidates == (Candidate(NAMESPACE, "one", made["metadata"]["uid"], "10.244.0.9", HOST_KEY),)
    assert found.load_balancers == ()


async def test_every_pod_has_its_own_host_key(lab: Lab, session: Session) -> None:
    pod(lab, "one")
    pod(lab, "two", log=f"{OTHER_KEY}\n")
    keys = {candidate.pod: candidate.host_key for candidate in (await find(session, NAMESPACE)).candidates}
    assert keys == {"one": HOST_KEY, "two": OTHER_KEY}


async def test_the_newest_pod_comes_first(lab: Lab, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, created in (("old", "2026-11-22T10:00:00Z"), ("new", "2026-11-22T11:00:00Z")):
        made = pod(lab, name)
        # The store stamps what it makes; it hands out its own objects.
        monkeypatch.setitem(made["metadata"], "creationTimestamp", created)
    assert [candidate.pod for candidate in (await find(session, NAMESPACE)).candidates] == ["new", "old"]


async def test_pods_that_are_going_or_not_ready_or_not_the_endpoints_are_left_out(lab: Lab, session: Session) -> None:
    pod(lab, "going", deletionTimestamp="2026-11-22T10:00:00Z")
    pod(lab, "unready", running(ready=False))
    pod(lab, "web", labels={"app": "web"})
    pod(lab, "one")
    assert [candidate.pod for candidate in (await find(session, NAMESPACE)).candidates] == ["one"]


@pytest.mark.parametrize(
    ("ingress", "expected"),
    [
        ([{"ip": "203.0.113.7", "ipMode": "VIP"}], [LoadBalancer("203.0.113.7", 2200)]),
        ([{"hostname": "lb.example"}], [LoadBalancer("lb.example", 2200)]),
        (
            [{"ip": "203.0.113.7"}, {"ip": "2001:db8::7"}],
            [LoadBalancer("203.0.113.7", 2200), LoadBalancer("2001:db8::7", 2200)],
        ),
        ([{}], []),
    ],
)
async def test_the_load_balancers_address_is_found(
    lab: Lab, session: Session, ingress: list[Object], expected: list[LoadBalancer]
) -> None:
    pod(lab, "one")
    service(lab, 2200, *ingress)
    assert list((await find(session, NAMESPACE)).load_balancers) == expected


async def test_without_the_right_to_see_the_service_there_is_no_load_balancer(lab: Lab, session: Session) -> None:
    pod(lab, "one")
    service(lab, 22, {"ip": "203.0.113.7"})
    lab.api.forbid("services", except_in=("shop",))
    found = await find(session, NAMESPACE)
    assert len(found.candidates) == 1
    assert found.load_balancers == ()


async def test_no_endpoint_says_how_to_install_one(session: Session) -> None:
    error = await not_found(session)
    assert "no SSH endpoint is installed" in error.what
    assert "`tp2 install`" in error.remedy


async def test_no_endpoint_in_another_namespace_names_it(session: Session) -> None:
    with pytest.raises(EndpointError) as raised:
        await find(session, "elsewhere")
    assert "`tp2 install --namespace elsewhere`" in raised.value.remedy


@pytest.mark.parametrize(
    ("status", "reason", "remedy"),
    [
        (pending("0/3 nodes are available"), "0/3 nodes are available", "room"),
        (waiting("ImagePullBackOff", "manifest unknown"), "manifest unknown", "--image"),
        (waiting("CrashLoopBackOff", ""), "keeps ending", "logs"),
        (running(ready=False), "does not answer yet", "logs"),
    ],
)
async def test_an_endpoint_that_is_not_ready_says_why(
    lab: Lab, session: Session, status: Object, reason: str, remedy: str
) -> None:
    deployment(lab)
    pod(lab, "one", status)
    error = await not_found(session)
    assert "not ready" in error.what
    assert reason in error.why
    assert remedy in error.remedy


async def test_an_endpoint_whose_pod_may_not_be_made_says_why(lab: Lab, session: Session) -> None:
    message = "exceeded quota: compute"
    deployment(lab, conditions=[{"type": "ReplicaFailure", "status": "True", "message": message}])
    assert message in (await not_found(session)).why


async def test_an_endpoint_without_pods_is_installed_all_the_same(lab: Lab, session: Session) -> None:
    deployment(lab)
    assert "it has no pod" in (await not_found(session)).why
    lab.api.forbid("deployments")
    assert "it has no pod" in (await not_found(session)).why


@pytest.mark.parametrize("log", ["", "Segmentation fault\n", "ssh-ed25519 not-a-key\n", f"x{HOST_KEY}\n"])
async def test_a_pod_that_did_not_print_its_host_key_is_not_trusted(lab: Lab, session: Session, log: str) -> None:
    pod(lab, "one", log=log)
    error = await not_found(session)
    assert "host key" in error.what
    assert f"kubectl -n {NAMESPACE} delete pod one" in error.remedy


async def test_a_pod_without_a_host_key_does_not_hide_the_others(lab: Lab, session: Session) -> None:
    pod(lab, "one", log="")
    pod(lab, "two")
    assert [candidate.pod for candidate in (await find(session, NAMESPACE)).candidates] == ["two"]


async def test_whoever_may_not_look_is_told_whom_to_ask(lab: Lab, session: Session) -> None:
    pod(lab, "one")
    lab.api.forbid("pods")
    with pytest.raises(ClusterError) as raised:
        await find(session, NAMESPACE)
    assert 'cannot list resource "pods"' in raised.value.why
    assert "--remote" in raised.value.remedy


async def test_whoever_may_not_read_the_log_is_told_so(lab: Lab, session: Session) -> None:
    pod(lab, "one")
    lab.api.forbid("pods/log")
    with pytest.raises(ClusterError, match="get pods/log"):
        await find(session, NAMESPACE)


async def test_expired_credentials_are_renewed(lab: Lab, session: Session) -> None:
    pod(lab, "one")
    lab.api.token = "another"
    lab.write()
    assert len((await find(session, NAMESPACE)).candidates) == 1


async def test_an_api_server_that_is_away_is_told(lab: Lab, session: Session) -> None:
    await lab.api.stop()
    with pytest.raises(ClusterError, match="cannot reach"):
        await find(session, NAMESPACE)


async def test_a_replaced_pod_is_noticed_at_once(lab: Lab, session: Session) -> None:
    pod(lab, "one")
    changes = asyncio.Event()
    following = asyncio.create_task(follow(session, NAMESPACE, changes.set))
    try:
        await lab.api.watched(1)
        await asyncio.wait_for(changes.wait(), DEADLINE)
        changes.clear()
        pod(lab, "two")
        await asyncio.wait_for(changes.wait(), DEADLINE)
        await lab.api.kill()
        changes.clear()
        await lab.api.start()
        # Nobody knows what happened meanwhile.
        await asyncio.wait_for(changes.wait(), DEADLINE)
        async with asyncio.timeout(DEADLINE):
            await lab.api.watched(1)
        changes.clear()
        lab.api.store.delete(PODS, NAMESPACE, "one")
        await asyncio.wait_for(changes.wait(), DEADLINE)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_following_goes_on_with_new_credentials(lab: Lab, session: Session) -> None:
    lab.api.token = "another"
    lab.write()
    following = asyncio.create_task(follow(session, NAMESPACE, lambda: None))
    try:
        async with asyncio.timeout(DEADLINE):
            await lab.api.watched(1)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


# Rights


async def test_with_all_rights_nothing_is_missing(session: Session) -> None:
    assert await missing_rights(session, NAMESPACE) == []


async def test_missing_rights_are_named_as_rbac_does(lab: Lab, session: Session) -> None:
    lab.api.forbid("services", verbs=("watch",))
    lab.api.forbid("endpointslices", verbs=("list",))
    lab.api.forbid("pods/portforward", verbs=("create",))
    assert await missing_rights(session, NAMESPACE) == [
        "watch services at the cluster scope",
        "list endpointslices.discovery.k8s.io at the cluster scope",
        f'create pods/portforward in the namespace "{NAMESPACE}"',
    ]


async def test_rights_are_asked_for_where_they_are_used(lab: Lab, session: Session) -> None:
    lab.api.forbid("services", except_in=("shop", NAMESPACE))
    assert await missing_rights(session, NAMESPACE, ["shop"]) == []
    assert await missing_rights(session, NAMESPACE, ["shop", "office"]) == [
        'list services in the namespace "office"',
        'watch services in the namespace "office"',
    ]


async def test_rights_cannot_be_asked_for_while_the_api_server_is_away(lab: Lab, session: Session) -> None:
    await lab.api.stop()
    with pytest.raises(ClusterError, match="cannot reach"):
        await missing_rights(session, NAMESPACE)


async def test_exactly_the_verbs_that_are_used_are_asked_for(lab: Lab, session: Session) -> None:
    await missing_rights(session, NAMESPACE)
    assert len(lab.api.requests) == len(CATALOG_RIGHTS) + len(ENDPOINT_RIGHTS)
    lab.api.requests.clear()
    lab.api.forbid("namespaces")
    assert await missing_rights(session, NAMESPACE) == [], "tp2 works without"


async def test_finding_and_following_need_no_other_right(lab: Lab, session: Session) -> None:
    """All that is asked of the API is in the table that the Role is made of."""
    deployment(lab)
    with pytest.raises(EndpointError):
        await find(session, NAMESPACE)
    pod(lab, "one")
    service(lab)
    await find(session, NAMESPACE)
    following = asyncio.create_task(follow(session, NAMESPACE, lambda: None))
    await lab.api.watched(1)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    used = {right_of(request) for request in lab.api.requests}
    assert used == {(right.verb, right.resource) for right in ENDPOINT_RIGHTS} - {
        # Those are the port-forward's.
        ("get", "pods/portforward"),
        ("create", "pods/portforward"),
    }


def right_of(request: str) -> tuple[str, str]:
    """The verb and the resource of a request, as RBAC calls them."""
    method, _, target = request.partition(" ")
    path, _, query = target.partition("?")
    words = path.partition(f"/namespaces/{NAMESPACE}/")[2].split("/")
    resource = f"{words[0]}/{words[2]}" if len(words) == 3 else words[0]
    assert method == "GET"
    if len(words) > 1:
        return "get", resource
    return ("watch" if "watch=1" in query else "list"), resource
