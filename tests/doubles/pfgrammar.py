"""A reader of exactly the pf.conf(5) text that tp2 writes. It refuses everything else, with the line and the reason.

No pfctl runs on Linux, so this judges in its place what :mod:`tp2.forward.pfrules` writes. It is written after the
grammar of FreeBSD's pfctl and pf.conf(5), narrowed to what tp2 has a use for, and shares nothing with the writer::

    text      = "\\n" | [ table ] *translation *filter        each on a line of its own that ends with "\\n"
    table     = "table <tp2_cluster> {" address *( "," address ) "}"
    translation = "no rdr" on-lo0 "from any" "port" N ":" N "to" address "port 53"
              | "rdr pass" on-lo0 "from" ( "any" | "!" loopback ) "to" to "->" loopback "port" N
    filter    = "pass out quick" family-and-protocol "from any" "port" N ":" N "to" address "port 53" state
              | "pass out quick route-to lo0" family-and-protocol "from any to" to state
    on-lo0    = "on lo0" family-and-protocol
    family-and-protocol = ( "inet" | "inet6" ) "proto" ( "tcp" | "udp" )
    to        = address "port" N | "<tp2_cluster>"
    state     = [ "flags S/SA" ] "keep state"                 the flags on TCP, and only there

Words are separated by single spaces. Pure.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final, Literal

TABLE: Final = "<tp2_cluster>"

Kind = Literal["no rdr", "rdr", "pass", "route-to"]


class GrammarError(ValueError):
    """The text is not of the kind that tp2 writes. ``line`` counts from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule. ``to`` is an address or :data:`TABLE`; None stands for what the rule does not say.

    ``source_not`` is the network that the source must not be in; ``target`` the local address and port.
    """

    kind: Kind
    is_ipv6: bool
    protocol: Literal["tcp", "udp"]
    to: str
    port: int | None
    source_not: str | None = None
    source_ports: range | None = None
    target: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Ruleset:
    """An anchor's content: the addresses of its table, and its rules in order."""

    table: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()


def parse(text: str) -> Ruleset:
    """Return what *text* says.

    :raises GrammarError: it is not of this grammar.
    """
    lines = text.split("\n")
    if lines[-1] != "" or len(lines) == 1:
        raise GrammarError(len(lines), "syntax error: the last line does not end")
    lines.pop()
    if lines == [""]:
        return Ruleset()
    table: tuple[str, ...] = ()
    rules: list[Rule] = []
    for number, line in enumerate(lines, 1):
        words = _Words(number, line)
        if words.next == "table":
            if number > 1:
                raise words.wrong("a table comes first")
            table = _table(words)
            continue
        rule = _rule(words)
        if rules and _stage(rules[-1]) > _stage(rule):
            raise words.wrong("rules must be in order: translation before filtering")
        if rule.to == TABLE and not table:
            raise words.wrong("the table is not defined")
        rules.append(rule)
    return Ruleset(table, tuple(rules))


class _Words:
    """The words of a line, taken one after the other."""

    def __init__(self, number: int, line: str) -> None:
        self._number = number
        self._words = line.split(" ")
        self._at = 0

    @property
    def next(self) -> str | None:
        """The word that is taken next; None at the end."""
        return self._words[self._at] if self._at < len(self._words) else None

    def wrong(self, reason: str) -> GrammarError:
        return GrammarError(self._number, reason)

    def take(self) -> str:
        word = self.next
        if word is None:
            raise self.wrong("syntax error: the line is too short")
        self._at += 1
        return word

    def expect(self, *words: str) -> None:
        for word in words:
            found = self.take()
            if found != word:
                raise self.wrong(f"syntax error: {found!r} where {word!r} belongs")

    def expect_end(self) -> None:
        if self.next is not None:
            raise self.wrong(f"syntax error: {self.next!r} after the end of the rule")

    def is_next(self, word: str) -> bool:
        """Whether *word* is next; it is taken then."""
        if self.next != word:
            return False
        self._at += 1
        return True

    def address(self, *, is_ipv6: bool | None) -> str:
        word = self.take()
        try:
            parsed = ipaddress.ip_address(word)
        except ValueError as error:
            raise self.wrong(f"could not parse host specification {word!r}") from error
        if "%" in word or (is_ipv6 is not None and is_ipv6 is not (parsed.version == 6)):
            raise self.wrong(f"{word} is not of the rule's address family")
        return word

    def number(self, word: str) -> int:
        if not (word.isascii() and word.isdecimal() and word == str(int(word)) and 1 <= int(word) <= 65535):
            raise self.wrong(f"illegal port value {word!r}")
        return int(word)

    def port(self) -> int:
        self.expect("port")
        return self.number(self.take())

    def port_range(self) -> range:
        self.expect("port")
        low, colon, high = self.take().partition(":")
        if not colon or self.number(low) > self.number(high):
            raise self.wrong(f"not a range of ports: {low}{colon}{high}")
        return range(int(low), int(high) + 1)


def _table(words: _Words) -> tuple[str, ...]:
    words.expect("table", TABLE, "{")
    addresses = []
    while True:
        word = words.take()
        address = word.removesuffix(",")
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise words.wrong(f"could not parse host specification {word!r}") from error
        addresses.append(address)
        if address == word:
            break
    words.expect("}")
    words.expect_end()
    return tuple(addresses)


def _rule(words: _Words) -> Rule:
    first = words.take()
    match first:
        case "no":
            words.expect("rdr")
            return _exempting(words, "no rdr")
        case "rdr":
            words.expect("pass")
            return _redirecting(words)
        case "pass":
            words.expect("out", "quick")
            return _routing(words) if words.next == "route-to" else _exempting(words, "pass")
    raise words.wrong(f"syntax error: {first!r} begins no rule")


def _exempting(words: _Words, kind: Literal["no rdr", "pass"]) -> Rule:
    if kind == "no rdr":
        words.expect("on", "lo0")
    is_ipv6, protocol = _family_and_protocol(words)
    words.expect("from", "any")
    source_ports = words.port_range()
    words.expect("to")
    to = words.address(is_ipv6=is_ipv6)
    words.expect("port", "53")
    if kind == "pass":
        _state(words, protocol)
    words.expect_end()
    return Rule(kind, is_ipv6, protocol, to, 53, source_ports=source_ports)


def _redirecting(words: _Words) -> Rule:
    words.expect("on", "lo0")
    is_ipv6, protocol = _family_and_protocol(words)
    words.expect("from")
    source_not = None
    if not words.is_next("any"):
        words.expect("!")
        source_not = words.take()
        if source_not not in (("::1",) if is_ipv6 else ("127.0.0.1", "127.0.0.0/8")):
            raise words.wrong(f"{source_not} is not the loopback of the rule's address family")
    to, port = _to(words, is_ipv6)
    words.expect("->")
    target = words.address(is_ipv6=is_ipv6)
    if not ipaddress.ip_address(target).is_loopback:
        raise words.wrong(f"{target} is not a loopback address")
    local_port = words.port()
    words.expect_end()
    return Rule("rdr", is_ipv6, protocol, to, port, source_not=source_not, target=(target, local_port))


def _routing(words: _Words) -> Rule:
    words.expect("route-to", "lo0")
    is_ipv6, protocol = _family_and_protocol(words)
    words.expect("from", "any")
    to, port = _to(words, is_ipv6)
    _state(words, protocol)
    words.expect_end()
    return Rule("route-to", is_ipv6, protocol, to, port)


def _family_and_protocol(words: _Words) -> tuple[bool, Literal["tcp", "udp"]]:
    family = words.take()
    if family not in ("inet", "inet6"):
        raise words.wrong(f"syntax error: {family!r} where the address family belongs")
    words.expect("proto")
    protocol = words.take()
    if protocol == "tcp":
        return family == "inet6", "tcp"
    if protocol == "udp":
        return family == "inet6", "udp"
    raise words.wrong(f"unknown protocol {protocol!r}")


def _to(words: _Words, is_ipv6: bool) -> tuple[str, int | None]:
    words.expect("to")
    if words.is_next(TABLE):
        return TABLE, None
    return words.address(is_ipv6=is_ipv6), words.port()


def _state(words: _Words, protocol: str) -> None:
    if protocol == "tcp":
        words.expect("flags", "S/SA")
    words.expect("keep", "state")


def _stage(rule: Rule) -> int:
    return 0 if rule.kind in ("no rdr", "rdr") else 1
