"""What tp2 would do with a name or an address, told without doing it; and which names a resolver asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tp2.cluster.catalog import Catalog, Endpoint, Port, Service
from tp2.diagnosis import way
from tp2.diagnosis.explain import expansions
from tp2.dns import resolvconf
from tp2.dns.zone import ZoneConfig
from tp2.types import Destination

HTTP = Port("http", 80)
WEB = Service("shop", "web", ("10.96.1.1",), (HTTP, Port("admin", 9090), Port("quic", 443, "UDP")))
DEAD = Service("shop", "dead", ("10.96.1.4",), (HTTP,))
DB = Service("shop", "db", (), (Port("sql", 5432),), headless=True)
OUT = Service("shop", "out", external_name="api.example.com")
POD = Endpoint("10.244.1.1", (Port("http", 8080),), pod="shop/web-a")
DB0 = Endpoint("10.244.1.10", (Port("sql", 5432),), hostname="db-0", pod="shop/db-0")
CATALOG = Catalog(
    1,
    {("shop", service.name): service for service in (WEB, DEAD, DB, OUT)},
    {("shop", "web"): (POD,), ("shop", "db"): (DB0,)},
    frozenset({"shop"}),
    {"10.96.1.1": WEB, "10.96.1.4": DEAD},
    {"10.244.1.1": ((WEB, POD),), "10.244.1.10": ((DB, DB0),)},
)
CONFIG = ZoneConfig(namespace="default", exclude=("secret.cluster.local",), search=("corp.example",))


class Nothing:
    """Nothing is captured, and nothing left alone."""

    def mapping(self, destination: Destination) -> Mapping[str, Any] | None:
        return None

    def has(self, address: str) -> bool:
        return False

    def left_alone(self, destination: Destination) -> str | None:
        return None


@pytest.mark.parametrize(
    ("name", "who", "rcode", "records", "why"),
    [
        ("web.shop", "cluster", "NOERROR", ["10.96.1.1"], "service"),
        ("web.shop.svc.cluster.local", "cluster", "NOERROR", ["10.96.1.1"], "service"),
        ("db.shop", "cluster", "NOERROR", ["10.244.1.10"], "headless"),
        ("nix.shop.svc.cluster.local", "cluster", "NXDOMAIN", [], "no such name"),
        ("x.secret.cluster.local", "upstream", None, [], "--exclude secret.cluster.local"),
        ("web.shop.corp.example", "upstream first", "NOERROR", ["10.96.1.1"], "service"),
        ("www.example.com", "upstream", None, [], "not below the cluster's domain"),
    ],
)
def test_who_answers_a_name_and_why(name: str, who: str, rcode: str | None, records: list[str], why: str) -> None:
    said = way.of_name(name, CATALOG, CONFIG)
    assert (said["who"], said["rcode"], said["records"]) == (who, rcode, records)
    assert why in said["why"]


def test_an_external_name_leads_out_of_the_cluster() -> None:
    said = way.of_name("out.shop", CATALOG, CONFIG)
    assert said["records"] == ["CNAME api.example.com"]
    assert said["chase"] == "api.example.com"


def test_a_name_means_all_tcp_ports_unless_one_is_given() -> None:
    names = [way.of_name("web.shop", CATALOG, CONFIG)]
    assert [d.port for d in way.destinations("web.shop", None, names, CATALOG, CONFIG)] == [80, 9090]
    assert way.destinations("web.shop", 81, names, CATALOG, CONFIG) == [Destination("10.96.1.1", 81)]
    assert way.destinations("10.96.1.1", 80, [], CATALOG, CONFIG) == [Destination("10.96.1.1", 80)]


def test_the_first_name_that_the_cluster_has_decides() -> None:
    names = [way.of_name(name, CATALOG, CONFIG) for name in ("web.example", "web.shop.corp.example", "dead.shop")]
    assert way.destinations("web.shop", 80, names, CATALOG, CONFIG) == [Destination("10.96.1.1", 80)]


@pytest.mark.parametrize(
    ("address", "port", "facts"),
    [
        ("10.96.1.1", 80, {"has_port": True, "endpoints": 1, "ready": 1, "serving": 1}),
        ("10.96.1.1", 9090, {"has_port": True, "ready": 1, "serving": 0}),
        ("10.96.1.1", 443, {"has_port": False}),
        ("10.96.1.4", 80, {"has_port": True, "endpoints": 0, "ready": 0}),
        ("10.244.1.10", 5432, {"name": "db", "has_port": True, "serving": 1, "pods": ["shop/db-0"]}),
    ],
)
def test_what_is_behind_an_address(address: str, port: int, facts: dict[str, Any]) -> None:
    said = way.of_destination(Destination(address, port), CATALOG, Nothing())
    assert said["known"]
    assert {key: said["service"][key] for key in facts} == facts


def test_an_address_that_is_nobodys() -> None:
    said = way.of_destination(Destination("203.0.113.80", 80), CATALOG, Nothing())
    assert (said["known"], said["service"], said["mapping"]) == (False, None, None)


def test_a_slip_of_the_pen_is_recognised() -> None:
    assert "web.shop" in way.near("wbe.shop.svc.cluster.local", CATALOG, CONFIG)
    assert way.near("www.example.com", CATALOG, CONFIG) == ""


@pytest.mark.parametrize(
    ("name", "absolute", "text", "expected"),
    [
        ("web.shop", False, "search corp.example lan", ["web.shop", "web.shop.corp.example", "web.shop.lan"]),
        ("web", False, "search corp.example", ["web.corp.example", "web"]),
        ("web.shop", True, "search corp.example", ["web.shop"]),
        ("a.b.c", False, "search x\noptions ndots:5", ["a.b.c.x", "a.b.c"]),
        ("web.shop", False, "", ["web.shop"]),
    ],
)
def test_the_names_that_a_resolver_asks_for(name: str, absolute: bool, text: str, expected: list[str]) -> None:
    assert expansions(name, resolvconf.parse(text), absolute=absolute) == expected
