"""Every sentence of the Kubernetes DNS specification 1.1.0, and what CoreDNS adds, as questions and their answers.

The objects are the API's JSON, the questions and answers are messages: between them is everything that tp2 has.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import replace

import pytest
from dnslib import EDNS0, QTYPE, RR, DNSRecord

from tests.unit.dns.spec_cluster import catalog
from tp2.dns.responder import Responder
from tp2.dns.upstream import Reply, Upstream
from tp2.dns.zone import ZoneConfig
from tp2.types import Wanted

CATALOG = catalog()
ZONE = "cluster.local"


class Captured:
    """Everything is reachable."""

    def __init__(self) -> None:
        self.wanted: set[str] = set()

    def renew(self, wanted: Sequence[Wanted]) -> bool:
        self.wanted |= {str(item.destination) for item in wanted}
        return True

    async def ensure(self, wanted: Sequence[Wanted]) -> None:
        raise AssertionError("renewed already")


class Internet(Upstream):
    """Knows ``www.example.com``, and that nothing else exists."""

    def __init__(self) -> None:
        super().__init__([], exempt=_exempt)
        self.asked: list[str] = []

    async def exchange(self, query: bytes, *, tcp: bool) -> Reply:
        asked = DNSRecord.parse(query)
        reply = asked.reply()
        self.asked.append(str(asked.q.qname))
        if asked.q.qname != "www.example.com":
            reply.header.rcode = 3
        elif asked.q.qtype == QTYPE.A:
            reply.add_answer(*RR.fromZone("www.example.com. 60 IN A 192.0.2.1"))
        return Reply(bytes(reply.pack()), ("192.0.2.53", 53))


async def _exempt(_: socket.socket) -> None:
    return


def ask(name: str, qtype: str, config: ZoneConfig | None = None) -> tuple[DNSRecord, Internet, Captured]:
    """The answer to a question, who was asked upstream, and what was captured."""
    internet, capture = Internet(), Captured()
    responder = Responder(
        catalog=lambda: CATALOG,
        synced=lambda: True,
        capture=capture,
        upstream=internet,
        config=config or ZoneConfig(),
        why_unsynced=lambda: "",
    )
    question = DNSRecord.question(name, qtype)
    question.add_ar(EDNS0(udp_len=4096))
    reply = responder.respond(bytes(question.pack()), tcp=False)
    if not isinstance(reply, bytes):
        reply = asyncio.run(reply())
    return DNSRecord.parse(reply), internet, capture


def texts(records: Sequence[RR]) -> list[str]:
    return sorted(f"{rr.rname} {QTYPE[rr.rtype]} {rr.rdata}" for rr in records if rr.rtype != QTYPE.OPT)


def lines(owner: str, wanted: Sequence[str]) -> list[str]:
    """Records as :func:`texts` shows them; those that do not say whose they are, are *owner*'s."""
    return sorted(text if ". " in text.partition(" ")[0] + " " else f"{owner}. {text}" for text in wanted)


def reverse(address: str) -> str:
    return ipaddress.ip_address(address).reverse_pointer


WEB, DB = "web.shop.svc.cluster.local", "db.shop.svc.cluster.local"
V6_LABELS = "fd00-244--7"

# What is asked, and the records of the answer.
ANSWERS: list[tuple[str, str, list[str]]] = [
    # 2.2 schema version
    ("dns-version.cluster.local", "TXT", ['TXT "1.1.0"']),
    # 2.3.1 A and AAAA of a Service with ClusterIP
    (WEB, "A", ["A 10.96.0.10"]),
    ("first-api.shop.svc.cluster.local", "A", ["A 10.96.0.19"]),
    ("kubernetes.default.svc.cluster.local", "A", ["A 10.96.0.1"]),
    ("outward.shop.svc.cluster.local", "A", ["A 10.96.0.16"]),
    ("dual.shop.svc.cluster.local", "A", ["A 10.96.0.11"]),
    ("dual.shop.svc.cluster.local", "AAAA", ["AAAA fd00:96::11"]),
    ("six.shop.svc.cluster.local", "AAAA", ["AAAA fd00:96::12"]),
    ("svc.svc.svc.cluster.local", "A", ["A 10.96.0.21"]),
    # 2.3.2 SRV of named ports
    (f"_http._tcp.{WEB}", "SRV", [f"SRV 0 100 80 {WEB}."]),
    (f"_metrics._tcp.{WEB}", "SRV", [f"SRV 0 100 9100 {WEB}."]),
    ("_dns._udp.mixed.shop.svc.cluster.local", "SRV", ["SRV 0 100 53 mixed.shop.svc.cluster.local."]),
    ("_dns-tcp._tcp.mixed.shop.svc.cluster.local", "SRV", ["SRV 0 100 53 mixed.shop.svc.cluster.local."]),
    # The API's default protocol is TCP.
    ("_n._tcp.mixed.shop.svc.cluster.local", "SRV", ["SRV 0 100 1 mixed.shop.svc.cluster.local."]),
    ("_s1ap._sctp.calls.shop.svc.cluster.local", "SRV", ["SRV 0 100 36412 calls.shop.svc.cluster.local."]),
    ("_http._tcp.dual.shop.svc.cluster.local", "SRV", ["SRV 0 100 80 dual.shop.svc.cluster.local."]),
    # CoreDNS: SRV of a service, and of an endpoint, is that of all its named ports
    (WEB, "SRV", [f"SRV 0 50 80 {WEB}.", f"SRV 0 50 9100 {WEB}."]),
    (f"web-b.{WEB}", "SRV", [f"SRV 0 100 8080 web-b.{WEB}."]),
    (f"db-0.{DB}", "SRV", [f"SRV 0 100 5432 db-0.{DB}."]),
    # 2.3.3 PTR of a ClusterIP
    (reverse("10.96.0.10"), "PTR", [f"PTR {WEB}."]),
    (reverse("10.96.0.11"), "PTR", ["PTR dual.shop.svc.cluster.local."]),
    (reverse("fd00:96::11"), "PTR", ["PTR dual.shop.svc.cluster.local."]),
    (reverse("fd00:96::11").upper(), "PTR", ["PTR dual.shop.svc.cluster.local."]),
    (reverse("10.96.0.1"), "PTR", ["PTR kubernetes.default.svc.cluster.local."]),
    # 2.4.1 A and AAAA of a headless Service and of its endpoints
    (DB, "A", ["A 10.244.0.5", "A 10.244.0.6", "A 10.244.0.7"]),
    (DB, "AAAA", ["AAAA fd00:244::5", "AAAA fd00:244::7"]),
    (f"db-0.{DB}", "A", ["A 10.244.0.5"]),
    (f"db-0.{DB}", "AAAA", ["AAAA fd00:244::5"]),
    (f"db-1.{DB}", "A", ["A 10.244.0.6"]),
    (f"10-244-0-7.{DB}", "A", ["A 10.244.0.7"]),
    (f"{V6_LABELS}.{DB}", "AAAA", ["AAAA fd00:244::7"]),
    ("eager.shop.svc.cluster.local", "A", ["A 10.244.1.2"]),
    ("eager-0.eager.shop.svc.cluster.local", "A", ["A 10.244.1.2"]),
    ("tolerant-0.tolerant.shop.svc.cluster.local", "A", ["A 10.244.1.3"]),
    ("portless.shop.svc.cluster.local", "A", ["A 10.244.1.4"]),
    ("10-244-1-4.portless.shop.svc.cluster.local", "A", ["A 10.244.1.4"]),
    ("halves.shop.svc.cluster.local", "A", ["A 10.244.1.6", "A 10.244.1.7"]),
    ("h-0.halves.shop.svc.cluster.local", "A", ["A 10.244.1.6"]),
    # CoreDNS: endpoints of a Service with ClusterIP have names too
    (f"10-244-0-20.{WEB}", "A", ["A 10.244.0.20"]),
    (f"web-b.{WEB}", "A", ["A 10.244.0.21"]),
    # What Kubernetes would not take for a hostname gets a generated one.
    ("10-244-1-8.odd.shop.svc.cluster.local", "A", ["A 10.244.1.8"]),
    ("10-244-1-9.odd.shop.svc.cluster.local", "A", ["A 10.244.1.9"]),
    # 2.4.2 SRV of a headless Service: N endpoints, M ports
    (
        f"_postgres._tcp.{DB}",
        "SRV",
        [f"SRV 0 25 5432 {host}.{DB}." for host in ("db-0", "db-1", "10-244-0-7", V6_LABELS)],
    ),
    (
        "halves.shop.svc.cluster.local",
        "SRV",
        [
            "SRV 0 33 1000 h-0.halves.shop.svc.cluster.local.",
            "SRV 0 33 1000 h-1.halves.shop.svc.cluster.local.",
            "SRV 0 33 2000 h-0.halves.shop.svc.cluster.local.",
        ],
    ),
    ("_b._tcp.halves.shop.svc.cluster.local", "SRV", ["SRV 0 100 2000 h-0.halves.shop.svc.cluster.local."]),
    (
        "_http._tcp.odd.shop.svc.cluster.local",
        "SRV",
        [f"SRV 0 50 8080 10-244-1-{n}.odd.shop.svc.cluster.local." for n in (8, 9)],
    ),
    # 2.4.3 PTR of endpoints
    (reverse("10.244.0.5"), "PTR", [f"PTR db-0.{DB}."]),
    (reverse("fd00:244::5"), "PTR", [f"PTR db-0.{DB}."]),
    (reverse("10.244.0.7"), "PTR", [f"PTR 10-244-0-7.{DB}."]),
    (reverse("fd00:244::7"), "PTR", [f"PTR {V6_LABELS}.{DB}."]),
    (reverse("10.244.1.2"), "PTR", ["PTR eager-0.eager.shop.svc.cluster.local."]),
    # One address, two services
    (
        reverse("10.244.0.20"),
        "PTR",
        [f"PTR 10-244-0-20.{WEB}.", "PTR 10-244-0-20.svc.svc.svc.cluster.local."],
    ),
    # 2.5 ExternalName
    ("outside.shop.svc.cluster.local", "CNAME", ["CNAME www.example.com."]),
    ("outside.shop.svc.cluster.local", "A", ["CNAME www.example.com.", "www.example.com. A 192.0.2.1"]),
    ("outside-dot.shop.svc.cluster.local", "A", ["CNAME www.example.com.", "www.example.com. A 192.0.2.1"]),
    ("outside.shop.svc.cluster.local", "AAAA", ["CNAME www.example.com."]),
    ("outside.shop.svc.cluster.local", "HTTPS", ["CNAME www.example.com."]),
    ("inside.shop.svc.cluster.local", "A", [f"CNAME {WEB}.", f"{WEB}. A 10.96.0.10"]),
    ("inside.shop.svc.cluster.local", "AAAA", [f"CNAME {WEB}."]),
    (
        "inside.shop.svc.cluster.local",
        "SRV",
        [f"CNAME {WEB}.", f"{WEB}. SRV 0 50 80 {WEB}.", f"{WEB}. SRV 0 50 9100 {WEB}."],
    ),
    ("inside-db.shop.svc.cluster.local", "A", [f"CNAME {DB}.", *(f"{DB}. A 10.244.0.{n}" for n in (5, 6, 7))]),
    (
        "twice.shop.svc.cluster.local",
        "A",
        [
            "CNAME inside.shop.svc.cluster.local.",
            f"inside.shop.svc.cluster.local. CNAME {WEB}.",
            f"{WEB}. A 10.96.0.10",
        ],
    ),
    # 2.6 pods
    ("1-2-3-4.shop.pod.cluster.local", "A", ["A 1.2.3.4"]),
    ("0-0-0-0.bare.pod.cluster.local", "A", ["A 0.0.0.0"]),
    ("255-255-255-255.shop.pod.cluster.local", "A", ["A 255.255.255.255"]),
    ("10-244-0-5.default.pod.cluster.local", "A", ["A 10.244.0.5"]),
    ("fd00-244--7.shop.pod.cluster.local", "AAAA", ["AAAA fd00:244::7"]),
    ("--1.shop.pod.cluster.local", "AAAA", ["AAAA ::1"]),
    ("2001-db8-0-0-0-0-0-1.shop.pod.cluster.local", "AAAA", ["AAAA 2001:db8::1"]),
    # The zone itself
    (ZONE, "NS", ["NS ns.dns.cluster.local."]),
    ("ns.dns.cluster.local", "A", ["A 10.96.0.53"]),
    # Short names, as a pod in the namespace "default" would resolve them
    ("cart", "A", ["A 10.96.0.20"]),
    ("kubernetes", "A", ["A 10.96.0.1"]),
    ("web.shop", "A", ["A 10.96.0.10"]),
    ("web.shop.svc", "A", ["A 10.96.0.10"]),
    ("svc.svc", "A", ["A 10.96.0.21"]),
    ("db.shop", "AAAA", ["AAAA fd00:244::5", "AAAA fd00:244::7"]),
    ("db-0.db.shop", "A", ["A 10.244.0.5"]),
    ("_http._tcp.web.shop", "SRV", [f"SRV 0 100 80 {WEB}."]),
    ("outside.shop", "A", ["CNAME www.example.com.", "www.example.com. A 192.0.2.1"]),
    # Case is the client's to choose, and comes back as it was
    ("WEB.Shop.SVC.cluster.LOCAL", "A", ["A 10.96.0.10"]),
    ("Web.Shop", "A", ["A 10.96.0.10"]),
    ("_HTTP._Tcp.web.shop.svc.cluster.local", "SRV", [f"SRV 0 100 80 {WEB}."]),
    ("DNS-Version.Cluster.Local", "TXT", ['TXT "1.1.0"']),
]


@pytest.mark.parametrize(("name", "qtype", "expected"), ANSWERS, ids=[f"{name} {qtype}" for name, qtype, _ in ANSWERS])
def test_the_answer_has_exactly_these_records(name: str, qtype: str, expected: list[str]) -> None:
    reply, _, _ = ask(name, qtype)
    assert (reply.header.rcode, reply.header.aa, reply.header.tc) == (0, 1, 0)
    assert texts(reply.rr) == lines(name, expected)
    assert str(reply.q.qname) == f"{name}."
    # RFC 1034 section 4.3.1: an alias comes before what it leads to.
    kinds = [rr.rtype == QTYPE.CNAME for rr in reply.rr]
    assert kinds == sorted(kinds, reverse=True)
    inside = [rr for rr in reply.rr if "example.com." not in str(rr.rname)]
    assert {rr.ttl for rr in inside} == ({28800} if qtype == "TXT" else {5})


ADDITIONAL: list[tuple[str, str, list[str]]] = [
    (f"_http._tcp.{WEB}", "SRV", [f"{WEB}. A 10.96.0.10"]),
    ("_http._tcp.web.shop", "SRV", [f"{WEB}. A 10.96.0.10"]),
    (
        "_http._tcp.dual.shop.svc.cluster.local",
        "SRV",
        ["dual.shop.svc.cluster.local. A 10.96.0.11", "dual.shop.svc.cluster.local. AAAA fd00:96::11"],
    ),
    (
        f"_postgres._tcp.{DB}",
        "SRV",
        [
            f"10-244-0-7.{DB}. A 10.244.0.7",
            f"db-0.{DB}. A 10.244.0.5",
            f"db-0.{DB}. AAAA fd00:244::5",
            f"db-1.{DB}. A 10.244.0.6",
            f"{V6_LABELS}.{DB}. AAAA fd00:244::7",
        ],
    ),
    (f"db-0.{DB}", "SRV", [f"db-0.{DB}. A 10.244.0.5", f"db-0.{DB}. AAAA fd00:244::5"]),
    (ZONE, "NS", ["ns.dns.cluster.local. A 10.96.0.53"]),
    (WEB, "A", []),
]


@pytest.mark.parametrize(("name", "qtype", "expected"), ADDITIONAL)
def test_who_gets_a_name_gets_its_addresses_in_addition(name: str, qtype: str, expected: list[str]) -> None:
    reply, _, capture = ask(name, qtype)
    assert texts(reply.ar) == expected
    for text in expected:
        address = text.rpartition(" ")[2]
        assert any(address in destination for destination in capture.wanted)


NODATA: list[tuple[str, str]] = [
    # There, but without such records
    *((WEB, qtype) for qtype in ("AAAA", "HTTPS", "SVCB", "TXT", "MX", "CNAME", "NS", "SOA", "PTR", "DS", "NAPTR")),
    *((DB, qtype) for qtype in ("HTTPS", "TXT", "CNAME")),
    *((name, "AAAA") for name in ("web.shop", "web.shop.svc", "cart", "portless.shop", "10-244-0-7.db.shop")),
    *((name, qtype) for name in ("web.shop", "cart", "db.shop") for qtype in ("HTTPS", "SVCB", "MX", "SOA", "NS")),
    ("six.shop.svc.cluster.local", "A"),
    ("portless.shop.svc.cluster.local", "AAAA"),
    ("portless.shop.svc.cluster.local", "SRV"),
    ("unnamed.shop.svc.cluster.local", "SRV"),
    ("10-244-1-5.unnamed.shop.svc.cluster.local", "SRV"),
    ("plain.shop.svc.cluster.local", "SRV"),
    (f"db-1.{DB}", "AAAA"),
    (f"{V6_LABELS}.{DB}", "A"),
    (f"_http._tcp.{WEB}", "A"),
    (f"_http._tcp.{WEB}", "TXT"),
    ("dns-version.cluster.local", "A"),
    ("ns.dns.cluster.local", "AAAA"),
    ("1-2-3-4.shop.pod.cluster.local", "AAAA"),
    ("1-2-3-4.shop.pod.cluster.local", "SRV"),
    ("fd00--1.shop.pod.cluster.local", "A"),
    (ZONE, "A"),
    (ZONE, "AAAA"),
    (ZONE, "TXT"),
    (reverse("10.96.0.10"), "A"),
    (reverse("10.96.0.10"), "TXT"),
    (reverse("10.244.0.5"), "NS"),
    # Empty non-terminals: nothing but names below (RFC 8020)
    ("svc.cluster.local", "A"),
    ("pod.cluster.local", "A"),
    ("dns.cluster.local", "A"),
    ("shop.svc.cluster.local", "A"),
    ("shop.svc.cluster.local", "NS"),
    ("shop.pod.cluster.local", "AAAA"),
    ("bare.svc.cluster.local", "A"),
    ("bare.pod.cluster.local", "A"),
    ("svc.svc.cluster.local", "A"),
    (f"_tcp.{WEB}", "SRV"),
    (f"_tcp.{DB}", "A"),
    ("_udp.mixed.shop.svc.cluster.local", "SRV"),
    ("_sctp.calls.shop.svc.cluster.local", "A"),
]


@pytest.mark.parametrize(("name", "qtype"), NODATA)
def test_a_name_without_such_records_is_told_so_at_once(name: str, qtype: str) -> None:
    reply, internet, capture = ask(name, qtype)
    assert (reply.header.rcode, reply.header.aa, reply.rr) == (0, 1, [])
    assert_negative(reply, name)
    assert internet.asked == []
    assert capture.wanted == set()


NXDOMAIN: list[str] = [
    "nope.shop.svc.cluster.local",
    "web.default.svc.cluster.local",
    "web.nope.svc.cluster.local",
    "nope.svc.cluster.local",
    "nope.pod.cluster.local",
    "nope.cluster.local",
    "web.cluster.local",
    "web.shop.cluster.local",
    "web.shop.svc.cluster.local.cluster.local",
    "x.dns-version.cluster.local",
    "x.ns.dns.cluster.local",
    "x.dns.cluster.local",
    "dns-version.svc.cluster.local",
    # Headless without a ready endpoint (2.4.1), and what would be below
    "empty.shop.svc.cluster.local",
    "alone.shop.svc.cluster.local",
    "_postgres._tcp.empty.shop.svc.cluster.local",
    "_tcp.empty.shop.svc.cluster.local",
    "empty-0.empty.shop.svc.cluster.local",
    # Endpoints that are not ready, and generated names of those that have one
    f"db-8.{DB}",
    f"db-9.{DB}",
    f"10-244-0-9.{DB}",
    f"10-244-0-5.{DB}",
    f"nope.{DB}",
    f"x.db-0.{DB}",
    # Ports and protocols that are not there, or have no name
    f"_https._tcp.{WEB}",
    f"_http._udp.{WEB}",
    f"_udp.{WEB}",
    f"http._tcp.{WEB}",
    f"_http.tcp.{WEB}",
    f"_.{WEB}",
    f"_._tcp.{WEB}",
    f"x._http._tcp.{WEB}",
    "_8080._tcp.plain.shop.svc.cluster.local",
    "_._tcp.plain.shop.svc.cluster.local",
    "_tcp.plain.shop.svc.cluster.local",
    "_dns._tcp.mixed.shop.svc.cluster.local",
    "_http._tcp.outside.shop.svc.cluster.local",
    "x.outside.shop.svc.cluster.local",
    # CoreDNS knew wildcards once
    "*.shop.svc.cluster.local",
    "web.*.svc.cluster.local",
    "any.shop.svc.cluster.local",
    f"*.{DB}",
    f"*._tcp.{WEB}",
    f"_http.*.{WEB}",
    # Pods
    "1-2-3-4.nope.pod.cluster.local",
    "1-2-3.shop.pod.cluster.local",
    "1-2-3-256.shop.pod.cluster.local",
    "01-2-3-4.shop.pod.cluster.local",
    "1-2-3-4-5.shop.pod.cluster.local",
    "fe80--1%eth0.shop.pod.cluster.local",
    "x.shop.pod.cluster.local",
    "-.shop.pod.cluster.local",
    "web-0.shop.pod.cluster.local",
    "x.1-2-3-4.shop.pod.cluster.local",
    "1.2.3.4.shop.pod.cluster.local",
]


@pytest.mark.parametrize("qtype", ["A", "AAAA", "SRV", "TXT", "HTTPS", "ANY"])
@pytest.mark.parametrize("name", NXDOMAIN)
def test_a_name_that_is_not_there_is_not_there_for_any_type(name: str, qtype: str) -> None:
    reply, internet, _ = ask(name, qtype)
    assert (reply.header.rcode, reply.header.aa, reply.rr) == (3, 1, [])
    assert_negative(reply, name)
    assert internet.asked == []


def assert_negative(reply: DNSRecord, name: str) -> None:
    """The SOA is there (RFC 2308), its TTL is what a resolver shall remember, and the name is in its zone."""
    (soa,) = reply.auth
    assert soa.rtype == QTYPE.SOA
    assert soa.ttl == min(soa.ttl, soa.rdata.times[4]) == 5
    assert f"{name}.".lower().endswith(str(soa.rname).lower())
    assert texts(reply.ar) == []
    if name.endswith(ZONE):
        assert str(soa.rname) == f"{ZONE}."


def test_the_soa_of_the_zone() -> None:
    reply, _, _ = ask(ZONE, "SOA")
    (record,) = texts(reply.rr)
    assert record.startswith("cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. ")
    assert reply.rr[0].rdata.times[0] == CATALOG.generation


@pytest.mark.parametrize("name", [WEB, ZONE, DB, "web.shop", reverse("10.96.0.10")])
def test_any_is_answered_with_next_to_nothing(name: str) -> None:
    reply, _, _ = ask(name, "ANY")
    assert [rr.rtype for rr in reply.rr] == [QTYPE.HINFO]
    assert reply.rr[0].rdata.data == b"\x07RFC8482\x00"


@pytest.mark.parametrize("name", ["nowhere.shop.svc.cluster.local", "nowhere.shop"])
def test_an_alias_of_what_is_not_there_says_both(name: str) -> None:
    reply, _, _ = ask(name, "A")
    assert reply.header.rcode == 3
    assert texts(reply.rr) == [f"{name}. CNAME gone.shop.svc.cluster.local."]
    assert_negative(reply, "gone.shop.svc.cluster.local")


@pytest.mark.parametrize("name", ["onto-itself", "ring", "ring2", "deep0"])
def test_aliases_without_end_are_a_failure_in_words(name: str) -> None:
    reply, internet, _ = ask(f"{name}.shop.svc.cluster.local", "A")
    assert (reply.header.rcode, reply.rr, internet.asked) == (2, [], [])
    option = reply.ar[0].rdata[0]
    assert option.code == 15
    assert f"{name}.shop" in option.data[2:].decode()


def test_a_long_chain_of_aliases_is_followed_to_its_end() -> None:
    reply, _, _ = ask("shallow.shop.svc.cluster.local", "A")
    assert [rr.rtype for rr in reply.rr] == [QTYPE.CNAME] * 8 + [QTYPE.A]


@pytest.mark.parametrize(
    ("name", "qtype"),
    [
        ("www.example.com", "A"),
        ("web", "A"),
        ("shop", "A"),
        ("api.shop", "A"),
        ("nope.shop.svc", "A"),
        ("shop.svc", "A"),
        ("svc", "A"),
        ("local", "A"),
        ("xcluster.local", "A"),
        ("example.local", "AAAA"),
        ("1-2-3-4.shop", "A"),
        ("dns-version", "TXT"),
        ("x.web.shop", "A"),
        ("a.b.c.web.shop", "A"),
        (reverse("10.96.0.99"), "PTR"),
        (reverse("10.244.0.9"), "PTR"),
        (reverse("fd00:96::99"), "PTR"),
        ("10.in-addr.arpa", "NS"),
        ("0.96.10.in-addr.arpa", "PTR"),
        ("1.10.0.96.10.in-addr.arpa", "PTR"),
        ("d.f.ip6.arpa", "SOA"),
        ("", "NS"),
    ],
)
def test_what_the_cluster_does_not_have_is_somebody_elses(name: str, qtype: str) -> None:
    _, internet, _ = ask(name, qtype)
    assert internet.asked == [f"{name}."]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (WEB, {"10.96.0.10:80", "10.96.0.10:9100"}),
        ("six.shop", {"[fd00:96::12]:80"}),
        (DB, {"[fd00:244::5]:5432", "[fd00:244::7]:5432"}),
        ("mixed.shop", set()),
        ("db-0.db.shop", {"[fd00:244::5]:5432"}),
        ("dual.shop", {"[fd00:96::11]:80"}),
        ("fd00-244--7.shop.pod.cluster.local", {"[fd00:244::7]:5432"}),
    ],
)
def test_ipv6_answers_are_captured_as_ipv4_ones_are(name: str, wanted: set[str]) -> None:
    four = name == WEB
    assert ask(name, "A" if four else "AAAA")[2].wanted == wanted


SEARCH = ZoneConfig(search=("corp.example", "example"))


@pytest.mark.parametrize("domain", SEARCH.search)
@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("cart", "10.96.0.20"),
        ("web.shop", "10.96.0.10"),
        ("web.shop.svc", "10.96.0.10"),
        ("db-1.db.shop", "10.244.0.6"),
        ("web.shop.svc.cluster.local", "10.96.0.10"),
        ("db-1.db.shop.svc.cluster.local", "10.244.0.6"),
        ("1-2-3-4.shop.pod.cluster.local", "1.2.3.4"),
    ],
)
def test_a_name_with_the_search_list_behind_it_ends_in_the_right_answer(name: str, address: str, domain: str) -> None:
    reply, internet, _ = ask(f"{name}.{domain}", "A", SEARCH)
    assert texts(reply.rr) == [f"{name}.{domain}. A {address}"]
    # What has the cluster's domain in it is the cluster's before it is anybody's who answers for all names.
    assert internet.asked == ([] if ZONE in name else [f"{name}.{domain}."])
    assert ask(f"{name}.{domain}", "HTTPS", SEARCH)[0].header.rcode == 0


@pytest.mark.parametrize(
    "name",
    [
        "nope.shop",
        "nope",
        "shop",
        "x.web.shop",
        "nope.shop.svc.cluster.local",
        "cluster.local",
        "dns-version.cluster.local",
    ],
)
def test_a_name_with_the_search_list_behind_it_that_the_cluster_does_not_have_stays_upstreams(name: str) -> None:
    reply, internet, _ = ask(f"{name}.corp.example", "A", SEARCH)
    assert reply.header.rcode == 3
    assert internet.asked == [f"{name}.corp.example."]


@pytest.mark.parametrize(
    ("exclude", "gone", "left"),
    [
        ("web.shop", ["web.shop", "web.shop.corp.example", "_http._tcp.web.shop"], [WEB, "web.shop.svc", "db.shop"]),
        ("shop", ["web.shop", "db.shop", "db-0.db.shop"], [WEB, "cart"]),
        (".shop", ["web.shop", "db.shop"], [WEB, "cart"]),
        ("*.shop", ["web.shop", "db.shop"], [WEB, "cart"]),
        ("Cart.", ["cart", "cart.corp.example"], ["cart.default", "kubernetes"]),
        (WEB, [WEB, f"10-244-0-20.{WEB}"], ["web.shop", DB]),
        ("10.in-addr.arpa", [reverse("10.96.0.10")], [reverse("fd00:96::11"), WEB]),
        ("corp.example", ["cart.corp.example", f"{WEB}.corp.example"], ["cart", WEB]),
    ],
)
def test_an_excluded_name_is_not_in_the_clusters_view(exclude: str, gone: list[str], left: list[str]) -> None:
    config = ZoneConfig(exclude=(exclude,), search=("corp.example",))
    for name in gone:
        reply, internet, capture = ask(name, "PTR" if name.endswith("arpa") else "A", config)
        assert (reply.header.rcode, internet.asked, capture.wanted) == (3, [f"{name}."], set())
    for name in left:
        reply, internet, _ = ask(name, "PTR" if name.endswith("arpa") else "A", config)
        assert reply.rr
        assert internet.asked == []


@pytest.mark.parametrize(
    ("name", "rcode"),
    [
        (WEB, 0),
        ("nope.shop.svc.cluster.local", 3),
        ("cart.default.svc.cluster.local", 2),
        ("x.y.nope.svc.cluster.local", 2),
        ("nope.svc.cluster.local", 2),
        ("1-2-3-4.nope.pod.cluster.local", 2),
        # That there are such namespaces is known, and nothing more is needed for these.
        ("default.svc.cluster.local", 0),
        ("1-2-3-4.default.pod.cluster.local", 0),
        ("nope.cluster.local", 3),
    ],
)
def test_what_the_user_may_not_list_is_not_denied(name: str, rcode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {key: found for key, found in CATALOG.services.items() if key[0] == "shop"}
    monkeypatch.setitem(globals(), "CATALOG", replace(CATALOG, services=mine, listed=frozenset({"shop"})))
    reply, internet, _ = ask(name, "A")
    assert (reply.header.rcode, internet.asked) == (rcode, [])
    if rcode == 2:
        assert b"not allowed to list the services of namespace" in bytes(reply.ar[0].rdata[0].data)


def test_the_clusters_domain_may_be_another() -> None:
    config = ZoneConfig(zone="K8s.Corp.Example.")
    assert texts(ask("web.shop.svc.k8s.corp.example", "A", config)[0].rr) == [
        "web.shop.svc.k8s.corp.example. A 10.96.0.10"
    ]
    assert texts(ask(reverse("10.96.0.10"), "PTR", config)[0].rr)[0].endswith("PTR web.shop.svc.k8s.corp.example.")
    assert ask("nope.k8s.corp.example", "A", config)[0].header.rcode == 3
    assert ask(WEB, "A", config)[1].asked == [f"{WEB}."]
    assert ask("corp.example", "A", config)[1].asked == ["corp.example."]
