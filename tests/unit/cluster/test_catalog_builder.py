"""What the catalog makes of objects that a well-kept cluster rarely has, and of changes in an unusual order."""

from __future__ import annotations

from typing import Any

import pytest

from tp2.cluster.builder import ENDPOINT_SLICE, NAMESPACE, SERVICE, CatalogBuilder
from tp2.cluster.catalog import Catalog, Endpoint, Port, Service

Object = dict[str, Any]


def service(name: str, namespace: str = "shop", **spec: Any) -> Object:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def part(name: str, of: str, *endpoints: Object, namespace: str = "shop", **fields: Any) -> Object:
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": of}},
        "endpoints": list(endpoints),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        **fields,
    }


def endpoint(*addresses: str, **fields: Any) -> Object:
    return {"addresses": list(addresses), **fields}


def catalog_of(*, services: list[Any] | None = None, slices: list[Any] | None = None) -> Catalog:
    builder = CatalogBuilder()
    builder.replace(SERVICE, None, services or [])
    builder.replace(ENDPOINT_SLICE, None, slices or [])
    return builder.snapshot()


def test_a_snapshot_never_changes() -> None:
    builder = CatalogBuilder()
    builder.apply(SERVICE, "ADDED", service("web", clusterIP="10.96.0.1"))
    builder.apply(ENDPOINT_SLICE, "ADDED", part("web-1", "web", endpoint("10.0.0.1")))
    first = builder.snapshot()
    kept = Catalog(
        first.generation,
        dict(first.services),
        dict(first.endpoints),
        first.namespaces,
        dict(first.services_by_address),
        dict(first.endpoints_by_address),
    )
    builder.apply(SERVICE, "MODIFIED", service("web", clusterIP="10.96.0.2"))
    builder.apply(ENDPOINT_SLICE, "MODIFIED", part("web-1", "web", endpoint("10.0.0.2")))
    second = builder.snapshot()
    builder.apply(SERVICE, "DELETED", service("web"))
    assert builder.snapshot().services == {}
    assert first == kept
    assert set(second.services_by_address) == {"10.96.0.2"}
    assert set(second.endpoints_by_address) == {"10.0.0.2"}


def test_nothing_new_means_the_same_snapshot() -> None:
    builder = CatalogBuilder()
    builder.apply(SERVICE, "ADDED", service("web", clusterIP="10.96.0.1"))
    first = builder.snapshot()
    changed = service("web", clusterIP="10.96.0.1", sessionAffinity="ClientIP")
    changed["metadata"]["labels"] = {"team": "blue"}
    builder.apply(SERVICE, "MODIFIED", changed)
    builder.apply(SERVICE, "DELETED", service("never-was"))
    builder.apply(ENDPOINT_SLICE, "ADDED", part("x", "a-service-nobody-made", endpoint("10.0.0.1")))
    assert builder.snapshot() is first


def test_endpoints_that_come_before_their_service_appear_with_it() -> None:
    builder = CatalogBuilder()
    builder.apply(ENDPOINT_SLICE, "ADDED", part("web-1", "web", endpoint("10.0.0.1")))
    assert builder.snapshot().endpoints == {}
    assert builder.snapshot().endpoints_by_address == {}
    builder.apply(SERVICE, "ADDED", service("web", clusterIP="None"))
    assert builder.snapshot().ready_endpoints("shop", "web") == (Endpoint("10.0.0.1", (Port("http", 8080),)),)


def test_endpoints_go_with_their_service_and_stay_with_the_others_of_the_pod() -> None:
    services = [service("a", clusterIP="None"), service("b", clusterIP="None")]
    slices = [part("a-1", "a", endpoint("10.0.0.1")), part("b-1", "b", endpoint("10.0.0.1"))]
    builder = CatalogBuilder()
    builder.replace(SERVICE, None, services)
    builder.replace(ENDPOINT_SLICE, None, slices)
    assert [s.name for s, _ in builder.snapshot().endpoints_by_address["10.0.0.1"]] == ["a", "b"]
    builder.apply(SERVICE, "DELETED", services[0])
    assert [s.name for s, _ in builder.snapshot().endpoints_by_address["10.0.0.1"]] == ["b"]


def test_the_service_found_by_an_endpoints_address_is_the_service_as_it_is_now() -> None:
    builder = CatalogBuilder()
    builder.apply(ENDPOINT_SLICE, "ADDED", part("a-1", "a", endpoint("10.0.0.1")))
    for port in (80, 81):
        builder.apply(SERVICE, "MODIFIED", service("a", clusterIP="None", ports=[{"port": port}]))
        ((found, _),) = builder.snapshot().endpoints_by_address["10.0.0.1"]
        assert found.ports == (Port("", port),)


@pytest.mark.parametrize("ready", [(False, True), (True, False)])
def test_an_endpoint_in_two_slices_is_one_and_ready_if_either_says_so(ready: tuple[bool, bool]) -> None:
    slices = [
        part("web-1", "web", endpoint("10.0.0.1", conditions={"ready": ready[0]})),
        part("web-2", "web", endpoint("10.0.0.1", conditions={"ready": ready[1]}), endpoint("10.0.0.2")),
    ]
    catalog = catalog_of(services=[service("web", clusterIP="None")], slices=slices)
    assert [(e.address, e.ready) for e in catalog.endpoints["shop", "web"]] == [("10.0.0.1", True), ("10.0.0.2", True)]


def test_a_slice_that_changes_sides_leaves_its_first_service() -> None:
    builder = CatalogBuilder()
    builder.replace(SERVICE, None, [service("a"), service("b")])
    builder.apply(ENDPOINT_SLICE, "ADDED", part("s", "a", endpoint("10.0.0.1")))
    builder.snapshot()
    builder.apply(ENDPOINT_SLICE, "MODIFIED", part("s", "b", endpoint("10.0.0.1")))
    catalog = builder.snapshot()
    assert catalog.ready_endpoints("shop", "a") == ()
    assert len(catalog.ready_endpoints("shop", "b")) == 1


def test_publish_not_ready_addresses_is_honoured_for_slices_written_by_hand() -> None:
    builder = CatalogBuilder()
    builder.apply(ENDPOINT_SLICE, "ADDED", part("s", "web", endpoint("10.0.0.1", conditions={"ready": False})))
    builder.apply(SERVICE, "ADDED", service("web", clusterIP="None"))
    assert builder.snapshot().ready_endpoints("shop", "web") == ()
    builder.apply(SERVICE, "MODIFIED", service("web", clusterIP="None", publishNotReadyAddresses=True))
    assert [e.address for e in builder.snapshot().ready_endpoints("shop", "web")] == ["10.0.0.1"]


def test_a_namespace_is_known_by_its_services_if_namespaces_may_not_be_listed() -> None:
    builder = CatalogBuilder()
    builder.replace(SERVICE, None, [service("a", "one"), service("b", "one"), service("c", "two")])
    assert builder.snapshot().namespaces == {"one", "two"}
    builder.apply(SERVICE, "DELETED", service("a", "one"))
    assert builder.snapshot().namespaces == {"one", "two"}
    builder.apply(SERVICE, "DELETED", service("b", "one"))
    assert builder.snapshot().namespaces == {"two"}
    builder.apply(NAMESPACE, "ADDED", {"metadata": {"name": "empty"}})
    builder.apply(NAMESPACE, "ADDED", {"metadata": {"name": "two"}})
    builder.apply(NAMESPACE, "DELETED", {"metadata": {"name": "two"}})
    assert builder.snapshot().namespaces == {"empty", "two"}


def test_a_list_of_one_namespace_leaves_the_others_alone() -> None:
    builder = CatalogBuilder()
    builder.replace(SERVICE, None, [service("a", "one"), service("b", "two")])
    builder.replace(SERVICE, "one", [service("c", "one")])
    assert sorted(builder.snapshot().services) == [("one", "c"), ("two", "b")]


def test_a_list_that_breaks_off_takes_nothing_away() -> None:
    builder = CatalogBuilder()
    builder.replace(SERVICE, None, [service("a"), service("b")])
    builder.relist(SERVICE, None).page([service("c")])
    assert sorted(name for _, name in builder.snapshot().services) == ["a", "b", "c"]


def test_an_address_that_two_services_claim_for_a_moment_belongs_to_one_and_then_to_the_other() -> None:
    builder = CatalogBuilder()
    builder.apply(SERVICE, "ADDED", service("old", clusterIP="10.96.0.1"))
    builder.apply(SERVICE, "ADDED", service("a-new-one", clusterIP="10.96.0.1"))
    assert builder.snapshot().services_by_address["10.96.0.1"].name == "a-new-one"
    builder.apply(SERVICE, "DELETED", service("a-new-one"))
    assert builder.snapshot().services_by_address["10.96.0.1"].name == "old"


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("FD00:0:0::00a", ("fd00::a",)),
        ("10.96.0.1", ("10.96.0.1",)),
        ("010.96.0.1", ()),
        ("fe80::1%eth0", ()),
        ("", ()),
        ("None", ()),
        ("not-an-address", ()),
        (None, ()),
        (17, ()),
        ([], ()),
    ],
)
def test_addresses_are_canonical_or_absent(given: Any, canonical: tuple[str, ...]) -> None:
    catalog = catalog_of(services=[service("web", clusterIP=given)])
    assert catalog.services["shop", "web"].cluster_ips == canonical
    catalog = catalog_of(services=[service("web")], slices=[part("s", "web", endpoint(given))])
    assert tuple(e.address for e in catalog.ready_endpoints("shop", "web")) == canonical


@pytest.mark.parametrize(
    "port",
    [None, {}, {"port": None}, {"port": 0}, {"port": 65536}, {"port": True}, {"port": "80"}, {"port": 80.0}]
    + [{"port": 80, "protocol": protocol} for protocol in ("tcp", "QUIC", 6, ["TCP"])],
)
def test_a_port_that_makes_no_sense_is_left_out_and_the_others_stay(port: Any) -> None:
    catalog = catalog_of(services=[service("web", ports=[port, {"port": 81}])])
    assert catalog.services["shop", "web"].ports == (Port("", 81),)


@pytest.mark.parametrize(
    "odd",
    [
        None,
        [],
        "text",
        {},
        {"metadata": None},
        {"metadata": {"name": "a"}},
        {"metadata": {"namespace": "shop"}},
        {"metadata": {"name": "", "namespace": "shop"}},
        {"metadata": {"name": ["a"], "namespace": "shop"}},
        {"metadata": {"name": "a", "namespace": "shop"}, "spec": None},
    ],
)
def test_an_odd_object_is_skipped_and_its_neighbours_are_not(odd: Any) -> None:
    assert list(catalog_of(services=[odd, service("web")]).services) == [("shop", "web")]
    catalog = catalog_of(services=[service("web")], slices=[odd, part("s", "web", endpoint("10.0.0.1"))])
    assert len(catalog.ready_endpoints("shop", "web")) == 1


def test_an_object_that_became_odd_is_gone() -> None:
    builder = CatalogBuilder()
    builder.apply(SERVICE, "ADDED", service("web"))
    builder.apply(SERVICE, "MODIFIED", {"metadata": {"name": "web", "namespace": "shop"}, "spec": "?"})
    assert builder.snapshot().services == {}


def test_addresses_that_are_names_are_no_endpoints() -> None:
    slices = [part("s", "web", endpoint("db.example.com"), addressType="FQDN")]
    assert catalog_of(services=[service("web")], slices=slices).endpoints == {}


def test_the_target_of_an_external_name_has_no_trailing_dot() -> None:
    spec = {"type": "ExternalName", "externalName": "db.example.com.", "clusterIP": "10.96.0.1"}
    assert catalog_of(services=[service("web", **spec)]).services["shop", "web"] == Service(
        "shop", "web", external_name="db.example.com"
    )
