"""The wire format, against dnslib as the independent reader."""

from __future__ import annotations

import struct

import pytest
from dnslib import EDNS0, DNSHeader, DNSQuestion, DNSRecord

from tp2.dns.chain import BadReply, read_chain
from tp2.dns.message import BadQuery, Ede, ExtendedError, Query, Rcode, build_query, build_reply, parse_query, truncate
from tp2.dns.names import BadName, name_octets
from tp2.dns.records import Type, address_record, name_record, srv_record


def request(
    name: str = "Web.Shop", qtype: str = "A", *, udp_size: int = 0, do: bool = False, version: int = 0
) -> bytes:
    record = DNSRecord.question(name, qtype)
    record.header.id = 0x1234
    if udp_size:
        record.add_ar(EDNS0(udp_len=udp_size, flags="do" if do else "", version=version))
    return bytes(record.pack())


def test_a_question_is_read_in_lower_case_and_echoed_as_asked() -> None:
    query = parse_query(request("wEb.sHop"))
    assert (query.id, query.name, query.type, query.klass) == (0x1234, "web.shop", Type.A, 1)
    reply = build_reply(query, 0, answers=[address_record("web.shop", "10.0.0.1", 5)])
    parsed = DNSRecord.parse(reply)
    assert parsed.header.id == 0x1234
    assert parsed.q.qname.label == (b"wEb", b"sHop")
    assert parsed.rr[0].rname.label == (b"wEb", b"sHop")


def test_octets_that_look_like_punctuation_cannot_pass_for_it() -> None:
    data = struct.pack("!HHHHHH", 1, 0, 1, 0, 0, 0) + b"\x08web.shop\x02\\\x00\x00\x00\x01\x00\x01"
    query = parse_query(data)
    assert query.name == "web\\046shop.\\092\\000"
    assert name_octets(query.name) == data[12:-4]


def test_edns_is_read_and_answered() -> None:
    query = parse_query(request(udp_size=1232, do=True))
    assert (query.udp_size, query.edns_version, query.dnssec_ok) == (1232, 0, True)
    opt = DNSRecord.parse(build_reply(query, 0)).ar[0]
    assert opt.rtype == Type.OPT
    assert opt.edns_do


def test_without_edns_the_reply_has_none_and_512_octets_are_the_limit() -> None:
    query = parse_query(request())
    assert query.udp_size == 512
    assert query.edns_version is None
    assert DNSRecord.parse(build_reply(query, 0)).ar == []


def test_a_smaller_edns_size_than_512_is_512() -> None:
    assert parse_query(request(udp_size=100)).udp_size == 512


def test_a_response_code_of_more_than_four_bits_continues_in_the_opt_record() -> None:
    reply = DNSRecord.parse(build_reply(parse_query(request(udp_size=512)), Rcode.BADVERS))
    assert reply.header.rcode == 0
    assert reply.ar[0].edns_rcode == 1


def test_an_extended_error_carries_its_words() -> None:
    query = parse_query(request(udp_size=512))
    reply = build_reply(query, Rcode.SERVFAIL, error=ExtendedError(Ede.NETWORK_ERROR, "no route — at all"), limit=512)
    option = DNSRecord.parse(reply).ar[0].rdata[0]
    assert option.code == 15
    assert option.data == b"\0\x17" + "no route — at all".encode()


def test_an_extended_error_never_makes_a_reply_too_large() -> None:
    longest = ".".join(["a" * 63] * 3 + ["a" * 61])
    query = parse_query(request(longest, udp_size=512))
    reply = build_reply(query, Rcode.SERVFAIL, error=ExtendedError(Ede.OTHER, "ä" * 5000), limit=512)
    assert len(reply) <= 512
    DNSRecord.parse(reply).ar[0].rdata[0].data[2:].decode()


def test_the_flags_say_who_answers_and_keep_what_the_client_asked() -> None:
    header = DNSRecord.parse(build_reply(parse_query(request()), Rcode.NXDOMAIN, authoritative=True)).header
    assert (header.qr, header.aa, header.rd, header.ra, header.rcode) == (1, 1, 1, 1, Rcode.NXDOMAIN)


def test_a_reply_that_does_not_fit_says_so_and_keeps_whole_records() -> None:
    query = parse_query(request())
    answers = [address_record("web.shop", f"10.0.0.{n}", 5) for n in range(200)]
    reply = build_reply(query, 0, answers=answers, limit=512)
    parsed = DNSRecord.parse(reply)
    assert len(reply) <= 512
    assert parsed.header.tc == 1
    assert 25 < len(parsed.rr) < 200
    assert DNSRecord.parse(build_reply(query, 0, answers=answers)).header.tc == 0


def test_additional_records_that_do_not_fit_are_left_out_silently() -> None:
    query = parse_query(request())
    answers = [srv_record("web.shop", 1, 80, "db.shop", 5)]
    additional = [address_record("db.shop", f"10.0.0.{n}", 5) for n in range(200)]
    parsed = DNSRecord.parse(build_reply(query, 0, answers=answers, additional=additional, limit=512))
    assert parsed.header.tc == 0
    assert len(parsed.rr) == 1
    assert len(parsed.ar) > 20


def test_a_forwarded_reply_that_is_too_large_becomes_a_truncated_one() -> None:
    query = parse_query(request(udp_size=512))
    answers = [address_record("web.shop", f"10.0.{n >> 8}.{n & 255}", 5) for n in range(500)]
    reply = truncate(query, build_reply(query, 0, answers=answers))
    parsed = DNSRecord.parse(reply)
    assert (parsed.header.tc, parsed.header.id, parsed.rr) == (1, query.id, [])
    assert parsed.q.qname == "Web.Shop"
    assert len(parsed.ar) == 1


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("empty", b""),
        ("short", b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00"),
        ("a response", DNSRecord.question("a.b").reply().pack()),
    ],
)
def test_what_is_no_request_gets_no_reply(what: str, data: bytes) -> None:
    with pytest.raises(BadQuery) as caught:
        parse_query(data)
    assert caught.value.reply == b"", what


HEADER = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
OPT = b"\0\0\x29\x10\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("what", "data"),
    [
        (
            "no question",
            HEADER[:4] + bytes(8),
        ),
        ("two questions", HEADER[:4] + b"\0\2" + bytes(6) + b"\0\0\1\0\1" * 2),
        ("no name", HEADER),
        ("a name that ends early", HEADER + b"\x05abc"),
        ("a name without end", HEADER + b"\x03abc"),
        ("a name and nothing", HEADER + b"\x03abc\0\0\1"),
        ("a pointer to itself", HEADER + b"\xc0\x0c\0\1\0\1"),
        ("a pointer into the header", HEADER + b"\xc0\0\0\1\0\1"),
        ("an unknown label type", HEADER + b"\x41a\0\0\1\0\1"),
        (
            "a name of 256 octets",
            HEADER + b"\x3f" + b"a" * 63 + (b"\x3f" + b"a" * 63) * 2 + b"\x3f" + b"a" * 63 + b"\0\0\1\0\1",
        ),
        ("a record that is not there", HEADER[:10] + b"\0\1" + b"\0\0\1\0\1"),
        ("a record that ends early", HEADER[:10] + b"\0\1" + b"\0\0\1\0\1" + b"\0\0\x29\x10\0\0\0\0\0\0\7"),
        ("two OPT records", HEADER[:10] + b"\0\2" + b"\0\0\1\0\1" + OPT * 2),
        ("an OPT record with a name", HEADER[:10] + b"\0\1" + b"\0\0\1\0\1" + b"\1a" + OPT),
        ("an EDNS option that ends early", HEADER[:10] + b"\0\1\0\0\1\0\1" + OPT[:-1] + b"\6\0\x0a\0\x08ab"),
        ("octets behind an EDNS option", HEADER[:10] + b"\0\1\0\0\1\0\1" + OPT[:-1] + b"\5\0\x0a\0\0x"),
        ("65535 records announced", HEADER[:6] + b"\xff" * 6 + b"\0\0\1\0\1"),
    ],
)
def test_a_malformed_request_is_told_so(what: str, data: bytes) -> None:
    with pytest.raises(BadQuery) as caught:
        parse_query(data)
    header = DNSHeader.parse(_buffer(caught.value.reply))
    assert (header.id, header.qr, header.rcode) == (0x1234, 1, Rcode.FORMERR), what


def test_unknown_edns_options_are_passed_over() -> None:
    query = parse_query(HEADER[:10] + b"\0\1\0\0\1\0\1" + OPT[:-1] + b"\x0b\xff\xfe\0\3abc\0\x0a\0\0")
    assert (query.edns_version, query.options) == (0, True)


@pytest.mark.parametrize("opcode", [1, 2, 3, 6, 15])
def test_an_opcode_whose_request_has_no_question_is_not_implemented(opcode: int) -> None:
    with pytest.raises(BadQuery) as caught:
        parse_query(b"\x12\x34" + bytes([opcode << 3, 0]) + bytes(8))
    header = DNSHeader.parse(_buffer(caught.value.reply))
    assert (header.opcode, header.rcode) == (opcode, Rcode.NOTIMP)


def _buffer(data: bytes) -> object:
    from dnslib.buffer import Buffer

    return Buffer(data)


@pytest.mark.parametrize("name", ["a" * 64, "a..b", ".a", "ü.de", ".".join(["a" * 63] * 4), ".".join("a" * 128)])
def test_names_that_do_not_fit_the_wire_are_an_error(name: str) -> None:
    with pytest.raises(BadName):
        name_octets(name)
    query = parse_query(request())
    with pytest.raises(BadName):
        build_reply(query, 0, answers=[name_record("web.shop", Type.CNAME, name, 5)])


def test_names_are_compressed_but_not_in_srv_targets() -> None:
    query = parse_query(request("_http._tcp.web.shop", "SRV"))
    records = [srv_record("_http._tcp.web.shop", 1, 80, "web.shop", 5)]
    reply = build_reply(query, 0, answers=records, additional=[address_record("web.shop", "10.0.0.1", 5)])
    assert reply.count(b"\x03web\x04shop\0") == 2  # The question and the target, but not the additional owner.
    assert str(DNSRecord.parse(reply).ar[0].rname) == "web.shop."


# The far end of a CNAME


def like() -> Query:
    return parse_query(request(udp_size=1232, do=True))


def test_our_own_question_is_well_formed() -> None:
    parsed = DNSRecord.parse(build_query(7, "www.example.com", Type.AAAA, like=like()))
    assert (parsed.header.id, parsed.header.rd, str(parsed.q.qname), parsed.q.qtype) == (7, 1, "www.example.com.", 28)
    assert parsed.ar[0].edns_do


def zone_reply(*lines: str, question: str = "www.example.com") -> bytes:
    record = DNSRecord(q=DNSQuestion(question))
    record.header.qr = 1
    record.add_answer(*[rr for line in lines for rr in _rr(line)])
    return bytes(record.pack())


def _rr(line: str) -> list[object]:
    from dnslib import RR

    return list(RR.fromZone(line))


def test_compressed_records_are_read_whole() -> None:
    lines = [
        "www.example.com. 60 IN CNAME Cdn.example.com.",
        "Cdn.example.com. 60 IN A 192.0.2.1",
        "Cdn.example.com. 60 IN MX 10 mail.example.com.",
        'Cdn.example.com. 60 IN TXT "a b" "c"',
        "Cdn.example.com. 60 IN SRV 1 2 3 x.example.com.",
    ]
    chain = read_chain(zone_reply(*lines))
    again = DNSRecord.parse(build_reply(like(), 0, answers=chain.answers))
    assert [str(rr) for rr in again.rr] == [str(rr) for rr in DNSRecord.parse(zone_reply(*lines)).rr]


def test_the_soa_of_a_negative_reply_is_kept() -> None:
    record = DNSRecord(q=DNSQuestion("gone.example.com"))
    record.header.qr = 1
    record.header.rcode = 3
    record.add_auth(*_rr("example.com. 60 IN SOA ns.example.com. root.example.com. 1 2 3 4 5"))
    chain = read_chain(bytes(record.pack()))
    assert (chain.rcode, chain.answers, len(chain.authority)) == (Rcode.NXDOMAIN, (), 1)


REPLY = b"\0\0\x80\0\0\0\0\1\0\0\0\0"
FIXED = b"\0\5\0\1\0\0\0\0"


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("nothing", b""),
        ("no records", REPLY),
        ("a pointer to itself", REPLY + b"\xc0\x0c" + FIXED + b"\0\0"),
        ("a pointer forwards", REPLY + b"\xc0\x20" + FIXED + b"\0\0" + b"\0" * 40),
        ("two pointers at each other", REPLY + b"\xc0\x0e\xc0\x0c" + FIXED + b"\0\0"),
        ("a name longer than its record", REPLY + b"\0" + FIXED + b"\0\1\1a\0"),
        ("data longer than the reply", REPLY + b"\0" + FIXED + b"\1\1\1a\0"),
        ("an unknown label type", REPLY + b"\x81" + FIXED + b"\0\0"),
        ("more records than anybody needs", REPLY[:6] + b"\xff\xff" + REPLY[8:] + bytes(100)),
        (
            "a long row of pointers",
            REPLY[:6]
            + b"\0\2"
            + REPLY[8:]
            + b"\0"
            + b"\0\x10\0\1\0\0\0\0"
            + struct.pack("!H", 2000)
            + b"\0\0"
            + b"".join(struct.pack("!H", 0xC000 | 23 + 2 * n) for n in range(999))
            + struct.pack("!H", 0xC000 | 23 + 1998)
            + FIXED
            + b"\0\0",
        ),
    ],
)
def test_a_malformed_reply_is_refused(what: str, data: bytes) -> None:
    with pytest.raises(BadReply):
        read_chain(data)
