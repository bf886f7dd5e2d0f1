"""The DNS wire format: bytes from anybody become a query, records become the bytes of a reply.

Pure. Requests are outside input, so parsing is one bounded walk over the bytes: it follows no compression
pointer, and any bytes give either a :class:`Query` or a :class:`BadQuery` that holds what to answer. What we send
is built here too, rather than by a general library, because every answer passes this way and only a dozen record
types occur.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from tp2.dns.names import label_octets, label_text, name_octets
from tp2.dns.records import CLASS_IN, Record, Type


class Rcode(IntEnum):
    """Response codes (RFC 1035 section 4.1.1; BADVERS: RFC 6891 section 9)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Ede(IntEnum):
    """Extended DNS error codes (RFC 8914 section 4)."""

    OTHER = 0
    NOT_READY = 14
    NOT_SUPPORTED = 21
    NO_REACHABLE_AUTHORITY = 22
    NETWORK_ERROR = 23


class ExtendedError(NamedTuple):
    """An RFC 8914 extended error: a code and words for people."""

    code: int
    text: str


OPCODE_QUERY = 0

HEADER_SIZE = 12
# The largest UDP payload without EDNS (RFC 1035 section 4.2.1), and the largest message over TCP.
PLAIN_UDP_SIZE = 512
MAX_SIZE = 65535
# What an IPv4 datagram has room for; a client's EDNS may say more.
LARGEST_UDP_SIZE = 65507
# What we say we can take over UDP (RFC 6891 section 6.2.5). Queries reach us over loopback or a bridge, where
# there is no path MTU to fear.
OUR_UDP_SIZE = 4096
# RFC 8914 section 2.
EDE_OPTION = 15
# Extended error texts are for people; longer ones would only crowd out records.
_EDE_TEXT_LIMIT = 300

_QR = 0x8000
_AA = 0x0400
_TC = 0x0200
_RD = 0x0100
_RA = 0x0080
_CD = 0x0010
_DO = 0x8000
_EDE_HEADER_SIZE = 6
_OPT_SIZE = 11

_header = struct.Struct("!HHHHHH")
_fixed = struct.Struct("!HHIH")


class BadQuery(Exception):
    """The bytes are not a query. ``reply`` is the whole answer to send, empty when there must be none."""

    def __init__(self, why: str, reply: bytes = b"") -> None:
        super().__init__(why)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Query:
    """A request with one question.

    ``question`` are the question section's bytes as asked; ``udp_size`` is what the client takes over UDP, in
    octets; ``edns_version`` is None when it sent no OPT record (RFC 6891); ``options`` says whether that had options
    in it.
    """

    id: int
    flags: int
    name: str
    type: int
    klass: int
    question: bytes
    udp_size: int = PLAIN_UDP_SIZE
    edns_version: int | None = None
    dnssec_ok: bool = False
    options: bool = False

    @property
    def opcode(self) -> int:
        """RFC 1035 section 4.1.1; 0 is QUERY."""
        return self.flags >> 11 & 15


def parse_query(data: bytes) -> Query:
    """Read a request.

    :raises BadQuery: the bytes are no request, or one that RFC 1035 or RFC 6891 call malformed.
    """
    if len(data) < HEADER_SIZE:
        raise BadQuery("shorter than a header")
    ident, flags, questions, answers, authorities, additionals = _header.unpack_from(data)
    if flags & _QR:
        raise BadQuery("a response, not a query")
    # RFC 9619: a QUERY has one question. What other opcodes may have differs, and we pass on those only that have one.
    rcode = Rcode.FORMERR if flags & 0x7800 == OPCODE_QUERY or questions == 1 else Rcode.NOTIMP
    malformed = _header.pack(ident, _QR | flags & (0x7800 | _RD) | rcode, 0, 0, 0, 0)
    if questions != 1:
        raise BadQuery(f"{questions} questions", malformed)
    name, end = _read_plain_name(data, HEADER_SIZE, malformed)
    if end + 4 > len(data):
        raise BadQuery("the question ends early", malformed)
    kind = data[end] << 8 | data[end + 1]
    klass = data[end + 2] << 8 | data[end + 3]
    end += 4
    question = data[HEADER_SIZE:end]
    opt: tuple[int, int, int] | None = None
    # Each turn moves on by at least eleven octets, so the length of the message bounds the walk, not its counts.
    for index in range(answers + authorities + additionals):
        start = end
        end = _skip_name(data, end, malformed)
        if end + 10 > len(data):
            raise BadQuery("a record ends early", malformed)
        rtype, rclass, ttl, length = _fixed.unpack_from(data, end)
        if rtype == Type.OPT and index >= answers + authorities:
            if opt is not None or data[start] != 0:
                raise BadQuery("more than one OPT record, or one with a name", malformed)
            opt = rclass, ttl, length
        end += 10 + length
        if end > len(data):
            raise BadQuery("a record ends early", malformed)
        if rtype == Type.OPT and not _whole_options(data[end - length : end]):
            raise BadQuery("an EDNS option ends early", malformed)
    if opt is None:
        return Query(ident, flags, name, kind, klass, question)
    size, extended, length = opt
    return Query(
        ident,
        flags,
        name,
        kind,
        klass,
        question,
        # RFC 6891 section 6.2.3: values below 512 are taken as 512.
        max(size, PLAIN_UDP_SIZE),
        extended >> 16 & 255,
        bool(extended & _DO),
        length > 0,
    )


def _whole_options(data: bytes) -> bool:
    """Whether the RDATA of an OPT record is options and nothing else (RFC 6891 section 6.1.2)."""
    offset = 0
    while offset + 4 <= len(data):
        offset += 4 + (data[offset + 2] << 8 | data[offset + 3])
    return offset == len(data)


def _read_plain_name(data: bytes, offset: int, malformed: bytes) -> tuple[str, int]:
    # The first name of a message has nothing before it that a pointer could point to.
    labels: list[str] = []
    start = offset
    while True:
        if offset >= len(data):
            raise BadQuery("the name ends early", malformed)
        length = data[offset]
        offset += 1
        if length == 0:
            break
        if length > 63:
            raise BadQuery("a label type that a question cannot have", malformed)
        label = data[offset : offset + length]
        offset += length
        labels.append(label_text(label))
        if offset - start > 254:
            raise BadQuery("a name of more than 255 octets", malformed)
    return ".".join(labels), offset


def _skip_name(data: bytes, offset: int, malformed: bytes) -> int:
    while offset < len(data):
        length = data[offset]
        if length == 0:
            return offset + 1
        if length >= 0xC0:
            return offset + 2
        if length > 63:
            break
        offset += 1 + length
    raise BadQuery("a record's name is malformed", malformed)


class _Writer:
    """A message under construction, with the names already in it for compression (RFC 1035 section 4.1.4)."""

    def __init__(self, query: Query) -> None:
        self.data = bytearray(HEADER_SIZE)
        self.data += query.question
        self.names: dict[str, int] = {}
        self._remember(query.name, HEADER_SIZE)

    def _remember(self, name: str, offset: int) -> None:
        suffix = name
        while suffix and offset < 0x4000:
            self.names.setdefault(suffix, offset)
            label, _, suffix = suffix.partition(".")
            offset += 1 + len(label_octets(label))

    def name(self, name: str) -> None:
        # Compression compares without case, so that owners inside the question's name echo the case asked.
        suffix = name.lower()
        start = len(self.data)
        prefix: list[str] = []
        rest = name
        while suffix:
            known = self.names.get(suffix)
            if known is not None:
                break
            label, _, rest = rest.partition(".")
            suffix = suffix.partition(".")[2]
            prefix.append(label)
        octets = name_octets(".".join(prefix))[:-1] if prefix else b""
        if len(name) > 240:
            name_octets(name)
        self.data += octets
        self.data += struct.pack("!H", 0xC000 | self.names[suffix]) if suffix else b"\0"
        if prefix:
            self._remember(name.lower(), start)

    def record(self, record: Record) -> None:
        self.name(record.owner)
        self.data += _fixed.pack(record.type, CLASS_IN, record.ttl, 0)
        start = len(self.data)
        for part in record.parts:
            if not isinstance(part, str):
                self.data += part
            elif record.type == Type.SRV:
                self.data += name_octets(part)  # RFC 2782: the target is not compressed.
            else:
                self.name(part)
        struct.pack_into("!H", self.data, start - 2, len(self.data) - start)

    def fit(self, records: Iterable[Record], limit: int) -> tuple[int, bool]:
        """Write whole records while they fit. How many did, and whether all did."""
        count = 0
        for record in records:
            before = len(self.data)
            self.record(record)
            if len(self.data) > limit:
                del self.data[before:]
                return count, False
            count += 1
        return count, True


def build_reply(
    query: Query,
    rcode: int,
    *,
    answers: Sequence[Record] = (),
    authority: Sequence[Record] = (),
    additional: Sequence[Record] = (),
    authoritative: bool = False,
    error: ExtendedError | None = None,
    limit: int = MAX_SIZE,
) -> bytes:
    """The reply to *query*, of at most *limit* octets.

    What does not fit is left out: additional records silently, the others with TC set (RFC 2181 section 9). The OPT
    record and *error* are only sent to clients that sent an OPT record themselves (RFC 6891 section 7).

    :raises BadName: a record's name does not fit the wire format.
    """
    opt = _opt_record(query, rcode, error, limit - HEADER_SIZE - len(query.question))
    writer = _Writer(query)
    room = limit - len(opt)
    written = _fit_sections(writer, answers, authority, additional, room)
    truncated = not written[3]
    flags = _QR | _RA | query.flags & (0x7800 | _RD | _CD) | rcode & 15
    if authoritative:
        flags |= _AA
    if truncated:
        flags |= _TC
    writer.data += opt
    _header.pack_into(writer.data, 0, query.id, flags, 1, *written[:2], written[2] + bool(opt))
    return bytes(writer.data)


def _fit_sections(
    writer: _Writer, answers: Sequence[Record], authority: Sequence[Record], additional: Sequence[Record], room: int
) -> tuple[int, int, int, bool]:
    answered, whole = writer.fit(answers, room)
    if not whole:
        return answered, 0, 0, False
    named, whole = writer.fit(authority, room)
    if not whole:
        return answered, named, 0, False
    return answered, named, writer.fit(additional, room)[0], True


def _opt_record(query: Query, rcode: int, error: ExtendedError | None, room: int) -> bytes:
    if query.edns_version is None:
        return b""
    option = b""
    if error is not None:
        code, words = error
        longest = min(_EDE_TEXT_LIMIT, room - _OPT_SIZE - _EDE_HEADER_SIZE)
        text = words.encode(errors="replace")[:longest].decode(errors="ignore").encode()
        option = struct.pack("!HHH", EDE_OPTION, 2 + len(text), code) + text
    # RFC 3225 section 3: the DO bit is copied. The upper bits of the response code live here (RFC 6891 section 6.1.3).
    extended = (rcode >> 4) << 24 | (_DO if query.dnssec_ok else 0)
    return b"\0" + _fixed.pack(Type.OPT, OUR_UDP_SIZE, extended, len(option)) + option


def truncate(query: Query, reply: bytes) -> bytes:
    """An upstream's *reply* to *query* that is too large for the client: it says so, and no more."""
    opt = _opt_record(query, 0, None, 0)
    header = bytearray(reply[:HEADER_SIZE])
    header[2] |= _TC >> 8
    header[4:] = struct.pack("!HHHH", 1, 0, 0, bool(opt))
    return bytes(header) + query.question + opt


def build_query(ident: int, name: str, kind: int, *, like: Query) -> bytes:
    """A question of our own, asked on behalf of the client that sent *like*: its CD and DO bits are kept.

    :raises BadName: *name* does not fit the wire format.
    """
    header = _header.pack(ident, _RD | like.flags & _CD, 1, 0, 0, 1)
    extended = _DO if like.dnssec_ok else 0
    question = name_octets(name) + struct.pack("!HH", kind, CLASS_IN)
    return header + question + b"\0" + _fixed.pack(Type.OPT, OUR_UDP_SIZE, extended, 0)
