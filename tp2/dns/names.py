"""Domain names as text, and back to octets.

Pure. Names are lower case, without the trailing dot, the root being ``""``. An octet that could be mistaken for
punctuation is written ``\\DDD`` (RFC 1035 section 5.1), a dot inside a label included, so a split at dots gives the
labels and no hostile name can pass for a Kubernetes one.
"""

from __future__ import annotations

# A label's octets as text: printable ones as they are, except for the dot, the backslash and others that have a
# meaning in a zone file; everything else \DDD.
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZ*/+=!#$%&'?^`{|}~:@,<>[]")
_TEXT = tuple(chr(octet) if octet in _PLAIN else f"\\{octet:03d}" for octet in range(256))
_FOLDED = tuple(text.lower() for text in _TEXT)


class BadName(ValueError):
    """A name cannot be put on the wire: a label that is empty, over 63 octets or not ASCII, or a name over 255."""


def label_text(label: bytes, *, fold: bool = True) -> str:
    """One label as text, in lower case if *fold*."""
    table = _FOLDED if fold else _TEXT
    return "".join([table[octet] for octet in label])


def label_octets(label: str) -> bytes:
    """The octets of one label of a name's text.

    :raises BadName: it is empty, has more than 63 octets or is not ASCII.
    """
    if not label.isascii():
        raise BadName(f"not ASCII: {label[:70]!r}")
    if "\\" not in label:
        octets = label.encode()
    else:
        out = bytearray()
        rest = label
        while rest:
            if rest[0] == "\\" and rest[1:4].isdecimal() and len(rest) >= 4:
                out.append(int(rest[1:4]) & 255)
                rest = rest[4:]
            else:
                out += rest[0].encode()
                rest = rest[1:]
        octets = bytes(out)
    if not 0 < len(octets) < 64:
        raise BadName(f"label of {len(octets)} octets: {label[:70]!r}")
    return octets


def name_octets(name: str) -> bytes:
    """A name uncompressed.

    :raises BadName: it does not fit the wire format.
    """
    octets = b"".join([bytes((len(part),)) + part for part in map(label_octets, name.split("."))]) if name else b""
    if len(octets) > 254:
        raise BadName(f"name of {len(octets) + 1} octets")
    return octets + b"\0"
