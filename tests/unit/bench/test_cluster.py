"""The cluster that benches measure with."""

from __future__ import annotations

from collections import Counter

from bench import cluster
from tp2.cluster.builder import ENDPOINT_SLICE, SERVICE, CatalogBuilder


def test_ten_thousand_services_have_ten_thousand_addresses_and_three_endpoints_each() -> None:
    builder, objects = CatalogBuilder(), cluster.objects(10_000)
    for kind in (SERVICE, ENDPOINT_SLICE):
        builder.replace(kind, None, [item for item in objects if item["kind"] == kind])
    catalog = builder.snapshot()
    assert len(catalog.services) == len(catalog.services_by_address) == 10_000
    assert Counter(len(endpoints) for endpoints in catalog.endpoints.values()) == {cluster.ENDPOINTS: 10_000}
    assert len(catalog.endpoints_by_address) == 30_000


def test_the_address_that_is_expected_of_a_name_is_that_of_its_service() -> None:
    builder = CatalogBuilder()
    builder.replace(SERVICE, None, [cluster.cluster_service(number) for number in (0, 299, 9_999)])
    for number in (0, 299, 9_999):
        wanted = cluster.name(number)
        found = builder.snapshot().services_by_address[wanted.address]
        assert wanted.full == f"{found.name}.{found.namespace}.svc.cluster.local"


def test_a_small_cluster_has_every_namespace_that_a_new_service_may_be_in() -> None:
    def namespaces(numbers: range) -> set[str]:
        return {cluster.cluster_service(number)["metadata"]["namespace"] for number in numbers}

    assert namespaces(range(cluster.NAMESPACES)) == namespaces(range(10_000, 10_100))
