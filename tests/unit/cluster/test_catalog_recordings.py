"""The catalog, fed with what a real API server sent."""

from __future__ import annotations

import pytest

from tests.unit.cluster.recordings import lines, recorded
from tp2.cluster.builder import ENDPOINT_SLICE, NAMESPACE, SERVICE, CatalogBuilder
from tp2.cluster.catalog import Catalog, Port, Service


@pytest.fixture
def builder() -> CatalogBuilder:
    builder = CatalogBuilder()
    builder.replace(SERVICE, None, recorded("list-services.json")["items"])
    builder.replace(ENDPOINT_SLICE, None, recorded("list-endpointslices.json")["items"])
    builder.replace(NAMESPACE, None, recorded("list-namespaces.json")["items"])
    return builder


@pytest.fixture
def catalog(builder: CatalogBuilder) -> Catalog:
    return builder.snapshot()


def addresses(catalog: Catalog, name: str, namespace: str = "shop") -> list[str]:
    return [endpoint.address for endpoint in catalog.ready_endpoints(namespace, name)]


def test_every_recorded_service_is_in_the_catalog(catalog: Catalog) -> None:
    names = ["db", "dual", "ext", "flaky", "flaky-all", "manual", "multi", "single", "slow"]
    assert sorted(catalog.services) == [("default", "kubernetes"), *(("shop", name) for name in names)]


def test_a_service_with_one_port_without_a_name(catalog: Catalog) -> None:
    service = catalog.service("shop", "single")
    assert service is not None
    assert service.ports == (Port("", 80, "TCP"),)
    assert len(service.cluster_ips) == 1
    assert catalog.services_by_address[service.cluster_ips[0]] is service


def test_a_service_with_named_ports_of_both_protocols(catalog: Catalog) -> None:
    service = catalog.service("shop", "multi")
    assert service is not None
    assert service.ports == (Port("http", 80), Port("echo", 9000), Port("uecho", 9001, "UDP"))


def test_a_dual_stack_service_keeps_its_preferred_family_first_and_merges_both_slices(catalog: Catalog) -> None:
    service = catalog.service("shop", "dual")
    assert service is not None
    assert service.cluster_ips == ("fd00:10:96::4a5a", "10.96.90.82")
    assert sorted(addresses(catalog, "dual")) == ["10.244.0.5", "fd00:10:244::5"]


def test_a_headless_service_has_no_address_but_endpoints_with_hostnames_and_target_ports(catalog: Catalog) -> None:
    service = catalog.service("shop", "db")
    assert service is not None
    assert (service.headless, service.cluster_ips) == (True, ())
    endpoints = {endpoint.hostname: endpoint for endpoint in catalog.ready_endpoints("shop", "db")}
    assert {name: endpoint.address for name, endpoint in endpoints.items()} == {
        "db-0": "10.244.0.7",
        "db-1": "10.244.0.2",
        "spare": "10.244.0.6",
    }
    assert endpoints["db-0"].ports == (Port("sql", 9000),)
    assert endpoints["spare"].pod == "shop/db-spare-x1"


def test_a_pod_that_is_not_ready_is_published_only_by_the_service_that_asks_for_it(catalog: Catalog) -> None:
    assert addresses(catalog, "flaky") == []
    assert addresses(catalog, "flaky-all") == ["10.244.0.3"]
    assert [endpoint.ready for endpoint in catalog.endpoints["shop", "flaky"]] == [False]


def test_a_terminating_pod_gets_no_new_clients(catalog: Catalog) -> None:
    assert addresses(catalog, "slow") == []


def test_an_external_name_has_a_target_and_nothing_else(catalog: Catalog) -> None:
    assert catalog.service("shop", "ext") == Service("shop", "ext", external_name="db.example.com")


def test_absent_readiness_means_ready(catalog: Catalog) -> None:
    assert addresses(catalog, "manual") == ["192.0.2.10", "192.0.2.12"]
    assert addresses(catalog, "kubernetes", "default") == ["198.18.5.2"]


def test_an_endpoint_of_several_services_is_found_by_its_address(catalog: Catalog) -> None:
    found = catalog.endpoints_by_address["10.244.0.5"]
    assert [service.name for service, _ in found] == ["dual", "multi", "single"]
    assert {endpoint.pod for _, endpoint in found} == {"shop/web-698f9876f9-8tmf6"}


def test_namespaces_without_services_exist_too(catalog: Catalog) -> None:
    assert catalog.namespaces == {"default", "kube-node-lease", "kube-public", "kube-system", "shop"}
    assert catalog.has_namespace("kube-public")
    assert not catalog.has_namespace("nowhere")


def test_a_service_appears_changes_and_disappears_with_its_events(builder: CatalogBuilder) -> None:
    seen: list[Service | None] = []
    generations: list[int] = [builder.snapshot().generation]
    for event in lines("watch-services-lifecycle.jsonl"):
        builder.apply(SERVICE, event["type"], event["object"])
        catalog = builder.snapshot()
        seen.append(catalog.service("shop", "cart"))
        generations.append(catalog.generation - generations[0])
    created, more_ports, relabelled, relabelled_again, publishing, external, deleted, again, gone, bookmark = seen
    assert created is not None
    assert more_ports is not None
    assert publishing is not None
    assert created.cluster_ips == ("10.96.163.201",)
    assert more_ports.ports == (Port("http", 80), Port("admin", 81))
    assert relabelled == relabelled_again == more_ports
    assert publishing.publish_not_ready
    assert external == Service("shop", "cart", external_name="cart.example.com", publish_not_ready=True)
    assert deleted is None
    assert again is not None
    assert again.cluster_ips == ("10.96.158.62",)
    assert gone is None
    assert bookmark is None
    # Labels and bookmarks are no news to anybody.
    assert generations[1:] == [1, 2, 2, 2, 3, 4, 5, 6, 7, 7]
    assert not {"10.96.163.201", "10.96.158.62"} & builder.snapshot().services_by_address.keys()


def test_readiness_follows_the_probe(builder: CatalogBuilder) -> None:
    states = []
    for event in lines("watch-endpointslices-readiness.jsonl"):
        builder.apply(ENDPOINT_SLICE, event["type"], event["object"])
        states.append((addresses(builder.snapshot(), "flaky"), addresses(builder.snapshot(), "flaky-all")))
    up, down = ["10.244.0.3"], list[str]()
    assert states == [(up, up), (up, up), (up, up), (down, up), (down, up), (up, up)]


def test_scaling_to_nothing_and_back_leaves_the_new_pod_only(builder: CatalogBuilder) -> None:
    counts = []
    for event in lines("watch-endpointslices-scale.jsonl"):
        builder.apply(ENDPOINT_SLICE, event["type"], event["object"])
        catalog = builder.snapshot()
        counts.append(len(catalog.ready_endpoints("shop", "multi")))
        service = event["object"]["metadata"]["labels"]["kubernetes.io/service-name"]
        if event["object"]["endpoints"] is None and service != "dual":
            assert addresses(catalog, service) == []
    assert (max(counts), counts[-1]) == (3, 1)
    assert 0 in counts
    catalog = builder.snapshot()
    assert addresses(catalog, "single") == addresses(catalog, "multi") == ["10.244.0.11"]
    assert "10.244.0.5" not in catalog.endpoints_by_address


def test_a_replaced_pod_keeps_its_hostname_and_changes_its_address(builder: CatalogBuilder) -> None:
    before = {endpoint.hostname: endpoint.address for endpoint in builder.snapshot().ready_endpoints("shop", "db")}
    for event in lines("watch-endpointslices-pod-replaced.jsonl"):
        builder.apply(ENDPOINT_SLICE, event["type"], event["object"])
    after = {endpoint.hostname: endpoint.address for endpoint in builder.snapshot().ready_endpoints("shop", "db")}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"db-0"}
    assert before["db-0"] not in builder.snapshot().endpoints_by_address


def test_a_slice_of_a_thousand_endpoints_joins_the_others_of_its_service(builder: CatalogBuilder) -> None:
    (event,) = lines("large-endpointslice.watch.jsonl")
    builder.apply(ENDPOINT_SLICE, event["type"], event["object"])
    assert len(builder.snapshot().ready_endpoints("shop", "manual")) == 1002


def test_the_pages_of_a_list_are_one_list(catalog: Catalog) -> None:
    builder = CatalogBuilder()
    relist = builder.relist(SERVICE, None)
    for page in lines("list-services-limit-continue.jsonl"):
        relist.page(page["items"])
    relist.finish()
    assert builder.snapshot().services == catalog.services


def test_bookmarks_of_quiet_minutes_change_nothing(builder: CatalogBuilder) -> None:
    before = builder.snapshot()
    for event in lines("watch-services-bookmarks.jsonl"):
        if event["type"] == "BOOKMARK":
            builder.apply(SERVICE, "BOOKMARK", event["object"])
    assert builder.snapshot() is before
