"""When an answer may leave, and what a client is told when none can."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import replace

import pytest
from dnslib import EDNS0, DNSRecord, EDNSOption

from tp2.cluster.catalog import Catalog, Port, Service
from tp2.dns.message import Ede, Rcode
from tp2.dns.responder import Responder
from tp2.dns.upstream import Reply, Upstream, UpstreamError
from tp2.dns.zone import ZoneConfig
from tp2.errors import ForwarderError
from tp2.types import Destination, Wanted

SERVICES = (
    Service("shop", "web", ("10.96.0.10",), (Port("http", 80),)),
    Service("shop", "outside", external_name="www.example.com"),
    Service("shop", "bad", external_name="not..a.name"),
)
CATALOG = Catalog(
    services={(s.namespace, s.name): s for s in SERVICES},
    namespaces=frozenset({"shop"}),
    services_by_address={"10.96.0.10": SERVICES[0]},
)
# Longer than the answer's TTL: so long may the answer be repeated from the cache without renewing the lease.
WEB = (Wanted("web.shop", Destination("10.96.0.10", 80), 10),)


class FakeCapture:
    """Remembers what it was asked; ``ensure`` waits for ``gate``."""

    def __init__(self) -> None:
        self.captured: set[Wanted] = set()
        self.gate = asyncio.Event()
        self.error: Exception | None = None
        self.renewed = 0

    def renew(self, wanted: Sequence[Wanted]) -> bool:
        self.renewed += 1
        return self.captured.issuperset(wanted)

    async def ensure(self, wanted: Sequence[Wanted]) -> None:
        await self.gate.wait()
        if self.error:
            raise self.error
        self.captured.update(wanted)


class FakeUpstream(Upstream):
    """Answers from a list of replies, or raises."""

    def __init__(self) -> None:
        super().__init__([], exempt=_exempt)
        self.asked: list[tuple[bytes, bool]] = []
        self.replies: list[bytes | Reply | Exception] = []

    async def exchange(self, query: bytes, *, tcp: bool) -> Reply:
        self.asked.append((query, tcp))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, bytes):
            reply = Reply(reply, ("192.0.2.53", 53))
        return replace(reply, message=query[:2] + reply.message[2:])


async def _exempt(_: socket.socket) -> None:
    return


class World:
    """A responder with everything around it faked."""

    def __init__(self) -> None:
        self.capture = FakeCapture()
        self.upstream = FakeUpstream()
        self.synced = True
        self.responder = Responder(
            catalog=lambda: CATALOG,
            synced=lambda: self.synced,
            capture=self.capture,
            upstream=self.upstream,
            config=ZoneConfig(search=("corp.example",)),
            why_unsynced=lambda: "services: forbidden to list",
        )

    async def ask(self, data: bytes, *, tcp: bool = False) -> DNSRecord:
        reply = self.responder.respond(data, tcp=tcp)
        if not isinstance(reply, bytes):
            reply = await reply()
        return DNSRecord.parse(reply)


@pytest.fixture
def world() -> World:
    return World()


def request(name: str, qtype: str = "A", *, qclass: str = "IN", size: int = 1232, version: int = 0) -> bytes:
    record = DNSRecord.question(name, qtype, qclass)
    if size:
        record.add_ar(EDNS0(udp_len=size, version=version))
    return bytes(record.pack())


def answer(*lines: str, question: str = "www.example.com", truncated: bool = False) -> bytes:
    from dnslib import RR

    record = DNSRecord.question(question).reply()
    record.header.tc = truncated
    for line in lines:
        record.add_answer(*RR.fromZone(line))
    return bytes(record.pack())


def extended_error(reply: DNSRecord) -> tuple[int, str]:
    option = reply.ar[0].rdata[0]
    assert option.code == 15
    return int.from_bytes(option.data[:2]), option.data[2:].decode()


async def test_an_answer_waits_until_its_destinations_are_captured(world: World) -> None:
    pending = asyncio.ensure_future(world.ask(request("web.shop")))
    await asyncio.sleep(0)
    assert not pending.done()
    world.capture.gate.set()
    reply = await pending
    assert str(reply.rr[0].rdata) == "10.96.0.10"
    assert world.capture.captured == set(WEB)


async def test_an_answer_whose_destinations_are_captured_leaves_at_once_and_renews_them(world: World) -> None:
    world.capture.captured.update(WEB)
    assert isinstance(world.responder.respond(request("web.shop"), tcp=False), bytes)
    assert world.capture.renewed == 1


async def test_a_capture_that_fails_is_a_server_failure_that_says_why(world: World) -> None:
    world.capture.gate.set()
    world.capture.error = ForwarderError("cannot capture 10.96.0.10:80", "no local port is free", "use --ports")
    reply = await world.ask(request("web.shop"))
    assert (reply.header.rcode, reply.rr) == (Rcode.SERVFAIL, [])
    assert extended_error(reply) == (Ede.OTHER, "cannot capture 10.96.0.10:80: no local port is free")
    plain = await world.ask(request("web.shop", size=0))
    assert (plain.header.rcode, plain.ar) == (Rcode.SERVFAIL, [])


async def test_a_defect_is_a_server_failure_and_the_next_query_is_served(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.capture.gate.set()
    world.capture.error = ZeroDivisionError("oops")
    for _ in range(3):
        assert (await world.ask(request("web.shop"))).header.rcode == Rcode.SERVFAIL
    assert len([r for r in caplog.records if "oops" in r.getMessage()]) == 1
    world.capture.error = None
    assert (await world.ask(request("web.shop"))).header.rcode == Rcode.NOERROR


async def test_a_defect_on_the_spot_is_a_server_failure_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(world.capture, "renew", fail)
    assert (await world.ask(request("web.shop"))).header.rcode == Rcode.SERVFAIL


@pytest.mark.parametrize("name", ["web.shop.svc.cluster.local", "nope.cluster.local", "web.shop.svc"])
async def test_the_clusters_names_are_not_ready_before_it_is_listed(world: World, name: str) -> None:
    world.synced = False
    reply = await world.ask(request(name))
    assert reply.header.rcode == Rcode.SERVFAIL
    assert extended_error(reply) == (Ede.NOT_READY, "services: forbidden to list")
    assert world.upstream.asked == []


async def test_other_names_are_forwarded_before_the_cluster_is_listed(world: World) -> None:
    world.synced = False
    world.upstream.replies = [answer("www.example.com. 60 IN A 192.0.2.1")]
    assert len((await world.ask(request("www.example.com"))).rr) == 1


@pytest.mark.parametrize("name", ["nope", "nope.shop", "nope.corp.example", "nope.shop.corp.example"])
async def test_nobody_is_told_that_a_short_name_does_not_exist_before_that_is_known(world: World, name: str) -> None:
    world.synced = False
    world.upstream.replies = [nxdomain(name)]
    reply = await world.ask(request(name))
    assert reply.header.rcode == Rcode.SERVFAIL
    assert extended_error(reply) == (Ede.NOT_READY, "services: forbidden to list")


@pytest.mark.parametrize("name", ["nope.www.example.com", "a.b.c.corp.example", "x.y.z"])
async def test_names_that_are_too_long_for_a_service_do_not_exist_if_upstream_says_so(world: World, name: str) -> None:
    world.synced = False
    world.upstream.replies = [nxdomain(name)]
    assert (await world.ask(request(name))).header.rcode == Rcode.NXDOMAIN


async def test_what_is_not_the_clusters_is_forwarded_as_it_is(world: World) -> None:
    data = request("www.example.com")
    world.upstream.replies = [answer("www.example.com. 60 IN A 192.0.2.1")] * 2
    await world.ask(data)
    await world.ask(data, tcp=True)
    assert world.upstream.asked == [(data, False), (data, True)]
    assert world.responder.counters.forwarded == 2


async def test_an_upstream_failure_is_a_server_failure_in_words(world: World) -> None:
    world.upstream.replies = [UpstreamError(Ede.NO_REACHABLE_AUTHORITY, "192.0.2.53 gave no answer in 2 s")]
    reply = await world.ask(request("www.example.com"))
    assert reply.header.rcode == Rcode.SERVFAIL
    assert extended_error(reply) == (22, "192.0.2.53 gave no answer in 2 s")
    assert world.responder.counters.failures == 1


def refusing(name: str = "www.example.com", rcode: int = 2, failures: str = "192.0.2.53: answered SERVFAIL") -> Reply:
    record = DNSRecord.question(name).reply()
    record.header.rcode = rcode
    return Reply(bytes(record.pack()), ("192.0.2.53", 53), failures)


@pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED, Rcode.NOTIMP])
async def test_an_upstream_that_fails_is_passed_on_with_the_words_why(world: World, rcode: Rcode) -> None:
    world.upstream.replies = [refusing(rcode=rcode)] * 2
    reply = await world.ask(request("www.example.com"))
    assert reply.header.rcode == rcode
    assert extended_error(reply) == (22, "192.0.2.53: answered SERVFAIL")
    plain = await world.ask(request("www.example.com", size=0))
    assert (plain.header.rcode, plain.ar) == (rcode, [])
    assert (world.responder.counters.failures, world.responder.counters.forwarded) == (2, 0)


async def test_an_upstream_that_says_itself_why_it_fails_is_not_interrupted(world: World) -> None:
    failed = refusing()
    theirs = DNSRecord.parse(failed.message)
    theirs.add_ar(EDNS0(opts=[EDNSOption(15, b"\0\x06bogus")]))
    world.upstream.replies = [Reply(bytes(theirs.pack()), failed.server, failed.failures)]
    assert extended_error(await world.ask(request("www.example.com"))) == (6, "bogus")


async def test_an_upstream_that_only_gives_a_code_for_its_failure_keeps_it_and_is_put_into_words(world: World) -> None:
    failed = refusing()
    theirs = DNSRecord.parse(failed.message)
    theirs.add_ar(EDNS0(opts=[EDNSOption(10, b"cookie!!"), EDNSOption(15, b"\0\x06")]))
    world.upstream.replies = [Reply(bytes(theirs.pack()), failed.server, failed.failures)]
    assert extended_error(await world.ask(request("www.example.com"))) == (6, "192.0.2.53: answered SERVFAIL")


async def test_an_alias_whose_target_fails_is_a_failure_in_words(world: World) -> None:
    world.upstream.replies = [refusing()]
    reply = await world.ask(request("outside.shop"))
    assert reply.header.rcode == Rcode.SERVFAIL
    assert [f"{rr.rname} {rr.rdata}" for rr in reply.rr] == ["outside.shop. www.example.com."]
    assert extended_error(reply) == (22, "www.example.com: 192.0.2.53: answered SERVFAIL")


async def test_a_name_of_the_search_list_that_upstream_will_not_speak_of_is_the_short_name(world: World) -> None:
    world.capture.gate.set()
    world.upstream.replies = [refusing("web.shop.corp.example", Rcode.REFUSED)]
    assert str((await world.ask(request("web.shop.corp.example"))).rr[0].rdata) == "10.96.0.10"
    world.upstream.replies = [refusing("web.shop.corp.example", Rcode.SERVFAIL)]
    assert (await world.ask(request("web.shop.corp.example"))).header.rcode == Rcode.SERVFAIL


async def test_a_client_that_takes_more_than_a_datagram_holds_gets_a_datagram(world: World) -> None:
    world.upstream.replies = [answer(*[f"www.example.com. 60 IN A 10.9.{n >> 8}.{n & 255}" for n in range(2000)])] * 2
    # Compressed no more than dnslib does it: about 54 kB, and 66 kB would not go over UDP.
    assert len((await world.ask(request("www.example.com", size=65535))).rr) == 2000
    huge = answer(*[f"www.example.com. 60 IN TXT {'x' * 250}" for _ in range(249)])
    assert 65507 < len(huge) <= 65535
    world.upstream.replies = [huge] * 2
    assert (await world.ask(request("www.example.com", size=65535))).header.tc == 1
    assert (await world.ask(request("www.example.com", size=65535), tcp=True)).header.tc == 0


async def test_a_forwarded_reply_larger_than_the_client_takes_is_truncated(world: World) -> None:
    lines = [f"www.example.com. 60 IN A 192.0.2.{n}" for n in range(100)]
    world.upstream.replies = [answer(*lines)] * 2
    reply = await world.ask(request("www.example.com", size=512))
    assert (reply.header.tc, reply.rr) == (1, [])
    assert len((await world.ask(request("www.example.com", size=512), tcp=True)).rr) == 100


async def test_an_external_name_brings_the_records_of_its_target(world: World) -> None:
    world.upstream.replies = [answer("www.example.com. 60 IN CNAME x.example.com.", "x.example.com. 60 IN A 192.0.2.1")]
    reply = await world.ask(request("outside.shop"))
    assert [f"{rr.rname} {rr.rdata}" for rr in reply.rr] == [
        "outside.shop. www.example.com.",
        "www.example.com. x.example.com.",
        "x.example.com. 192.0.2.1",
    ]


async def test_a_truncated_target_is_asked_for_again_over_tcp(world: World) -> None:
    full = answer("www.example.com. 60 IN A 192.0.2.1")
    world.upstream.replies = [answer(truncated=True), full]
    assert len((await world.ask(request("outside.shop"))).rr) == 2
    assert [tcp for _, tcp in world.upstream.asked] == [False, True]


@pytest.mark.parametrize("reply", [b"", bytes(12), b"\0\0\x80\0\0\0\0\1\0\0\0\0\xc0\x0c"])
async def test_a_target_answered_with_garbage_never_hurts(world: World, reply: bytes) -> None:
    world.upstream.replies = [reply]
    assert (await world.ask(request("outside.shop"))).header.rcode in (Rcode.SERVFAIL, Rcode.NOERROR)


async def test_a_target_that_upstream_cannot_make_sense_of_is_a_failure_in_words(world: World) -> None:
    world.upstream.replies = [refusing(rcode=1, failures="")]
    reply = await world.ask(request("outside.shop"))
    assert (reply.header.rcode, len(reply.rr)) == (Rcode.SERVFAIL, 1)
    assert extended_error(reply) == (22, "www.example.com: 192.0.2.53 answered with code 1")


async def test_an_external_name_that_is_no_name_fails_in_words(world: World) -> None:
    reply = await world.ask(request("bad.shop"))
    assert reply.header.rcode == Rcode.SERVFAIL
    assert "not..a.name" in extended_error(reply)[1]
    alone = await world.ask(request("bad.shop", "CNAME"))
    assert alone.header.rcode == Rcode.SERVFAIL
    assert extended_error(alone)[1].startswith("ExternalName service: ")


async def test_a_newer_edns_is_told_the_version(world: World) -> None:
    reply = await world.ask(request("web.shop", version=1))
    assert (reply.ar[0].edns_rcode, reply.ar[0].edns_ver, reply.rr) == (1, 0, [])
    assert "EDNS version 1" in extended_error(reply)[1]


@pytest.mark.parametrize(("qtype", "qclass"), [("AXFR", "IN"), ("IXFR", "IN"), ("TXT", "CH")])
async def test_what_nobody_may_ask_of_the_cluster_is_refused(world: World, qtype: str, qclass: str) -> None:
    assert (await world.ask(request("cluster.local", qtype, qclass=qclass))).header.rcode == Rcode.REFUSED


async def test_other_classes_and_opcodes_are_passed_on(world: World) -> None:
    world.upstream.replies = [answer()] * 2
    await world.ask(request("version.bind", "TXT", qclass="CH"))
    update = bytearray(request("web.shop", "SOA"))
    update[2] |= 5 << 3
    await world.ask(bytes(update))
    assert len(world.upstream.asked) == 2
    update = bytearray(request("cluster.local", "SOA"))
    update[2] |= 5 << 3
    assert (await world.ask(bytes(update))).header.rcode == Rcode.NOTIMP
    assert len(world.upstream.asked) == 2


def nxdomain(name: str) -> bytes:
    record = DNSRecord.question(name).reply()
    record.header.rcode = 3
    return bytes(record.pack())


async def test_a_name_of_the_search_list_that_exists_nowhere_else_is_the_short_name(world: World) -> None:
    world.capture.gate.set()
    world.upstream.replies = [nxdomain("web.shop.corp.example")] * 3
    reply = await world.ask(request("Web.Shop.Corp.Example"))
    assert [f"{rr.rname} {rr.rdata}" for rr in reply.rr] == ["Web.Shop.Corp.Example. 10.96.0.10"]
    assert world.capture.captured == set(WEB)
    six = await world.ask(request("web.shop.corp.example", "AAAA"))
    assert (six.header.rcode, six.rr, len(six.auth)) == (Rcode.NOERROR, [], 1)
    assert (await world.ask(request("nope.shop.corp.example"))).header.rcode == Rcode.NXDOMAIN


async def test_a_name_of_the_search_list_that_exists_upstream_is_upstreams_each_time(world: World) -> None:
    world.capture.gate.set()
    found = answer("web.shop.corp.example. 60 IN A 192.0.2.1", question="web.shop.corp.example")
    world.upstream.replies = [nxdomain("web.shop.corp.example"), found]
    assert str((await world.ask(request("web.shop.corp.example"))).rr[0].rdata) == "10.96.0.10"
    assert str((await world.ask(request("web.shop.corp.example"))).rr[0].rdata) == "192.0.2.1"


async def test_names_outside_of_the_search_list_are_left_as_upstream_has_them(world: World) -> None:
    world.upstream.replies = [nxdomain("web.shop.example")]
    assert (await world.ask(request("web.shop.example"))).header.rcode == Rcode.NXDOMAIN


async def test_another_configuration_counts_from_the_next_query(world: World) -> None:
    world.capture.captured.update(WEB)
    assert len((await world.ask(request("web.shop"))).rr) == 1
    world.responder.set_config(ZoneConfig(exclude=("web.shop",)))
    world.upstream.replies = [nxdomain("web.shop")]
    assert (await world.ask(request("web.shop"))).header.rcode == Rcode.NXDOMAIN


async def test_a_query_line_says_who_answered_and_why(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="tp2.dns")
    world.capture.captured.update(WEB)
    world.upstream.replies = [answer()]
    await world.ask(request("Web.Shop"))
    await world.ask(request("www.example.com", "HTTPS"))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("web.shop A: cluster: service (")
    assert second.startswith("www.example.com HTTPS: upstream 192.0.2.53: not a name of the cluster (")


async def test_counters_tell_answers_from_failures(world: World) -> None:
    world.capture.captured.update(WEB)
    await world.ask(request("web.shop"))
    world.responder.respond(b"junk", tcp=False)
    counters = world.responder.counters
    assert (counters.queries, counters.cluster_answers, counters.forwarded, counters.failures) == (2, 1, 0, 1)
