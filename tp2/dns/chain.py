"""The far end of a CNAME: reads an upstream's reply, so that its records can go into a reply of ours.

And what else of an upstream's reply has to be known.

Pure. The reply is outside input: compression pointers only lead backwards, a name comes to an end after so many
octets and pointers, and a reply with more records than anybody needs is refused, so the work is bounded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tp2.dns.message import EDE_OPTION, HEADER_SIZE, Ede
from tp2.dns.names import label_text
from tp2.dns.records import CLASS_IN, Record, Type

_MOST_RECORDS = 1000
# 255 octets (RFC 1035 section 2.3.4) and some pointers.
_LONGEST_NAME = 300
_header = struct.Struct("!HHHHHH")
_fixed = struct.Struct("!HHIH")

# Where names stand in the RDATA of the types that may compress them (RFC 3597 section 4): octets before, how many
# names. What follows the names is copied.
_NAMES_IN = {
    Type.NS: (0, 1),
    Type.CNAME: (0, 1),
    Type.SOA: (0, 2),
    Type.PTR: (0, 1),
    Type.MX: (2, 1),
    Type.SRV: (6, 1),
}


class BadReply(ValueError):
    """The bytes are not a well-formed reply."""


@dataclass(frozen=True, slots=True)
class Chain:
    """What a reply says about the name asked for: ``answers`` in their order, and the SOA of a negative one."""

    rcode: int
    answers: tuple[Record, ...]
    authority: tuple[Record, ...]
    truncated: bool


def read_chain(message: bytes) -> Chain:
    """Read the answer section and the SOA of *message*.

    :raises BadReply: it is malformed.
    """
    try:
        return _Reader(message).read()
    except (IndexError, struct.error) as error:
        raise BadReply("the reply ends early") from error


def code_to_explain(message: bytes) -> int | None:
    """The extended error code (RFC 8914) under which words may be added to *message*, which has none.

    :returns: the code that it has, or else No Reachable Authority; None if it has words, is more than a response code,
        or is malformed.
    """
    try:
        questions, *counts = _header.unpack_from(message)[2:]
        if questions > 1 or counts[:2] != [0, 0] or counts[2] > 1:
            return None
        reader = _Reader(message)
        offset = reader.name(HEADER_SIZE)[1] + 4 if questions else HEADER_SIZE
        if not counts[2]:
            return Ede.NO_REACHABLE_AUTHORITY
        opt = reader.record(offset)[0]
        options = b"".join(part for part in opt.parts if isinstance(part, bytes))
        while opt.type == Type.OPT and options:
            code, length = struct.unpack_from("!HH", options)
            if code == EDE_OPTION:
                return int(struct.unpack_from("!H", options, 4)[0]) if length == 2 else None
            options = options[4 + length :]
    except (IndexError, struct.error, BadReply):
        return None
    return Ede.NO_REACHABLE_AUTHORITY if opt.type == Type.OPT else None


class _Reader:
    def __init__(self, message: bytes) -> None:
        self.data = message

    def read(self) -> Chain:
        _, flags, questions, answers, authorities, _ = _header.unpack_from(self.data)
        if questions > 1 or answers + authorities > _MOST_RECORDS:
            raise BadReply(f"{questions} questions and {answers + authorities} records in one reply")
        offset = HEADER_SIZE
        for _ in range(questions):
            offset = self.name(offset)[1] + 4
        answer: list[Record] = []
        authority: list[Record] = []
        for index in range(answers + authorities):
            record, klass, offset = self.record(offset)
            if klass != CLASS_IN:
                continue
            if index < answers:
                answer.append(record)
            elif record.type == Type.SOA:
                authority.append(record)
        return Chain(flags & 15, tuple(answer), tuple(authority), bool(flags & 0x0200))

    def record(self, offset: int) -> tuple[Record, int, int]:
        owner, offset = self.name(offset)
        kind, klass, ttl, length = _fixed.unpack_from(self.data, offset)
        offset += _fixed.size
        end = offset + length
        if end > len(self.data):
            raise BadReply("a record ends early")
        before, names = _NAMES_IN.get(kind, (length, 0))
        parts: list[bytes | str] = [self.data[offset : offset + before]] if before else []
        offset += before
        for _ in range(names):
            name, offset = self.name(offset)
            parts.append(name)
        if offset > end:
            raise BadReply("a name is longer than its record")
        if offset < end:
            parts.append(self.data[offset:end])
        return Record(owner, kind, ttl, tuple(parts)), klass, end

    def name(self, offset: int) -> tuple[str, int]:
        """The name at *offset*, in the case it is written, and where it ends."""
        labels: list[str] = []
        end = 0
        lowest = offset
        size = 0
        while True:
            length = self.data[offset]
            if length == 0:
                return ".".join(labels), end or offset + 1
            if length >= 0xC0:
                end = end or offset + 2
                offset = (length & 0x3F) << 8 | self.data[offset + 1]
                if offset >= lowest:
                    raise BadReply("a compression pointer that does not lead backwards")
                lowest = offset
                # A pointer counts like a label, so that pointers to pointers come to an end as soon as names do.
                size += 2
            elif length < 64:
                labels.append(label_text(self.data[offset + 1 : offset + 1 + length], fold=False))
                offset += 1 + length
                size += 1 + length
            else:
                raise BadReply("an unknown label type")
            if size > _LONGEST_NAME:
                raise BadReply("a name that is too long")
