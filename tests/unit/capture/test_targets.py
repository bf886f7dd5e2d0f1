"""What a user means by a name or an address, and what a destination is called."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tp2.capture.targets import name_of, targets
from tp2.cluster.catalog import Catalog, Endpoint, Port, Service
from tp2.dns.zone import ZoneConfig
from tp2.errors import UsageError
from tp2.types import Destination, Wanted

WEB = Service("shop", "web", ("10.96.1.1", "fd00:96::1"), (Port("http", 80), Port("dns", 53, "UDP")))
DB = Service("shop", "db", (), (Port("sql", 5432),), headless=True)
UDP = Service("shop", "udp", ("10.96.1.3",), (Port("dns", 53, "UDP"),))
SITE = Service("shop", "site", external_name="site.example")
PODS = (Endpoint("10.244.1.10", (Port("sql", 5432),), "db-0"), Endpoint("10.244.1.11", (Port("sql", 5432),)))
CATALOG = Catalog(
    generation=1,
    services={(s.namespace, s.name): s for s in (WEB, DB, UDP, SITE)},
    endpoints={("shop", "db"): PODS},
    namespaces=frozenset({"shop"}),
    services_by_address={"10.96.1.1": WEB, "fd00:96::1": WEB, "10.96.1.3": UDP},
    endpoints_by_address={pod.address: ((DB, pod),) for pod in PODS},
)
CONFIG = ZoneConfig(namespace="shop", exclude=("corp.example",))


def test_an_address_and_a_port_mean_themselves() -> None:
    assert targets("10.96.1.1:81", CATALOG, CONFIG) == [Wanted("web.shop", Destination("10.96.1.1", 81), 0)]
    assert targets("[fd00:96::1]:80", CATALOG, CONFIG) == [Wanted("web.shop", Destination("fd00:96::1", 80), 0)]
    assert targets("10.9.9.9:5432", CATALOG, CONFIG) == [Wanted("10.9.9.9", Destination("10.9.9.9", 5432), 0)]


@pytest.mark.parametrize("name", ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "WEB.Shop."])
def test_a_name_means_all_its_tcp_ports_in_both_families(name: str) -> None:
    assert targets(name, CATALOG, CONFIG) == [
        Wanted("web.shop", Destination("10.96.1.1", 80), 0),
        Wanted("web.shop", Destination("fd00:96::1", 80), 0),
    ]


def test_a_headless_service_means_its_pods() -> None:
    assert [(item.name, str(item.destination)) for item in targets("db", CATALOG, CONFIG)] == [
        ("db-0.db.shop", "10.244.1.10:5432"),
        ("db.shop", "10.244.1.11:5432"),
    ]


def test_a_name_with_a_port_means_that_port_whether_the_service_has_it_or_not() -> None:
    assert [(i.name, str(i.destination)) for i in targets("web.shop:8080", CATALOG, CONFIG)] == [
        ("web.shop", "10.96.1.1:8080"),
        ("web.shop", "[fd00:96::1]:8080"),
    ]
    assert [str(item.destination) for item in targets("udp:53", CATALOG, CONFIG)] == ["10.96.1.3:53"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nosuch", "no such name"),
        ("www.example.com", "no such name"),
        ("nosuch.shop.svc.cluster.local", "no such name in the cluster"),
        ("site", "ExternalName service for site.example, outside of the cluster"),
        ("udp", "no TCP port"),
        ("web.corp.example", "no such name"),
        ("10.96.1.1", "ADDRESS:PORT"),
        ("web:http", "a port is a number"),
        ("", "letters, digits"),
    ],
)
def test_what_cannot_be_meant_is_explained(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        targets(text, CATALOG, CONFIG)


def test_a_headless_service_without_pods_is_explained() -> None:
    with pytest.raises(UsageError, match="no ready endpoint"):
        targets("db.shop", replace(CATALOG, endpoints={}), CONFIG)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.96.1.1", "web.shop"),
        ("fd00:96::1", "web.shop"),
        ("10.244.1.10", "db-0.db.shop"),
        ("10.244.1.11", "db.shop"),
        ("10.9.9.9", ""),
    ],
)
def test_destinations_have_the_names_that_people_know(address: str, name: str) -> None:
    assert name_of(Destination(address, 1), CATALOG) == name
