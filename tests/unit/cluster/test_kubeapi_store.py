"""The sandbox's Kubernetes API keeps objects as a real one does, where a client can tell."""

from __future__ import annotations

import json

import pytest

from tests.unit.cluster.recordings import recorded
from tp2.sandbox.kubeapi_store import NAMESPACES, RESOURCES, Object, StatusError, Store

SERVICES, ENDPOINT_SLICES, _ = RESOURCES


@pytest.fixture
def store() -> Store:
    store = Store()
    for name in ("list-namespaces.json", "list-services.json", "list-endpointslices.json"):
        store.load(recorded(name))
    return store


def service(name: str, **spec: object) -> Object:
    return {"metadata": {"name": name}, "spec": spec}


def test_a_recorded_cluster_comes_out_as_it_went_in(store: Store) -> None:
    page = store.page(SERVICES, None, 0, "")
    names = [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in page["items"]]
    recording = recorded("list-services.json")
    assert names == [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in recording["items"]]
    assert [item["spec"] for item in page["items"]] == [item["spec"] for item in recording["items"]]
    assert page.keys() == recording.keys()
    assert not any("kind" in item for item in page["items"])


def test_pages_are_all_of_one_moment(store: Store) -> None:
    page = store.page(SERVICES, None, 4, "")
    version, names, left = page["metadata"]["resourceVersion"], [], [page["metadata"]["remainingItemCount"]]
    store.create(SERVICES, "shop", service("zz-late"))
    while True:
        names += [item["metadata"]["name"] for item in page["items"]]
        if "continue" not in page["metadata"]:
            break
        page = store.page(SERVICES, None, 4, page["metadata"]["continue"])
        left.append(page["metadata"].get("remainingItemCount"))
        assert page["metadata"]["resourceVersion"] == version
    assert names == [item["metadata"]["name"] for item in recorded("list-services.json")["items"]]
    assert left == [6, 2, None]


def test_a_list_in_progress_expires_with_a_compaction(store: Store) -> None:
    token = store.page(SERVICES, None, 2, "")["metadata"]["continue"]
    store.compact()
    with pytest.raises(StatusError) as caught:
        store.page(SERVICES, None, 2, token)
    recording = json.loads(recorded("error-410-list-continue-expired.json")["body"])
    assert (caught.value.code, caught.value.status["reason"]) == (recording["code"], recording["reason"])


@pytest.mark.parametrize("token", ["garbage", "e30", "bnVsbA", "W10", "ü"])
def test_a_continue_token_that_is_none_is_a_bad_request(store: Store, token: str) -> None:
    with pytest.raises(StatusError) as caught:
        store.page(SERVICES, None, 2, token)
    assert caught.value.code == 400


def test_every_change_is_an_event_with_a_version_of_its_own(store: Store) -> None:
    before = store.version
    created = store.create(SERVICES, "shop", service("new", ports=[{"port": 80}]))
    store.create(ENDPOINT_SLICES, "shop", {"metadata": {"name": "new-1"}, "endpoints": None})
    store.replace(SERVICES, "shop", "new", service("new", ports=[{"port": 81}]))
    store.delete(SERVICES, "shop", "new")
    events = list(store.since(before, SERVICES, "shop"))
    assert [event.type for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    assert [event.version - before for event in events] == [1, 3, 4]
    assert [event.object["metadata"]["resourceVersion"] for event in events] == [str(e.version) for e in events]
    assert {event.object["metadata"]["uid"] for event in events} == {created["metadata"]["uid"]}
    assert {event.object["spec"]["clusterIP"] for event in events} == {created["spec"]["clusterIP"]}
    assert list(store.since(before, SERVICES, "default")) == []


def test_a_replacement_that_changes_nothing_is_no_event(store: Store) -> None:
    store.create(SERVICES, "shop", service("new", ports=[{"port": 80}]))
    before = store.version
    store.replace(SERVICES, "shop", "new", service("new", ports=[{"port": 80}]))
    assert store.version == before


def test_a_replacement_of_an_older_version_is_a_conflict(store: Store) -> None:
    old = store.get(SERVICES, "shop", "single")
    store.replace(SERVICES, "shop", "single", service("single", ports=[{"port": 81}]))
    with pytest.raises(StatusError, match="the object has been modified") as caught:
        store.replace(SERVICES, "shop", "single", old)
    assert caught.value.code == 409


def test_compacted_versions_are_too_old_and_the_current_one_is_not(store: Store) -> None:
    before = store.version
    store.create(SERVICES, "shop", service("new"))
    store.compact()
    assert list(store.since(store.version, SERVICES, None)) == []
    with pytest.raises(StatusError, match="too old resource version") as caught:
        list(store.since(before, SERVICES, None))
    assert caught.value.code == 410


def test_a_long_history_forgets_its_beginning() -> None:
    store = Store()
    for number in range(20_005):
        store.create(NAMESPACES, "", {"metadata": {"name": f"n{number}"}})
    with pytest.raises(StatusError):
        list(store.since(5, NAMESPACES, None))
    assert len(list(store.since(store.version - 10_000, NAMESPACES, None))) == 10_000


def test_services_get_addresses_that_nobody_has(store: Store) -> None:
    addresses = {store.create(SERVICES, "shop", service(f"s{number}"))["spec"]["clusterIP"] for number in range(300)}
    assert len(addresses) == 300
    assert not addresses & {item["spec"].get("clusterIP") for item in recorded("list-services.json")["items"]}


def test_headless_and_external_services_get_none(store: Store) -> None:
    assert store.create(SERVICES, "shop", service("h", clusterIP="None"))["spec"]["clusterIPs"] == ["None"]
    external = store.create(SERVICES, "shop", service("e", type="ExternalName", externalName="example.com"))
    assert "clusterIP" not in external["spec"]


def test_a_namespace_goes_with_what_is_in_it(store: Store) -> None:
    store.delete(NAMESPACES, "", "shop")
    assert store.objects(SERVICES, "shop") == []
    assert store.objects(ENDPOINT_SLICES, "shop") == []


@pytest.mark.parametrize(
    ("namespace", "name", "code"), [("nowhere", "a", 404), ("shop", "single", 409), ("shop", "Bad_Name", 422)]
)
def test_what_cannot_be_created_is_refused(store: Store, namespace: str, name: str, code: int) -> None:
    with pytest.raises(StatusError) as caught:
        store.create(SERVICES, namespace, service(name))
    assert caught.value.code == code


def test_what_does_not_exist_is_not_found(store: Store) -> None:
    with pytest.raises(StatusError, match='services "x" not found'):
        store.get(SERVICES, "shop", "x")
    with pytest.raises(StatusError, match='services "x" not found'):
        store.delete(SERVICES, "shop", "x")


def test_objects_of_a_file_bring_their_namespaces_with_them() -> None:
    store = Store(first_version=1000)
    store.load(
        [
            {"kind": "Service", "metadata": {"name": "web", "namespace": "new"}},
            {"kind": "Namespace", "metadata": {"name": "new", "labels": {"team": "blue"}}},
            {"kind": "Service", "metadata": {"name": "other"}},
        ]
    )
    assert store.get(NAMESPACES, "", "new")["metadata"]["labels"] == {"team": "blue"}
    assert store.get(SERVICES, "default", "other")
    assert store.version > 1000
    with pytest.raises(StatusError, match="has no 'Pod'"):
        store.load([{"kind": "Pod", "metadata": {"name": "web"}}])
