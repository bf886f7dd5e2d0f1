"""Any bytes: an answer, an error, or silence, but never an exception, and always within the client's size."""

from __future__ import annotations

import asyncio
import gc
import socket
import tracemalloc
from collections.abc import Sequence

import pytest
from dnslib import DNSRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from tp2.cluster.catalog import Catalog, Endpoint, Port, Service
from tp2.dns.ask import is_reply
from tp2.dns.chain import BadReply, code_to_explain, read_chain
from tp2.dns.message import BadQuery, build_query, build_reply, parse_query
from tp2.dns.names import name_octets
from tp2.dns.records import Type
from tp2.dns.responder import Responder
from tp2.dns.upstream import Upstream
from tp2.dns.zone import ZoneConfig, resolve
from tp2.types import Wanted

PORT = Port("http", 80)
MANY = tuple(Endpoint(f"10.1.{n >> 8}.{n & 255}", (PORT,)) for n in range(300))
SERVICES = (
    Service("shop", "web", ("10.96.0.10",), (PORT,)),
    Service("shop", "pending", (), (PORT,)),
    Service("shop", "none", (), (PORT,), headless=True),
    Service("shop", "outside", (), (PORT,), external_name="www.example.com"),
    Service("shop", "many", headless=True),
    Service("shop", "alias", external_name="many.shop.svc.cluster.local"),
)
CATALOG = Catalog(
    services={(s.namespace, s.name): s for s in SERVICES},
    endpoints={("shop", "many"): MANY},
    namespaces=frozenset({"shop"}),
    services_by_address={"10.96.0.10": SERVICES[0]},
)

LABELS = [
    "web",
    "shop",
    "svc",
    "pod",
    "cluster",
    "local",
    "many",
    "alias",
    "_http",
    "_tcp",
    "1-2-3-4",
    "in-addr",
    "arpa",
]


def names_of(labels: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    known = st.sampled_from([label.encode() for label in LABELS])
    return st.lists(st.one_of(known, labels), max_size=8).filter(lambda found: sum(map(len, found)) + len(found) < 255)


names = names_of(st.binary(min_size=1, max_size=63))
# dnslib reads no label that is not UTF-8.
ascii_names = names_of(st.lists(st.integers(0, 127), min_size=1, max_size=63).map(bytes))
qtypes = st.one_of(st.sampled_from(list(Type)), st.integers(0, 65535))


class Captured:
    """Everything is reachable."""

    def renew(self, wanted: Sequence[Wanted]) -> bool:
        return True

    async def ensure(self, wanted: Sequence[Wanted]) -> None:
        return


async def _exempt(_: socket.socket) -> None:
    return


def make_responder() -> Responder:
    return Responder(
        catalog=lambda: CATALOG,
        synced=lambda: True,
        capture=Captured(),
        upstream=Upstream([], exempt=_exempt),
        config=ZoneConfig(),
        why_unsynced=lambda: "",
    )


def respond(data: bytes, *, tcp: bool) -> bytes:
    reply = make_responder().respond(data, tcp=tcp)
    return reply if isinstance(reply, bytes) else asyncio.run(reply())


def pack(labels: list[bytes], qtype: int, qclass: int, flags: int, size: int | None) -> bytes:
    question = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    opt = b"" if size is None else b"\0\0\x29" + size.to_bytes(2) + b"\0\0\0\0\0\0"
    counts = b"\0\1\0\0\0\0\0" + bytes((bool(opt),))
    return b"\xab\xcd" + flags.to_bytes(2) + counts + question + qtype.to_bytes(2) + qclass.to_bytes(2) + opt


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600), st.booleans())
def test_any_bytes_are_survived(data: bytes, tcp: bool) -> None:
    reply = respond(data, tcp=tcp)
    assert not reply or reply[:2] == data[:2]


@settings(max_examples=300, deadline=None)
@given(names, qtypes, st.sampled_from([1, 3, 255]), st.integers(0, 0x7FFF), st.binary(max_size=30), st.integers(0, 300))
def test_a_mangled_query_is_survived(
    labels: list[bytes], qtype: int, qclass: int, flags: int, junk: bytes, at: int
) -> None:
    data = pack(labels, qtype, qclass, flags, 1232)
    at = min(at, len(data))
    respond(data[:at] + junk + data[at + len(junk) :], tcp=False)
    respond(data[:at], tcp=False)


@settings(max_examples=400, deadline=None)
@given(ascii_names, qtypes, st.one_of(st.none(), st.integers(0, 65535)), st.booleans())
def test_every_answer_parses_repeats_the_question_and_fits_the_client(
    labels: list[bytes], qtype: int, size: int | None, tcp: bool
) -> None:
    data = pack(labels, qtype, 1, 0x0100, size)
    reply = respond(data, tcp=tcp)
    question = data[12 : 12 + sum(len(label) + 1 for label in labels) + 5]
    assert reply[:2] == data[:2]
    assert reply[12 : 12 + len(question)] == question
    parsed = DNSRecord.parse(reply)
    assert parsed.header.rcode in (0, 2, 3, 5)
    assert any(record.rtype == Type.OPT for record in parsed.ar) == (size is not None)
    if not tcp:
        assert len(reply) <= max(size or 0, 512)
    if labels[:2] == [b"many", b"shop"] and qtype == 1 and not parsed.header.rcode:
        assert parsed.header.tc == (len(parsed.rr) < len(MANY))


IN_ZONE = ["web", "shop", "many", "outside", "pending", "none", "_http", "_tcp", "svc", "pod", "10-1-0-0", "ns", "dns"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(IN_ZONE), max_size=6), qtypes)
def test_whatever_exists_in_the_zone_has_parents_that_exist(labels: list[str], qtype: int) -> None:
    exists = False
    for start in range(len(labels) + 1):
        answer = resolve(".".join([*labels[start:], "cluster", "local"]), qtype, CATALOG, ZoneConfig())
        assert answer is not None
        # An alias exists even if what it points at does not (RFC 8020 section 2).
        found = answer.rcode != 3 or bool(answer.answers)
        assert found or not exists
        exists = exists or found


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=200))
def test_any_reply_is_survived(data: bytes, tail: bytes) -> None:
    for message in (data, b"\0\0\x80\0\0\1\0\3\0\1\0\0\1a\0\0\1\0\1" + tail):
        code_to_explain(message)
        try:
            chain = read_chain(message)
        except BadReply:
            continue
        query = parse_query(pack([b"a"], 1, 1, 0, 4096))
        DNSRecord.parse(build_reply(query, chain.rcode, answers=chain.answers, limit=4096))


@settings(deadline=None)
@given(names, qtypes)
def test_names_survive_being_text(labels: list[bytes], qtype: int) -> None:
    data = pack(labels, qtype, 1, 0, None)
    query = parse_query(data)
    assert name_octets(query.name) == data[12:-4].lower()
    assert parse_query(build_query(1, query.name, qtype, like=query)).name == query.name


@settings(deadline=None)
@given(st.binary(max_size=100), st.binary(min_size=2, max_size=2), st.binary(min_size=5, max_size=30))
def test_any_bytes_may_claim_to_be_the_reply(reply: bytes, ident: bytes, question: bytes) -> None:
    if is_reply(reply, ident, question):
        assert reply[:2] == ident


def test_hostile_packets_leave_nothing_behind() -> None:
    header = b"\0\1\1\0\0\1\0\0\0\0\0\0"
    hostile = [
        b"",
        bytes(12),
        b"\xff" * 4000,
        header + b"\xc0\x0c\0\1\0\1",
        header + (b"\x3f" + b"a" * 63) * 60,
        header + b"\xc8" + bytes(300),
        header[:6] + b"\xff" * 6 + b"\0\0\1\0\1",
        header[:10] + b"\0\1\0\0\1\0\1" + b"\0\0\x29\xff\xff\0\0\0\0\0\4\0\x0a\xff\xff",
        pack([b"web", b"shop"], 252, 1, 0x0100, 1232),
        pack([b"cluster", b"local"], 1, 255, 0x2800, 65535),
    ]
    responder = make_responder()

    def flood(times: int) -> int:
        for number in range(times):
            for data in hostile:
                ident = number.to_bytes(2)
                assert isinstance(responder.respond(ident + data[2:], tcp=bool(number & 1)), bytes)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        # The failures that are kept for a while are full then.
        before = flood(300)
        assert flood(1000) - before < 20_000
    finally:
        tracemalloc.stop()


def test_a_walk_over_the_largest_message_is_short() -> None:
    header = b"\0\1\1\0\0\1\xff\xff\xff\xff\xff\xff"
    for filler in (b"\0", b"\xc0\x0c", b"\x01a", b"\0\0\1\0\1\0\0\0\0\0\0"):
        data = header + b"\0\0\1\0\1" + filler * (65000 // len(filler))
        with pytest.raises(BadQuery):
            parse_query(data)
