"""The catalog follows the cluster, whatever the API server and the network do in between."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.integration.cluster.conftest import (
    DEADLINE,
    PACE,
    Lab,
    eventually,
    service,
    shop,
)
from tests.unit.cluster.recordings import recorded
from tp2.cluster import stream
from tp2.cluster.kubeconfig import load
from tp2.cluster.stream import Pace
from tp2.cluster.watch import Cluster
from tp2.errors import ClusterError
from tp2.sandbox import kubeapi_server
from tp2.sandbox.kubeapi_resources import ENDPOINT_SLICES, NAMESPACES, SERVICES, Object
from tp2.sandbox.kubeapi_rights import USER
from tp2.sandbox.kubeapi_store import Store
from tp2.sandbox.kubeapi_watch import Watch

LISTS, WATCHES = "GET /api/v1/services?limit=", "GET /api/v1/services?watch="


def count(lab: Lab, what: str) -> int:
    return sum(request.startswith(what) for request in lab.api.requests)


async def test_what_is_there_at_the_start_is_in_the_catalog(lab: Lab) -> None:
    for name in ("list-namespaces.json", "list-services.json", "list-endpointslices.json"):
        lab.api.store.load(recorded(name))
    async with lab.followed(pace=Pace(page=3)) as followed:
        catalog = followed.cluster.catalog
        assert followed.published == [catalog]
        assert len(catalog.services) == 11
        assert catalog.has_namespace("kube-node-lease")
        assert [e.address for e in catalog.ready_endpoints("shop", "multi")] == ["10.244.0.5"]
        status: dict[str, object] = {**followed.cluster.status()}
        as_of = status.pop("as_of")
        assert isinstance(as_of, float)
        assert time.time() - as_of < DEADLINE
        assert status == {
            "context": "sandbox",
            "server": lab.api.url,
            "synced": True,
            "scope": [],
            "services": 11,
            "namespaces": 5,
            "last_error": None,
        }


async def test_an_empty_cluster_is_known_to_be_empty(lab: Lab) -> None:
    lab.api.forbid("namespaces")
    cluster = Cluster(lab.access(), namespaces=["nothing-there"])
    assert cluster.catalog.generation == 0
    await cluster.start(DEADLINE)
    assert cluster.catalog.generation > 0
    assert cluster.catalog.services == {}
    assert cluster.status()["synced"]
    await cluster.close()


async def test_services_appear_change_and_disappear(lab: Lab) -> None:
    async with lab.followed() as followed:
        store = lab.api.store
        store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")
        store.replace(SERVICES, "shop", "new", {**service("new"), "spec": {"ports": [{"port": 81}]}})
        store.delete(SERVICES, "shop", "web")
        await followed.has("new")
        new = followed.cluster.catalog.service("shop", "new")
        assert new is not None
        assert new.ports[0].port == 81
        generations = [catalog.generation for catalog in followed.published]
        assert generations == sorted(set(generations))


async def test_endpoints_and_namespaces_are_followed_too(lab: Lab) -> None:
    async with lab.followed() as followed:
        label = {"kubernetes.io/service-name": "web"}
        lab.api.store.create(
            ENDPOINT_SLICES,
            "shop",
            {"metadata": {"name": "web-1", "labels": label}, "endpoints": [{"addresses": ["10.0.0.1"]}]},
        )
        await eventually(lambda: len(followed.cluster.catalog.ready_endpoints("shop", "web")) == 1)
        lab.api.store.create(NAMESPACES, "", {"metadata": {"name": "empty"}})
        await eventually(lambda: followed.cluster.catalog.has_namespace("empty"))


async def test_events_that_come_together_are_published_together(lab: Lab) -> None:
    async with lab.followed() as followed:
        await lab.api.watched(3)
        metadata = {"namespace": "shop", "resourceVersion": str(lab.api.store.version)}
        objects = [{"metadata": {"name": name, **metadata}, "spec": {}} for name in ("a", "b", "c")]
        lab.api.inject(b"".join(json.dumps({"type": "ADDED", "object": obj}).encode() + b"\n" for obj in objects))
        await followed.has("web", "a", "b", "c")
        assert len(followed.published) == 2


async def test_a_watch_that_ends_properly_goes_on_from_where_it_was(lab: Lab) -> None:
    async with lab.followed() as followed:
        lab.api.store.create(SERVICES, "shop", service("heard"))
        await followed.has("web", "heard")
        lab.api.end_watches()
        lab.api.store.create(SERVICES, "shop", service("in-between"))
        await followed.has("web", "heard", "in-between")
        assert count(lab, LISTS) == 1
        assert followed.cluster.status()["synced"]


async def test_a_watch_ends_after_timeout_seconds_and_that_is_no_trouble(lab: Lab) -> None:
    async with lab.followed(pace=Pace(watch=1.0)) as followed:
        await eventually(lambda: count(lab, WATCHES) >= 3)
        lab.api.store.create(SERVICES, "shop", service("late"))
        await followed.has("web", "late")
        assert followed.cluster.status()["last_error"] is None


async def test_a_watch_that_is_cut_in_the_middle_of_a_line_loses_nothing(lab: Lab) -> None:
    async with lab.followed() as followed:
        lab.api.store.create(SERVICES, "shop", service("heard"))
        await followed.has("web", "heard")
        lab.api.cut_watches(b'{"type":"ADDED","object":{"kind":"Service","metadata":{"name":"ha')
        lab.api.store.create(SERVICES, "shop", service("half"))
        await followed.has("web", "heard", "half")
        assert count(lab, LISTS) == 1


async def test_a_watch_that_said_nothing_is_not_trusted(lab: Lab) -> None:
    async with lab.followed() as followed:
        await lab.api.watched(3)
        lab.api.cut_watches()
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")
        assert count(lab, LISTS) == 2


async def test_a_version_that_is_too_old_is_listed_anew_and_what_was_deleted_is_gone(lab: Lab) -> None:
    async with lab.followed() as followed:
        lab.api.store.create(SERVICES, "shop", service("heard"))
        await followed.has("web", "heard")
        # All of this happens before the client can return.
        lab.api.cut_watches()
        lab.api.store.delete(SERVICES, "shop", "web")
        lab.api.store.create(SERVICES, "shop", service("new"))
        lab.api.store.compact()
        await followed.has("heard", "new")
        assert count(lab, LISTS) == 2
        assert await followed.status(synced=True) == ""


@pytest.mark.parametrize("status", [400, 404, 410, 500])
async def test_a_watch_that_is_refused_is_listed_anew(lab: Lab, status: int) -> None:
    async with lab.followed() as followed:
        lab.api.store.create(SERVICES, "shop", service("heard"))
        await followed.has("web", "heard")
        lab.api.refuse(status, plural="services")
        lab.api.end_watches()
        lab.api.store.delete(SERVICES, "shop", "web")
        await followed.has("heard")
        assert count(lab, LISTS) == 2


async def test_a_list_that_expires_between_its_pages_is_begun_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.api.store = shop(*(f"s{number}" for number in range(5)))
    page, expired = Store.page, list[str]()

    def expiring(store: Store, resource: Any, namespace: str | None, limit: int, token: str, *rest: Any) -> Object:
        if token and not expired:
            expired.append(token)
            store.delete(SERVICES, "shop", "s0")
            store.compact()
        return page(store, resource, namespace, limit, token, *rest)

    monkeypatch.setattr(Store, "page", expiring)
    async with lab.followed(pace=Pace(page=2)) as followed:
        await followed.has("s1", "s2", "s3", "s4")
        assert len(expired) == 1


async def test_a_server_that_comes_back_as_another_one_is_believed(lab: Lab) -> None:
    lab.api.store = shop("web", *(f"s{number}" for number in range(20)))
    async with lab.followed() as followed:
        await lab.api.watched(3)
        await lab.api.kill()
        await followed.status(synced=False)
        assert followed.cluster.catalog.service("shop", "web") is not None
        lab.api.store = shop("other")
        await lab.api.start()
        await followed.has("other")
        await followed.status(synced=True)


async def test_a_version_that_the_server_never_heard_of_costs_one_watch(lab: Lab) -> None:
    lab.api.store = shop("web", *(f"s{number}" for number in range(20)))
    async with lab.followed(pace=Pace(watch=2.0)) as followed:
        lab.api.store.create(SERVICES, "shop", service("heard"))
        await eventually(lambda: ("shop", "heard") in followed.cluster.catalog.services)
        old, lab.api.store = lab.api.store, shop("other")
        lab.api.end_watches()
        await followed.has("other")
        assert old.version > lab.api.store.version


async def test_an_outage_keeps_the_last_catalog_and_says_why(lab: Lab) -> None:
    async with lab.followed() as followed:
        await lab.api.watched(3)
        await lab.api.kill()
        error = await followed.status(synced=False)
        assert error == f"cannot reach the Kubernetes API at {lab.api.url}: connection refused"
        lab.api.store.create(SERVICES, "shop", service("new"))
        lab.api.store.delete(SERVICES, "shop", "web")
        assert ("shop", "web") in followed.cluster.catalog.services
        await lab.api.start()
        await followed.has("new")
        assert await followed.status(synced=True) == ""


async def test_an_object_of_a_megabyte_comes_through_list_and_watch(lab: Lab) -> None:
    large = {"annotations": {"notes": "x" * 1024 * 1024}}
    lab.api.store.create(SERVICES, "shop", service("large-at-the-start", **large))
    async with lab.followed() as followed:
        await followed.has("web", "large-at-the-start")
        lab.api.store.create(SERVICES, "shop", service("large", **large))
        await followed.has("web", "large-at-the-start", "large")
        assert count(lab, LISTS) == 1


async def test_a_line_without_an_end_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LINE_LIMIT", 1024 * 1024)
    async with lab.followed() as followed:
        await lab.api.watched(3)
        lab.api.inject(b"x" * (1024 * 1024 + 1))
        await eventually(lambda: count(lab, LISTS) == 2)
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")


@pytest.mark.parametrize(
    "garbage",
    [
        b"nonsense\n",
        b"\xff\xfe\n",
        b"[1]\n",
        b"{}\n",
        b"[" * 100_000 + b"\n",
        b'{"type":"ADDED"}\n',
        b'{"type":"ADDED","object":null}\n',
        b'{"type":7,"object":{"metadata":{"resourceVersion":"9"}}}\n',
        b'{"type":"ERROR","object":"?"}\n',
        b'{"type":"ERROR","object":{"code":500,"message":"etcd is ill"}}\n',
    ],
)
async def test_garbage_in_a_watch_is_survived(lab: Lab, garbage: bytes) -> None:
    async with lab.followed() as followed:
        await lab.api.watched(3)
        lab.api.inject(garbage)
        await eventually(lambda: count(lab, LISTS) == 2)
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")


async def test_an_event_of_an_unknown_type_is_passed_over(lab: Lab) -> None:
    async with lab.followed() as followed:
        await lab.api.watched(3)
        version = lab.api.store.version
        lab.api.inject(f'{{"type":"NEWS","object":{{"metadata":{{"resourceVersion":"{version}"}}}}}}\n'.encode())
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")
        assert count(lab, LISTS) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(lab: Lab, status: int) -> None:
    clock = asyncio.get_running_loop().time
    async with lab.followed() as followed:
        lab.api.store.create(SERVICES, "shop", service("heard"))
        await followed.has("web", "heard")
        lab.api.refuse(status, retry_after=1, plural="services")
        refused_at = clock()
        lab.api.end_watches()
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "heard", "new")
        assert clock() - refused_at >= 1.0
        assert count(lab, LISTS) == 1


async def test_a_token_that_is_no_longer_accepted_is_replaced_by_the_one_in_the_kubeconfig(lab: Lab) -> None:
    async with lab.followed() as followed:
        await lab.api.watched(3)
        lab.api.token = "another"
        lab.api.end_watches()
        error = await followed.status(synced=False)
        assert "does not accept the credentials of context 'sandbox'" in error
        assert ("shop", "web") in followed.cluster.catalog.services
        lab.write()
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")
        assert await followed.status(synced=True) == ""


async def test_a_401_in_the_middle_of_a_watch_is_a_new_login_and_loses_nothing(lab: Lab) -> None:
    async with lab.followed() as followed:
        lab.api.store.create(SERVICES, "shop", service("heard"))
        await followed.has("web", "heard")
        lab.api.token = "another"
        lab.write()
        refusal = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "Unauthorized", "code": 401}
        lab.api.inject(json.dumps({"type": "ERROR", "object": refusal}).encode() + b"\n")
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "heard", "new")
        assert count(lab, LISTS) == 1
        assert followed.cluster.session.login == 2


async def test_all_streams_share_one_new_login(lab: Lab, tmp_path: Any) -> None:
    logins = tmp_path / "logins"
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    program = f"echo >> {logins}; cat {tmp_path}/credential"
    document = lab.api.kubeconfig("shop")
    plugin = {"apiVersion": credential["apiVersion"], "command": "sh", "args": ["-c", program]}
    document["users"][0]["user"] = {"exec": plugin}

    def issue(token: str) -> None:
        lab.api.token = token
        (tmp_path / "credential").write_text(json.dumps({**credential, "status": {"token": token}}))

    issue("first")
    lab.path.write_text(json.dumps(document))
    async with lab.followed(access=load(lab.path, None)) as followed:
        await lab.api.watched(3)
        issue("second")
        lab.api.end_watches()
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")
        await lab.api.watched(3)
        assert len(logins.read_text().splitlines()) == 2


async def test_rights_that_are_taken_away_and_given_back(lab: Lab) -> None:
    async with lab.followed() as followed:
        await lab.api.watched(3)
        lab.api.forbid("services")
        lab.api.end_watches()
        error = await followed.status(synced=False)
        assert f'services is forbidden: User "{USER}" cannot' in error
        lab.api.allow("services")
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")


async def test_namespaces_that_may_not_be_listed_are_known_by_their_services(lab: Lab) -> None:
    lab.api.forbid("namespaces")
    async with lab.followed() as followed:
        assert followed.cluster.catalog.namespaces == {"shop"}
        assert followed.cluster.status()["synced"]


async def test_chosen_namespaces_need_no_right_to_the_others(lab: Lab) -> None:
    store = lab.api.store
    for namespace in ("one", "two"):
        store.create(NAMESPACES, "", {"metadata": {"name": namespace}})
        store.create(SERVICES, namespace, service("web"))
    for plural in ("services", "endpointslices", "namespaces"):
        lab.api.forbid(plural, except_in=("shop", "one"))
    async with lab.followed("shop", "one", "shop") as followed:
        assert sorted(followed.cluster.catalog.services) == [("one", "web"), ("shop", "web")]
        await lab.api.watched(4)
        store.create(SERVICES, "two", service("unseen"))
        store.delete(SERVICES, "one", "web")
        await followed.has(namespace="one")
        assert sorted(followed.cluster.catalog.services) == [("shop", "web")]


async def test_a_server_that_falls_silent_is_noticed_and_its_return_too(lab: Lab) -> None:
    async with lab.followed(pace=Pace(connect=0.5, answer=0.5)) as followed:
        await lab.api.watched(3)
        lab.api.fall_silent()
        lab.api.cut_watches()
        assert "it does not answer" in await followed.status(synced=False)
        lab.api.fall_silent(False)
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")


async def test_a_watch_that_outlives_its_time_is_cut(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(Watch):
        async def run(self, response: Any) -> bool:
            await asyncio.sleep(DEADLINE * 2)
            return False

    monkeypatch.setattr(kubeapi_server, "Watch", Endless)
    async with lab.followed(pace=Pace(watch=1.0, margin=0.5)) as followed:
        await lab.api.watched(3)
        monkeypatch.undo()
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")


async def test_closing_ends_every_connection_and_every_change(lab: Lab) -> None:
    async with lab.followed() as followed:
        await lab.api.watched(3)
    await eventually(lambda: not lab.api.connections)
    published = len(followed.published)
    lab.api.store.create(SERVICES, "shop", service("new"))
    await followed.cluster.close()
    assert len(followed.published) == published
    assert not followed.cluster.status()["synced"]


async def test_a_cluster_that_was_never_started_can_be_closed(lab: Lab) -> None:
    await Cluster(lab.access()).close()


def test_it_works_with_uvloop(lab_on_any_loop: Any) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def follow() -> None:
        async with lab_on_any_loop() as lab, lab.followed(pace=PACE) as followed:
            lab.api.store.create(SERVICES, "shop", service("new"))
            await followed.has("web", "new")
            lab.api.cut_watches(b"{")
            lab.api.store.create(SERVICES, "shop", service("newer"))
            await followed.has("web", "new", "newer")

    uvloop.run(follow())


async def test_while_the_api_is_away_it_is_known_how_old_the_catalog_is(lab: Lab) -> None:
    async with lab.followed() as followed:
        await lab.api.watched(3)
        await lab.api.kill()
        before = time.time()
        await followed.status(synced=False)
        as_of = followed.cluster.status()["as_of"]
        assert as_of is not None
        assert as_of <= before
        assert ("shop", "web") in followed.cluster.catalog.services
        await lab.api.start()
        await followed.status(synced=True)
        now = followed.cluster.status()["as_of"]
        assert now is not None
        assert now > before


async def test_whoever_may_list_in_the_contexts_namespace_only_gets_that(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.api.forbid("services", except_in=("shop",))
    lab.api.forbid("endpointslices", except_in=("shop",))
    async with lab.followed() as followed:
        assert followed.cluster.status()["scope"] == ["shop"]
        await followed.has("web")
    assert "only the namespace 'shop' is known" in caplog.text
    assert 'cannot list resource "services"' in caplog.text or "endpointslices" in caplog.text


async def test_whoever_may_list_nowhere_is_told_what_is_missing_over_the_whole_cluster(lab: Lab) -> None:
    lab.api.forbid("services")
    cluster = Cluster(lab.access())
    with pytest.raises(ClusterError, match="services in all namespaces may not be listed"):
        await cluster.start(DEADLINE)
