"""The cluster's names, as the Kubernetes DNS specification 1.1.0 and CoreDNS have them."""

from __future__ import annotations

import ipaddress

import pytest
from dnslib import QTYPE, DNSRecord

from tp2.cluster.catalog import Catalog, Endpoint, Port, Service
from tp2.dns.message import Rcode, build_reply, parse_query
from tp2.dns.records import Record, Type
from tp2.dns.zone import Answer, ZoneConfig, is_cluster_name, resolve
from tp2.types import Destination, Wanted

HTTP = Port("http", 80)
METRICS = Port("metrics", 9100)
DNS_UDP = Port("dns", 53, "UDP")
DNS_TCP = Port("dns-tcp", 53)
POSTGRES = Port("postgres", 5432)

SERVICES = [
    Service("shop", "web", ("10.96.0.10",), (HTTP, METRICS)),
    Service("shop", "dual", ("10.96.0.11", "fd00:96::11"), (HTTP,)),
    Service("shop", "six", ("fd00:96::12",), (HTTP,)),
    Service("shop", "plain", ("10.96.0.13",), (Port("", 8080),)),
    Service("shop", "mixed", ("10.96.0.14",), (DNS_UDP, DNS_TCP)),
    Service("shop", "db", headless=True, ports=(POSTGRES,)),
    Service("shop", "empty", headless=True, ports=(POSTGRES,)),
    Service("shop", "portless", headless=True),
    Service("shop", "outside", external_name="www.example.com"),
    Service("shop", "inside", external_name="web.shop.svc.cluster.local"),
    Service("shop", "twice", external_name="inside.shop.svc.cluster.local"),
    Service("shop", "nowhere", external_name="gone.shop.svc.cluster.local"),
    Service("shop", "ring", external_name="ring2.shop.svc.cluster.local"),
    Service("shop", "ring2", external_name="ring.shop.svc.cluster.local"),
    Service("default", "kubernetes", ("10.96.0.1",), (Port("https", 443),)),
    Service("default", "cart", ("10.96.0.20",), (HTTP,)),
    Service("kube-system", "kube-dns", ("10.96.0.53",), (DNS_UDP, DNS_TCP)),
]
ENDPOINTS = {
    ("shop", "db"): (
        Endpoint("10.244.0.5", (POSTGRES,), "db-0", pod="shop/db-0"),
        Endpoint("10.244.0.6", (POSTGRES,), "db-1", pod="shop/db-1"),
        Endpoint("10.244.0.7", (POSTGRES,), pod="shop/other"),
        Endpoint("10.244.0.8", (POSTGRES,), "db-9", ready=False, pod="shop/db-9"),
        Endpoint("fd00:244::5", (POSTGRES,), "db-0", pod="shop/db-0"),
        Endpoint("fd00:244::7", (POSTGRES,)),
    ),
    ("shop", "empty"): (Endpoint("10.244.0.9", (POSTGRES,), ready=False),),
    ("shop", "portless"): (Endpoint("10.244.0.10"),),
    ("shop", "web"): (Endpoint("10.244.0.20", (Port("http", 8080),), pod="shop/web-1"),),
}


def make_catalog() -> Catalog:
    services = {(s.namespace, s.name): s for s in SERVICES}
    by_address: dict[str, tuple[tuple[Service, Endpoint], ...]] = {}
    for key, endpoints in ENDPOINTS.items():
        for endpoint in endpoints:
            by_address[endpoint.address] = (*by_address.get(endpoint.address, ()), (services[key], endpoint))
    return Catalog(
        generation=7,
        services=services,
        endpoints=ENDPOINTS,
        namespaces=frozenset({"shop", "default", "kube-system", "bare", "dev"}),
        services_by_address={address: s for s in SERVICES for address in s.cluster_ips},
        endpoints_by_address=by_address,
    )


CATALOG = make_catalog()
CONFIG = ZoneConfig()
# As dnslib shows a type that it does not know.
RFC8482 = b"\x07RFC8482\x00".hex()


def ask(qname: str, qtype: Type = Type.A, config: ZoneConfig = CONFIG) -> Answer:
    answer = resolve(qname, qtype, CATALOG, config)
    assert answer is not None, "forwarded"
    return answer


def text(record: Record) -> str:
    """The record in the presentation of an independent parser, without class and with single blanks."""
    query = parse_query(DNSRecord.question("q.example").pack())
    parsed = DNSRecord.parse(build_reply(query, 0, answers=[record])).rr[0]
    return f"{parsed.rname} {parsed.ttl} {QTYPE[parsed.rtype]} {parsed.rdata}"


def texts(records: tuple[Record, ...]) -> list[str]:
    return [text(record) for record in records]


def is_negative(answer: Answer, rcode: Rcode, zone: str = "cluster.local") -> bool:
    assert answer.rcode == rcode
    assert answer.answers == ()
    assert answer.wanted == ()
    assert texts(answer.authority) == [
        f"{zone}. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 5"
    ]
    return True


# Services with a ClusterIP


def test_a_service_has_its_cluster_ip() -> None:
    answer = ask("web.shop.svc.cluster.local")
    assert texts(answer.answers) == ["web.shop.svc.cluster.local. 5 A 10.96.0.10"]
    assert answer.rcode == Rcode.NOERROR


def test_every_tcp_port_of_a_service_is_wanted_with_its_answer() -> None:
    assert ask("web.shop.svc.cluster.local").wanted == (
        Wanted("web.shop", Destination("10.96.0.10", 80), 5),
        Wanted("web.shop", Destination("10.96.0.10", 9100), 5),
    )


def test_udp_ports_are_not_wanted() -> None:
    wanted = ask("mixed.shop.svc.cluster.local").wanted
    assert wanted == (Wanted("mixed.shop", Destination("10.96.0.14", 53), 5),)


def test_a_dual_stack_service_answers_in_the_family_asked() -> None:
    assert texts(ask("dual.shop.svc.cluster.local").answers) == ["dual.shop.svc.cluster.local. 5 A 10.96.0.11"]
    six = ask("dual.shop.svc.cluster.local", Type.AAAA)
    assert texts(six.answers) == ["dual.shop.svc.cluster.local. 5 AAAA fd00:96::11"]
    assert six.wanted == (Wanted("dual.shop", Destination("fd00:96::11", 80), 5),)


@pytest.mark.parametrize("qtype", [Type.AAAA, Type.HTTPS, Type.SVCB, Type.MX, Type.TXT, Type.CNAME, Type.PTR, Type.NS])
@pytest.mark.parametrize("name", ["web.shop.svc.cluster.local"])
def test_what_a_service_has_no_record_for_is_nodata(name: str, qtype: Type) -> None:
    assert is_negative(ask(name, qtype), Rcode.NOERROR)


def test_an_ipv6_service_has_no_a_record() -> None:
    assert is_negative(ask("six.shop.svc.cluster.local"), Rcode.NOERROR)


def test_soa_is_asked_of_the_zone_not_of_a_service() -> None:
    assert is_negative(ask("web.shop.svc.cluster.local", Type.SOA), Rcode.NOERROR)


@pytest.mark.parametrize(
    "name",
    [
        "nope.shop.svc.cluster.local",
        "web.nope.svc.cluster.local",
        "nope.svc.cluster.local",
        "nope.pod.cluster.local",
        "nope.cluster.local",
        "a.b.c.d.e.svc.cluster.local",
        "web.shop.cluster.local",
        "x.web.shop.svc.cluster.local",
        "x.y.web.shop.svc.cluster.local",
        "web.shop.svc.cluster.local.cluster.local",
        "web\\046shop.svc.cluster.local",
        "*.shop.svc.cluster.local",
    ],
)
@pytest.mark.parametrize("qtype", [Type.A, Type.AAAA, Type.SRV, Type.NS, Type.ANY, Type.TXT])
def test_a_name_that_does_not_exist_in_the_zone_is_nxdomain(name: str, qtype: Type) -> None:
    assert is_negative(ask(name, qtype), Rcode.NXDOMAIN)


@pytest.mark.parametrize(
    "name",
    [
        "svc.cluster.local",
        "pod.cluster.local",
        "dns.cluster.local",
        "cluster.local",
        "shop.svc.cluster.local",
        "shop.pod.cluster.local",
        "bare.svc.cluster.local",
        "_tcp.web.shop.svc.cluster.local",
        "_tcp.db.shop.svc.cluster.local",
        "_udp.mixed.shop.svc.cluster.local",
        "_http._tcp.web.shop.svc.cluster.local",
        "dns-version.cluster.local",
    ],
)
def test_a_name_that_only_has_names_below_it_exists(name: str) -> None:
    assert is_negative(ask(name), Rcode.NOERROR)


@pytest.mark.parametrize("name", ["_udp.web.shop.svc.cluster.local", "_tcp.plain.shop.svc.cluster.local"])
def test_a_protocol_without_named_ports_has_no_name(name: str) -> None:
    assert is_negative(ask(name, Type.SRV), Rcode.NXDOMAIN)


# SRV


def test_a_named_port_has_an_srv_record_with_the_address_in_addition() -> None:
    answer = ask("_http._tcp.web.shop.svc.cluster.local", Type.SRV)
    assert texts(answer.answers) == [
        "_http._tcp.web.shop.svc.cluster.local. 5 SRV 0 100 80 web.shop.svc.cluster.local."
    ]
    assert texts(answer.additional) == ["web.shop.svc.cluster.local. 5 A 10.96.0.10"]
    # Whoever has the address may use any port of it.
    assert {want.destination.port for want in answer.wanted} == {80, 9100}


def test_an_srv_record_of_a_dual_stack_service_brings_both_addresses() -> None:
    answer = ask("_http._tcp.dual.shop.svc.cluster.local", Type.SRV)
    assert len(answer.answers) == 1
    assert [record.type for record in answer.additional] == [Type.A, Type.AAAA]
    assert {want.destination.address for want in answer.wanted} == {"10.96.0.11", "fd00:96::11"}


def test_protocols_have_ports_of_their_own() -> None:
    assert texts(ask("_dns._udp.mixed.shop.svc.cluster.local", Type.SRV).answers) == [
        "_dns._udp.mixed.shop.svc.cluster.local. 5 SRV 0 100 53 mixed.shop.svc.cluster.local."
    ]
    assert is_negative(ask("_dns._tcp.mixed.shop.svc.cluster.local", Type.SRV), Rcode.NXDOMAIN)


@pytest.mark.parametrize("name", ["_._tcp.plain", "_8080._tcp.plain", "http._tcp.web", "_http.tcp.web"])
def test_an_unnamed_port_or_a_label_without_underscore_has_no_srv_record(name: str) -> None:
    assert is_negative(ask(f"{name}.shop.svc.cluster.local", Type.SRV), Rcode.NXDOMAIN)


def test_srv_of_the_service_itself_lists_its_named_ports() -> None:
    answer = ask("web.shop.svc.cluster.local", Type.SRV)
    assert texts(answer.answers) == [
        "web.shop.svc.cluster.local. 5 SRV 0 50 80 web.shop.svc.cluster.local.",
        "web.shop.svc.cluster.local. 5 SRV 0 50 9100 web.shop.svc.cluster.local.",
    ]
    assert is_negative(ask("plain.shop.svc.cluster.local", Type.SRV), Rcode.NOERROR)


# Headless services


def test_a_headless_service_has_all_its_ready_endpoints() -> None:
    answer = ask("db.shop.svc.cluster.local")
    name = "db.shop.svc.cluster.local. 5 A"
    assert texts(answer.answers) == [f"{name} 10.244.0.5", f"{name} 10.244.0.6", f"{name} 10.244.0.7"]
    assert answer.wanted == (
        Wanted("db-0.db.shop", Destination("10.244.0.5", 5432), 5),
        Wanted("db-1.db.shop", Destination("10.244.0.6", 5432), 5),
        Wanted("db.shop", Destination("10.244.0.7", 5432), 5),
    )
    assert len(ask("db.shop.svc.cluster.local", Type.AAAA).answers) == 2


def test_an_endpoint_goes_by_its_hostname() -> None:
    answer = ask("db-0.db.shop.svc.cluster.local")
    assert texts(answer.answers) == ["db-0.db.shop.svc.cluster.local. 5 A 10.244.0.5"]
    assert answer.wanted == (Wanted("db-0.db.shop", Destination("10.244.0.5", 5432), 5),)
    assert texts(ask("db-0.db.shop.svc.cluster.local", Type.AAAA).answers) == [
        "db-0.db.shop.svc.cluster.local. 5 AAAA fd00:244::5"
    ]


@pytest.mark.parametrize(("label", "qtype"), [("10-244-0-7", Type.A), ("fd00-244--7", Type.AAAA)])
def test_an_endpoint_without_hostname_goes_by_its_address(label: str, qtype: Type) -> None:
    assert len(ask(f"{label}.db.shop.svc.cluster.local", qtype).answers) == 1


@pytest.mark.parametrize("label", ["10-244-0-5", "db-9", "10-244-0-8"])
def test_a_hostname_replaces_the_generated_one_and_unready_endpoints_have_none(label: str) -> None:
    assert is_negative(ask(f"{label}.db.shop.svc.cluster.local"), Rcode.NXDOMAIN)


def test_endpoints_of_a_service_with_a_cluster_ip_have_names_too() -> None:
    answer = ask("10-244-0-20.web.shop.svc.cluster.local")
    assert answer.wanted == (Wanted("web.shop", Destination("10.244.0.20", 8080), 5),)


@pytest.mark.parametrize("qtype", [Type.A, Type.AAAA, Type.SRV])
def test_a_headless_service_without_ready_endpoints_is_nxdomain(qtype: Type) -> None:
    assert is_negative(ask("empty.shop.svc.cluster.local", qtype), Rcode.NXDOMAIN)


def test_a_headless_service_without_ports_still_has_addresses() -> None:
    answer = ask("portless.shop.svc.cluster.local")
    assert len(answer.answers) == 1
    assert answer.wanted == ()


def test_srv_of_a_headless_service_names_each_endpoint() -> None:
    answer = ask("_postgres._tcp.db.shop.svc.cluster.local", Type.SRV)
    name = "_postgres._tcp.db.shop.svc.cluster.local. 5 SRV 0 25 5432"
    assert texts(answer.answers) == [
        f"{name} db-0.db.shop.svc.cluster.local.",
        f"{name} db-1.db.shop.svc.cluster.local.",
        f"{name} 10-244-0-7.db.shop.svc.cluster.local.",
        f"{name} fd00-244--7.db.shop.svc.cluster.local.",
    ]
    assert len(answer.additional) == 5
    assert len(answer.wanted) == 5


# ExternalName


def test_an_external_name_outside_of_the_cluster_is_left_to_chase() -> None:
    answer = ask("outside.shop.svc.cluster.local")
    assert texts(answer.answers) == ["outside.shop.svc.cluster.local. 5 CNAME www.example.com."]
    assert answer.chase == "www.example.com"
    assert answer.wanted == ()


def test_an_external_name_asked_for_its_cname_is_not_chased() -> None:
    answer = ask("outside.shop.svc.cluster.local", Type.CNAME)
    assert len(answer.answers) == 1
    assert answer.chase is None


@pytest.mark.parametrize(("name", "aliases"), [("inside", 1), ("twice", 2)])
def test_an_external_name_inside_of_the_cluster_is_followed(name: str, aliases: int) -> None:
    answer = ask(f"{name}.shop.svc.cluster.local")
    assert [record.type for record in answer.answers] == [Type.CNAME] * aliases + [Type.A]
    assert text(answer.answers[-1]) == "web.shop.svc.cluster.local. 5 A 10.96.0.10"
    assert len(answer.wanted) == 2
    assert answer.chase is None


def test_the_end_of_a_chain_decides() -> None:
    nothing = ask("inside.shop.svc.cluster.local", Type.AAAA)
    assert (nothing.rcode, len(nothing.answers), len(nothing.authority)) == (Rcode.NOERROR, 1, 1)
    gone = ask("nowhere.shop.svc.cluster.local")
    assert (gone.rcode, len(gone.answers), len(gone.authority)) == (Rcode.NXDOMAIN, 1, 1)


def test_external_names_in_a_ring_are_an_error_with_words() -> None:
    answer = ask("ring.shop.svc.cluster.local")
    assert answer.rcode == Rcode.SERVFAIL
    assert "ring" in answer.reason


def test_nothing_is_below_an_external_name() -> None:
    assert is_negative(ask("x.outside.shop.svc.cluster.local", Type.CNAME), Rcode.NXDOMAIN)


# Reverse, pods, and the zone itself


def reverse(address: str) -> str:
    return ipaddress.ip_address(address).reverse_pointer


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.96.0.10", "web.shop"),
        ("fd00:96::11", "dual.shop"),
        ("10.244.0.5", "db-0.db.shop"),
        ("fd00:244::7", "fd00-244--7.db.shop"),
        ("10.244.0.20", "10-244-0-20.web.shop"),
    ],
)
def test_an_address_of_the_cluster_has_its_name(address: str, name: str) -> None:
    answer = ask(reverse(address), Type.PTR)
    assert texts(answer.answers) == [f"{reverse(address)}. 5 PTR {name}.svc.cluster.local."]


def test_an_address_of_the_cluster_has_only_a_name() -> None:
    assert is_negative(ask(reverse("10.96.0.10"), Type.A), Rcode.NOERROR, reverse("10.96.0.10"))


@pytest.mark.parametrize(
    "name",
    [
        reverse("10.96.0.99"),
        reverse("10.244.0.8"),
        "0.96.10.in-addr.arpa",
        "10.in-addr.arpa",
        "in-addr.arpa",
        "x.10.0.96.10.in-addr.arpa",
        "010.0.96.10.in-addr.arpa",
        "zz.0.96.10.in-addr.arpa",
        "1.ip6.arpa",
        "zz." * 32 + "ip6.arpa",
        "z." * 32 + "ip6.arpa",
        "²." * 32 + "ip6.arpa",
    ],
)
def test_other_addresses_are_not_the_clusters_to_name(name: str) -> None:
    assert resolve(name, Type.PTR, CATALOG, CONFIG) is None


@pytest.mark.parametrize(
    ("label", "qtype", "address"),
    [("1-2-3-4", Type.A, "1.2.3.4"), ("fd00--9", Type.AAAA, "fd00::9"), ("10-244-0-5", Type.A, "10.244.0.5")],
)
def test_a_pod_record_is_the_address_in_its_name(label: str, qtype: Type, address: str) -> None:
    answer = ask(f"{label}.shop.pod.cluster.local", qtype)
    assert texts(answer.answers) == [f"{label}.shop.pod.cluster.local. 5 {qtype.name} {address}"]


def test_a_pod_records_known_ports_are_wanted() -> None:
    answer = ask("10-244-0-5.shop.pod.cluster.local")
    assert answer.wanted == (Wanted("10-244-0-5.shop", Destination("10.244.0.5", 5432), 5),)


@pytest.mark.parametrize("name", ["1-2-3-4.nope", "1-2-3.shop", "1-2-3-256.shop", "x.shop", "a.1-2-3-4.shop"])
def test_a_pod_record_needs_an_address_and_a_namespace(name: str) -> None:
    assert is_negative(ask(f"{name}.pod.cluster.local"), Rcode.NXDOMAIN)


def test_an_ipv4_pod_has_no_aaaa() -> None:
    assert is_negative(ask("1-2-3-4.shop.pod.cluster.local", Type.AAAA), Rcode.NOERROR)


def test_the_schema_version() -> None:
    assert texts(ask("dns-version.cluster.local", Type.TXT).answers) == ['dns-version.cluster.local. 28800 TXT "1.1.0"']


def test_the_apex_has_soa_and_ns() -> None:
    assert texts(ask("cluster.local", Type.SOA).answers) == [
        "cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 5"
    ]
    ns = ask("cluster.local", Type.NS)
    assert texts(ns.answers) == ["cluster.local. 5 NS ns.dns.cluster.local."]
    assert texts(ns.additional) == ["ns.dns.cluster.local. 5 A 10.96.0.53"]
    assert ns.wanted == (Wanted("kube-dns.kube-system", Destination("10.96.0.53", 53), 5),)
    assert texts(ask("ns.dns.cluster.local").answers) == ["ns.dns.cluster.local. 5 A 10.96.0.53"]


def test_the_name_server_is_where_clients_reach_tp2_if_that_is_known() -> None:
    config = ZoneConfig(name_servers=("192.0.2.53", "2001:db8::53"))
    ns = ask("cluster.local", Type.NS, config)
    assert texts(ns.additional) == ["ns.dns.cluster.local. 5 A 192.0.2.53", "ns.dns.cluster.local. 5 AAAA 2001:db8::53"]
    assert ns.wanted == ()
    assert texts(ask("ns.dns.cluster.local", Type.AAAA, config).answers) == [
        "ns.dns.cluster.local. 5 AAAA 2001:db8::53"
    ]


@pytest.mark.parametrize("name", ["web.shop.svc.cluster.local", "cluster.local", "web.shop", "shop.svc.cluster.local"])
def test_any_gets_a_refusal_that_fits_every_packet(name: str) -> None:
    assert texts(ask(name, Type.ANY).answers) == [rf"{name}. 5 HINFO \# 9 {RFC8482}"]
    assert ask(name, Type.ANY).wanted == ()


def test_any_of_an_alias_is_the_alias() -> None:
    assert [record.type for record in ask("outside.shop", Type.ANY).answers] == [Type.CNAME]


# Short names


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("web.shop", "10.96.0.10"),
        ("web.shop.svc", "10.96.0.10"),
        ("cart", "10.96.0.20"),
        ("cart.default", "10.96.0.20"),
        ("db-0.db.shop", "10.244.0.5"),
        ("db-0.db.shop.svc", "10.244.0.5"),
    ],
)
def test_a_short_name_is_answered_under_the_name_asked(name: str, address: str) -> None:
    assert texts(ask(name).answers) == [f"{name}. 5 A {address}"]
    assert ask(name).wanted


def test_a_short_srv_name_is_answered() -> None:
    assert texts(ask("_http._tcp.cart", Type.SRV).answers) == [
        "_http._tcp.cart. 5 SRV 0 100 80 cart.default.svc.cluster.local."
    ]


@pytest.mark.parametrize("name", ["web.shop", "web.shop.svc", "cart"])
@pytest.mark.parametrize("qtype", [Type.AAAA, Type.HTTPS, Type.SVCB, Type.MX])
def test_a_short_name_that_exists_is_never_forwarded(name: str, qtype: Type) -> None:
    assert is_negative(ask(name, qtype), Rcode.NOERROR, name)


@pytest.mark.parametrize(
    "name",
    [
        "web",
        "www.web.shop",
        "api.dev",
        "dev",
        "shop",
        "shop.svc",
        "svc",
        "nope.shop.svc",
        "example.com",
        "www.example.com",
        "web.corp.example",
        "web.shop.corp.example",
        "",
        "local",
        "web.shop.svc.cluster",
        "xcluster.local",
        "web.shop.svc.other.local",
        "dns-version",
        "1-2-3-4.shop",
    ],
)
def test_a_short_name_without_an_object_is_somebody_elses(name: str) -> None:
    assert resolve(name, Type.A, CATALOG, CONFIG) is None


def test_a_short_name_of_a_service_without_endpoints_does_not_exist() -> None:
    assert is_negative(ask("empty.shop"), Rcode.NXDOMAIN, "shop")
    assert is_negative(ask("empty.shop.svc"), Rcode.NXDOMAIN, "shop.svc")


def test_the_contexts_namespace_has_the_one_label_names() -> None:
    config = ZoneConfig(namespace="shop")
    assert texts(ask("web", config=config).answers) == ["web. 5 A 10.96.0.10"]
    assert resolve("cart", Type.A, CATALOG, config) is None


@pytest.mark.parametrize("name", ["web.shop", "db-0.db.shop", "web.shop.svc.cluster.local"])
def test_excluded_names_are_somebody_elses(name: str) -> None:
    config = ZoneConfig(exclude=("shop", ".web.Shop.svc.cluster.local."))
    assert resolve(name, Type.A, CATALOG, config) is None
    assert resolve("cart", Type.A, CATALOG, config) is not None


def test_another_zone_takes_the_place_of_cluster_local() -> None:
    config = ZoneConfig(zone="K8s.Example.Org.")
    assert len(ask("web.shop.svc.k8s.example.org", config=config).answers) == 1
    assert resolve("web.shop.svc.cluster.local", Type.A, CATALOG, config) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nope.cluster.local", True), ("a.b.svc", True), ("web.shop", False), ("example.com", False), ("", False)],
)
def test_names_that_only_a_cluster_could_know(name: str, expected: bool) -> None:
    assert is_cluster_name(name, CONFIG) is expected
