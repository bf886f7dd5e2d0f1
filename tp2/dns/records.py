"""Resource records: the types that tp2 knows by name, and what goes into them.

Pure. A record's data is kept as parts, octets and domain names, so that whoever puts it into a message can compress
the names and whoever reads it from one need not know every type.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum
from typing import NamedTuple

CLASS_IN = 1


class Type(IntEnum):
    """Record types (IANA DNS parameters) that tp2 knows by name; all others are only ever passed on."""

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    HINFO = 13
    MX = 15
    TXT = 16
    AAAA = 28
    SRV = 33
    OPT = 41
    SVCB = 64
    HTTPS = 65
    IXFR = 251
    AXFR = 252
    ANY = 255

    @classmethod
    def text(cls, value: int) -> str:
        """``A``, or ``TYPE65280`` for an unknown one (RFC 3597 section 5)."""
        try:
            return cls(value).name
        except ValueError:
            return f"TYPE{value}"


class Record(NamedTuple):
    """A resource record of class IN. ``parts`` make up its RDATA: octets as they are, and domain names as text."""

    owner: str
    type: int
    ttl: int
    parts: tuple[bytes | str, ...]


def address_record(owner: str, address: str, ttl: int) -> Record:
    """An A or AAAA record (RFC 1035 section 3.4.1, RFC 3596 section 2.2), whichever *address* is."""
    if ":" in address:
        return Record(owner, Type.AAAA, ttl, (socket.inet_pton(socket.AF_INET6, address),))
    return Record(owner, Type.A, ttl, (socket.inet_pton(socket.AF_INET, address),))


def name_record(owner: str, kind: Type, target: str, ttl: int) -> Record:
    """A CNAME, NS or PTR record."""
    return Record(owner, kind, ttl, (target,))


def srv_record(owner: str, weight: int, port: int, target: str, ttl: int) -> Record:
    """An SRV record of priority 0 (RFC 2782)."""
    return Record(owner, Type.SRV, ttl, (struct.pack("!HHH", 0, weight, port), target))


def text_record(owner: str, kind: Type, ttl: int, *strings: str) -> Record:
    """A TXT or HINFO record: character strings of at most 255 octets (RFC 1035 section 3.3)."""
    encoded = (string.encode() for string in strings)
    return Record(owner, kind, ttl, tuple(bytes((len(text),)) + text for text in encoded))


def soa_record(owner: str, server: str, mailbox: str, serial: int, ttl: int) -> Record:
    """An SOA record whose MINIMUM, and so the time a negative answer may be kept, is *ttl* (RFC 2308 section 4)."""
    return Record(owner, Type.SOA, ttl, (server, mailbox, struct.pack("!IIIII", serial, 7200, 1800, 86400, ttl)))
