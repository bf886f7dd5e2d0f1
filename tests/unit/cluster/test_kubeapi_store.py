"""The sandbox's Kubernetes API keeps objects as a real one does, where a client can tell."""

from __future__ import annotations

import json

import pytest

from tests.unit.cluster.recordings import recorded
from tp2.sandbox.kubeapi_resources import (
    CLUSTER_ROLES,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    NAMESPACES,
    PODS,
    SERVICES,
    Object,
    StatusError,
)
from tp2.sandbox.kubeapi_selectors import read_selector
from tp2.sandbox.kubeapi_store import Store


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
    with pytest.raises(StatusError, match="has no 'Job'"):
        store.load([{"kind": "Job", "metadata": {"name": "web"}}])


def pod(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}, "spec": {}}


def test_a_merge_changes_what_it_names_and_leaves_the_rest(store: Store) -> None:
    store.create(PODS, "shop", {**pod("web-0", app="web", old="yes"), "status": {"phase": "Running"}})
    merged = store.merge(PODS, "shop", "web-0", pod("web-0", app="blog") | {"spec": {"nodeName": "n"}})
    assert merged["metadata"]["labels"] == {"app": "blog", "old": "yes"}
    assert (merged["spec"], merged["status"]) == ({"nodeName": "n"}, {"phase": "Running"})
    labels = {"labels": {"old": None}}
    assert store.merge(PODS, "shop", "web-0", {"metadata": labels})["metadata"]["labels"] == {"app": "blog"}
    with pytest.raises(StatusError, match='pods "web-1" not found'):
        store.merge(PODS, "shop", "web-1", pod("web-1"))


def test_a_deployment_counts_the_changes_of_its_spec(store: Store) -> None:
    store.create(DEPLOYMENTS, "shop", {"metadata": {"name": "web"}, "spec": {"replicas": 1}})
    status = {"status": {"readyReplicas": 1}}
    assert store.merge(DEPLOYMENTS, "shop", "web", status)["metadata"]["generation"] == 1
    changed = store.merge(DEPLOYMENTS, "shop", "web", {"spec": {"replicas": 2}})
    assert (changed["metadata"]["generation"], changed["status"]) == (2, {"readyReplicas": 1})


def test_errors_about_another_group_name_it(store: Store) -> None:
    with pytest.raises(StatusError, match=r'deployments\.apps "x" not found') as caught:
        store.get(DEPLOYMENTS, "shop", "x")
    assert caught.value.status["details"] == {"name": "x", "group": "apps", "kind": "deployments"}
    store.create(CLUSTER_ROLES, "", {"metadata": {"name": "system:tp2.user"}})
    with pytest.raises(
        StatusError, match=r'clusterroles\.rbac\.authorization\.k8s\.io "system:tp2.user" already exists'
    ):
        store.create(CLUSTER_ROLES, "", {"metadata": {"name": "system:tp2.user"}})


@pytest.mark.parametrize(
    ("labels", "fields", "names"),
    [
        ("", "", ["a", "b", "c"]),
        ("app=web", "", ["a", "b"]),
        ("app==web,tier!=front", "", ["b"]),
        ("tier", "", ["a"]),
        ("!tier", "", ["b", "c"]),
        ("app!=web", "", ["c"]),
        ("", "metadata.name=b", ["b"]),
        ("app=web", "metadata.name!=b,metadata.namespace=shop", ["a"]),
    ],
)
def test_selectors_select(store: Store, labels: str, fields: str, names: list[str]) -> None:
    for obj in (pod("a", app="web", tier="front"), pod("b", app="web"), pod("c")):
        store.create(PODS, "shop", obj)
    selector = read_selector(labels, fields)
    page = store.page(PODS, "shop", 1, "", selector)
    found = [item["metadata"]["name"] for item in page["items"]]
    while token := page["metadata"].get("continue"):
        page = store.page(PODS, "shop", 1, token, selector)
        found += [item["metadata"]["name"] for item in page["items"]]
    assert found == names


@pytest.mark.parametrize(("labels", "fields"), [("a===b", ""), ("!a=b", ""), ("a in (b)", ""), ("", "spec.nothing=1")])
def test_selectors_that_cannot_be_read_are_bad_requests(labels: str, fields: str) -> None:
    with pytest.raises(StatusError) as caught:
        read_selector(labels, fields)
    assert caught.value.code == 400


def test_a_watch_that_selects_sees_what_begins_and_ceases_to_match(store: Store) -> None:
    before = store.version
    for app in ("web", "blog", "blog", "web"):
        obj = pod("a", app=app)
        _ = store.replace(PODS, "shop", "a", obj) if store.has(PODS, "shop", "a") else store.create(PODS, "shop", obj)
    store.delete(PODS, "shop", "a")
    events = list(store.since(before, PODS, None, read_selector("app=web", "")))
    assert [event.type for event in events] == ["ADDED", "DELETED", "ADDED", "DELETED"]
    assert events[1].object["metadata"]["labels"] == {"app": "web"}
    assert [int(event.object["metadata"]["resourceVersion"]) - before for event in events] == [1, 2, 3, 4]
