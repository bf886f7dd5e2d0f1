"""What holds for any objects in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tp2.cluster.builder import ENDPOINT_SLICE, NAMESPACE, SERVICE, CatalogBuilder
from tp2.cluster.catalog import Catalog

KINDS = (SERVICE, ENDPOINT_SLICE, NAMESPACE)
# Few names, so that services and slices meet; and mostly sense, so that it is worth meeting.
NAMES = st.sampled_from(["a", "b"])
NAMESPACES = st.sampled_from(["a", "a", "a", "b"])
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "FD00::1", "fd00:0::1", "x"])

WORDS = st.sampled_from(
    [
        *("metadata", "name", "namespace", "labels", "kubernetes.io/service-name", "kind", "spec", "type"),
        *("clusterIP", "clusterIPs", "ports", "port", "protocol", "TCP", "ExternalName", "externalName", "None"),
        *("endpoints", "addresses", "conditions", "ready", "targetRef", "Pod", "hostname", "10.0.0.1", "fd00::1"),
    ]
)
GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70000) | st.floats() | WORDS | st.text(max_size=3),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(WORDS, children, max_size=6),
    max_leaves=25,
)
PORTS = st.lists(st.fixed_dictionaries({"port": st.sampled_from([80, 81]), "name": NAMES}), max_size=2)


def with_key(body: st.SearchStrategy[Any], *, labelled: bool = False) -> st.SearchStrategy[Any]:
    def merged(name: str, namespace: str, service: str, fields: Any) -> Any:
        labels = {"kubernetes.io/service-name": service} if labelled else None
        return {**fields, "metadata": {"name": name, "namespace": namespace, "labels": labels}}

    return st.builds(merged, NAMES, NAMESPACES, NAMES, body)


SERVICES = with_key(
    st.fixed_dictionaries(
        {
            "spec": st.fixed_dictionaries(
                {
                    "clusterIPs": st.lists(ADDRESSES | st.just("None"), max_size=2),
                    "ports": PORTS,
                    "publishNotReadyAddresses": st.booleans(),
                    "type": st.sampled_from(["ClusterIP", "ExternalName"]),
                }
            )
        }
    )
)
ENDPOINTS = st.fixed_dictionaries(
    {
        "addresses": st.lists(ADDRESSES, min_size=1, max_size=2),
        "conditions": st.sampled_from([{}, {"ready": False}, None]),
    }
)
SLICES = with_key(
    st.fixed_dictionaries({"endpoints": st.lists(ENDPOINTS, min_size=1, max_size=3), "ports": PORTS}), labelled=True
)
OBJECTS = st.one_of(
    st.tuples(st.just(SERVICE), SERVICES),
    st.tuples(st.just(ENDPOINT_SLICE), SLICES),
    st.tuples(st.just(NAMESPACE), with_key(st.just({}))),
    st.tuples(st.sampled_from(KINDS), GARBAGE | with_key(st.dictionaries(WORDS, GARBAGE, max_size=3), labelled=True)),
)
CHANGES = st.lists(st.tuples(st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "?"]), OBJECTS), max_size=12)


def content(catalog: Catalog) -> tuple[object, ...]:
    return (
        catalog.services,
        catalog.endpoints,
        catalog.namespaces,
        catalog.services_by_address,
        catalog.endpoints_by_address,
    )


def built(objects: Sequence[tuple[str, Any]]) -> Catalog:
    builder = CatalogBuilder()
    for kind in KINDS:
        builder.replace(kind, None, [obj for its_kind, obj in objects if its_kind == kind])
    return builder.snapshot()


def key(kind: str, obj: Any) -> tuple[str, ...] | None:
    metadata = obj.get("metadata") if isinstance(obj, dict) else None
    if not isinstance(metadata, dict):
        return None
    words = (metadata.get("name"),) if kind == NAMESPACE else (metadata.get("namespace"), metadata.get("name"))
    return (kind, *words) if all(isinstance(word, str) and word for word in words) else None


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.text(max_size=8) | st.sampled_from(["ADDED", "DELETED"]), GARBAGE)
def test_garbage_never_raises(kind: str, event: str, garbage: Any) -> None:
    builder = CatalogBuilder()
    builder.apply(kind, event, garbage)
    builder.snapshot()
    builder.replace(kind, None, garbage)
    builder.replace(kind, "a", [garbage])
    builder.snapshot()


@settings(max_examples=150, deadline=None)
@given(st.lists(OBJECTS, min_size=4, max_size=10), CHANGES, st.data())
def test_a_list_and_events_give_what_a_list_of_the_result_gives(
    objects: list[tuple[str, Any]], changes: list[tuple[str, tuple[str, Any]]], data: st.DataObject
) -> None:
    state = {key(kind, obj): (kind, obj) for kind, obj in objects}
    builder = CatalogBuilder()
    for kind in KINDS:
        builder.replace(kind, None, [obj for its_kind, obj in objects if its_kind == kind])
    for event, (kind, obj) in changes:
        if data.draw(st.booleans()):
            builder.snapshot()
        builder.apply(kind, event, obj)
        if event in ("ADDED", "MODIFIED"):
            state[key(kind, obj)] = (kind, obj)
        elif event == "DELETED":
            state.pop(key(kind, obj), None)
    state.pop(None, None)
    assert content(builder.snapshot()) == content(built(list(state.values())))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(OBJECTS, min_size=3, max_size=8, unique_by=lambda entry: key(*entry)), st.randoms(use_true_random=False)
)
def test_the_order_of_objects_does_not_matter(objects: list[tuple[str, Any]], random: Any) -> None:
    shuffled = list(objects)
    random.shuffle(shuffled)
    builder = CatalogBuilder()
    for kind, obj in shuffled:
        builder.apply(kind, "ADDED", obj)
        builder.snapshot()
    assert content(builder.snapshot()) == content(built(objects))


@settings(max_examples=100, deadline=None)
@given(st.lists(OBJECTS, min_size=4, max_size=10), CHANGES)
def test_the_generation_grows_exactly_when_something_changed(
    objects: list[tuple[str, Any]], changes: list[tuple[str, tuple[str, Any]]]
) -> None:
    builder = CatalogBuilder()
    for kind, obj in objects:
        builder.apply(kind, "ADDED", obj)
    before = builder.snapshot()
    for event, (kind, obj) in changes:
        builder.apply(kind, event, obj)
        after = builder.snapshot()
        assert (after.generation > before.generation) == (content(after) != content(before))
        assert after.generation >= before.generation
        before = after


@settings(max_examples=100, deadline=None)
@given(st.lists(OBJECTS, min_size=4, max_size=10))
def test_what_is_found_by_address_is_what_is_found_by_name(objects: list[tuple[str, Any]]) -> None:
    catalog = built(objects)
    for address, found in catalog.endpoints_by_address.items():
        for service, endpoint in found:
            assert endpoint.address == address
            assert endpoint in catalog.endpoints[service.namespace, service.name]
    assert sum(map(len, catalog.endpoints.values())) == sum(map(len, catalog.endpoints_by_address.values()))
    assert catalog.endpoints.keys() <= catalog.services.keys()
    for address, service in catalog.services_by_address.items():
        assert address in service.cluster_ips
        assert catalog.services[service.namespace, service.name] == service
    assert {namespace for namespace, _ in catalog.services} <= catalog.namespaces
