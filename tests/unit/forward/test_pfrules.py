"""What the pf anchor says, to the letter, and what it does to a packet."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.doubles.pfgrammar import TABLE, GrammarError, Rule, Ruleset, parse
from tp2.forward.pfrules import EXEMPT_PORTS, REFUSING_PORT, anchor_text
from tp2.types import Destination, Redirect

HOST4, HOST6 = "192.168.1.20", "2001:db8::20"


def rules_for(redirects: list[Redirect]) -> str:
    return anchor_text(redirects, [], 0, [])


def test_an_ipv4_mapping_is_a_redirect_and_a_way_to_the_loopback() -> None:
    assert rules_for([Redirect(Destination("10.96.0.1", 443), 40001)]) == (
        "rdr pass on lo0 inet proto tcp from ! 127.0.0.1 to 10.96.0.1 port 443 -> 127.0.0.1 port 40001\n"
        "pass out quick route-to lo0 inet proto tcp from any to 10.96.0.1 port 443 flags S/SA keep state\n"
    )


def test_an_ipv6_mapping_likewise() -> None:
    assert rules_for([Redirect(Destination("fd00:10:96::1", 443), 40003)]) == (
        "rdr pass on lo0 inet6 proto tcp from ! ::1 to fd00:10:96::1 port 443 -> ::1 port 40003\n"
        "pass out quick route-to lo0 inet6 proto tcp from any to fd00:10:96::1 port 443 flags S/SA keep state\n"
    )


def test_all_translation_comes_before_all_filtering() -> None:
    assert rules_for([Redirect(Destination("10.96.0.1", 80), 40001), Redirect(Destination("fd00::1", 80), 40002)]) == (
        "rdr pass on lo0 inet proto tcp from ! 127.0.0.1 to 10.96.0.1 port 80 -> 127.0.0.1 port 40001\n"
        "rdr pass on lo0 inet6 proto tcp from ! ::1 to fd00::1 port 80 -> ::1 port 40002\n"
        "pass out quick route-to lo0 inet proto tcp from any to 10.96.0.1 port 80 flags S/SA keep state\n"
        "pass out quick route-to lo0 inet6 proto tcp from any to fd00::1 port 80 flags S/SA keep state\n"
    )


def test_another_loopback_address_is_not_redirected_from_any_of_them() -> None:
    assert rules_for([Redirect(Destination("10.96.0.1", 443), 40001, "127.0.0.2")]).splitlines()[0] == (
        "rdr pass on lo0 inet proto tcp from ! 127.0.0.0/8 to 10.96.0.1 port 443 -> 127.0.0.2 port 40001"
    )


def test_a_nameserver_is_captured_for_all_but_our_own_queries() -> None:
    assert anchor_text([], ["192.168.1.1"], 40053, []) == (
        "rdr pass on lo0 inet proto udp from ! 127.0.0.1 to 192.168.1.1 port 53 -> 127.0.0.1 port 40053\n"
        "rdr pass on lo0 inet proto tcp from ! 127.0.0.1 to 192.168.1.1 port 53 -> 127.0.0.1 port 40053\n"
        "pass out quick inet proto udp from any port 6144:8191 to 192.168.1.1 port 53 keep state\n"
        "pass out quick inet proto tcp from any port 6144:8191 to 192.168.1.1 port 53 flags S/SA keep state\n"
        "pass out quick route-to lo0 inet proto udp from any to 192.168.1.1 port 53 keep state\n"
        "pass out quick route-to lo0 inet proto tcp from any to 192.168.1.1 port 53 flags S/SA keep state\n"
    )


def test_a_nameserver_with_an_ipv6_address_likewise() -> None:
    assert anchor_text([], ["2001:db8::53"], 40053, []) == (
        "rdr pass on lo0 inet6 proto udp from ! ::1 to 2001:db8::53 port 53 -> ::1 port 40053\n"
        "rdr pass on lo0 inet6 proto tcp from ! ::1 to 2001:db8::53 port 53 -> ::1 port 40053\n"
        "pass out quick inet6 proto udp from any port 6144:8191 to 2001:db8::53 port 53 keep state\n"
        "pass out quick inet6 proto tcp from any port 6144:8191 to 2001:db8::53 port 53 flags S/SA keep state\n"
        "pass out quick route-to lo0 inet6 proto udp from any to 2001:db8::53 port 53 keep state\n"
        "pass out quick route-to lo0 inet6 proto tcp from any to 2001:db8::53 port 53 flags S/SA keep state\n"
    )


def test_a_nameserver_on_the_loopback_is_captured_where_its_packets_are() -> None:
    assert anchor_text([], ["127.0.0.1"], 40053, []) == (
        "no rdr on lo0 inet proto udp from any port 6144:8191 to 127.0.0.1 port 53\n"
        "no rdr on lo0 inet proto tcp from any port 6144:8191 to 127.0.0.1 port 53\n"
        "rdr pass on lo0 inet proto udp from any to 127.0.0.1 port 53 -> 127.0.0.1 port 40053\n"
        "rdr pass on lo0 inet proto tcp from any to 127.0.0.1 port 53 -> 127.0.0.1 port 40053\n"
    )


def test_what_nothing_names_at_a_cluster_address_is_sent_where_nobody_listens() -> None:
    assert anchor_text([], [], 0, ["10.96.0.1", "fd00:10:96::1"]) == (
        "table <tp2_cluster> { 10.96.0.1, fd00:10:96::1 }\n"
        "rdr pass on lo0 inet proto tcp from ! 127.0.0.1 to <tp2_cluster> -> 127.0.0.1 port 1\n"
        "rdr pass on lo0 inet6 proto tcp from ! ::1 to <tp2_cluster> -> ::1 port 1\n"
        "pass out quick route-to lo0 inet proto tcp from any to <tp2_cluster> flags S/SA keep state\n"
        "pass out quick route-to lo0 inet6 proto tcp from any to <tp2_cluster> flags S/SA keep state\n"
    )


def test_all_of_it_together_is_in_the_order_that_counts() -> None:
    text = anchor_text(
        [Redirect(Destination("10.96.0.10", 53), 40001)], ["10.96.0.10", "::1", "::1"], 40053, ["10.96.0.10"]
    )
    assert text == (
        "table <tp2_cluster> { 10.96.0.10 }\n"
        "no rdr on lo0 inet6 proto udp from any port 6144:8191 to ::1 port 53\n"
        "no rdr on lo0 inet6 proto tcp from any port 6144:8191 to ::1 port 53\n"
        "rdr pass on lo0 inet proto udp from ! 127.0.0.1 to 10.96.0.10 port 53 -> 127.0.0.1 port 40053\n"
        "rdr pass on lo0 inet proto tcp from ! 127.0.0.1 to 10.96.0.10 port 53 -> 127.0.0.1 port 40053\n"
        "rdr pass on lo0 inet6 proto udp from any to ::1 port 53 -> ::1 port 40053\n"
        "rdr pass on lo0 inet6 proto tcp from any to ::1 port 53 -> ::1 port 40053\n"
        "rdr pass on lo0 inet proto tcp from ! 127.0.0.1 to 10.96.0.10 port 53 -> 127.0.0.1 port 40001\n"
        "rdr pass on lo0 inet proto tcp from ! 127.0.0.1 to <tp2_cluster> -> 127.0.0.1 port 1\n"
        "pass out quick inet proto udp from any port 6144:8191 to 10.96.0.10 port 53 keep state\n"
        "pass out quick inet proto tcp from any port 6144:8191 to 10.96.0.10 port 53 flags S/SA keep state\n"
        "pass out quick route-to lo0 inet proto udp from any to 10.96.0.10 port 53 keep state\n"
        "pass out quick route-to lo0 inet proto tcp from any to 10.96.0.10 port 53 flags S/SA keep state\n"
        "pass out quick route-to lo0 inet proto tcp from any to 10.96.0.10 port 53 flags S/SA keep state\n"
        "pass out quick route-to lo0 inet proto tcp from any to <tp2_cluster> flags S/SA keep state\n"
    )


def test_nothing_wanted_is_a_text_that_loads() -> None:
    assert anchor_text([], [], 0, []) == "\n"


# --- whatever is wanted -------------------------------------------------------------------------------------------

ports = st.integers(1, 65535)
local_ports = st.integers(1024, 65535)


def _of_a_cluster(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified)


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str).filter(_of_a_cluster)
nameservers = st.lists(addresses | st.sampled_from(["127.0.0.1", "127.0.0.53", "::1"]), max_size=4)
destinations = st.builds(Destination, addresses, ports)
loopback_addresses = st.none() | st.sampled_from(["127.0.0.2", "127.8.0.1"])
redirects = st.builds(
    lambda destination, port, local: Redirect(destination, port, None if destination.is_ipv6 else local),
    destinations,
    local_ports,
    loopback_addresses,
)


@dataclass(frozen=True)
class Wanted:
    redirects: dict[Destination, Redirect]
    nameservers: list[str]
    dns_port: int
    cluster: list[str]

    @property
    def text(self) -> str:
        return anchor_text(self.redirects.values(), self.nameservers, self.dns_port, self.cluster)


wanted = st.builds(
    Wanted,
    st.lists(redirects, max_size=6).map(lambda items: {item.destination: item for item in items}),
    nameservers,
    local_ports,
    st.lists(addresses, max_size=4, unique=True),
)


@given(wanted)
def test_whatever_is_wanted_is_written_in_the_grammar(wanted: Wanted) -> None:
    ruleset = parse(wanted.text)
    assert ruleset.table == tuple(wanted.cluster)


@given(wanted)
def test_every_redirect_leads_to_a_listener_of_ours_or_to_nobody(wanted: Wanted) -> None:
    own = {(r.local_address, r.local_port) for r in wanted.redirects.values()} | {(None, wanted.dns_port)}
    for rule in parse(wanted.text).rules:
        if rule.target is not None:
            address, port = rule.target
            local = None if address in ("127.0.0.1", "::1") else address
            assert (local, port) in own | {(None, REFUSING_PORT)}


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection, or a query."""

    protocol: str
    source: str
    source_port: int
    to: str
    port: int


def fate(ruleset: Ruleset, packet: Packet) -> tuple[str, int] | str:
    """Where a packet from this machine ends up: at a local address and port, or it ``leaves``.

    What pf does, as pf.conf(5) tells it: a quick rule decides at once, the first translation rule that matches counts.
    """

    def matches(rule: Rule) -> bool:
        return (
            rule.is_ipv6 == (":" in packet.to)
            and rule.protocol == packet.protocol
            and (packet.to in ruleset.table if rule.to == TABLE else rule.to == packet.to)
            and rule.port in (None, packet.port)
            and (rule.source_ports is None or packet.source_port in rule.source_ports)
            and not (
                rule.source_not is not None
                and ipaddress.ip_address(packet.source) in ipaddress.ip_network(rule.source_not)
            )
        )

    on_loopback = ipaddress.ip_address(packet.to).is_loopback
    filtering = [rule for rule in ruleset.rules if rule.kind in ("pass", "route-to") and matches(rule)]
    if not on_loopback and (not filtering or filtering[0].kind == "pass"):
        return "leaves"
    translation = [rule for rule in ruleset.rules if rule.kind in ("no rdr", "rdr") and matches(rule)]
    if translation and translation[0].target is not None:
        return translation[0].target
    # On the loopback: as it was addressed, if this machine has that address; else it is lost.
    return (packet.to, packet.port) if on_loopback else "lost"


def packet_to(destination: Destination, protocol: str = "tcp", source_port: int = 50000) -> Packet:
    source = HOST6 if destination.is_ipv6 else HOST4
    if ipaddress.ip_address(destination.address).is_loopback:
        source = "::1" if destination.is_ipv6 else "127.0.0.1"
    return Packet(protocol, source, source_port, *destination)


def loopback(destination: Destination) -> str:
    return "::1" if destination.is_ipv6 else "127.0.0.1"


@given(wanted)
def test_every_mapping_leads_to_its_own_local_port(wanted: Wanted) -> None:
    ruleset = parse(wanted.text)
    for destination, redirect in wanted.redirects.items():
        if destination.port == 53 and destination.address in wanted.nameservers:
            continue
        local = redirect.local_address or loopback(destination)
        assert fate(ruleset, packet_to(destination)) == (local, redirect.local_port)


@given(wanted)
def test_every_query_to_a_captured_nameserver_comes_to_us_and_our_own_do_not(wanted: Wanted) -> None:
    ruleset = parse(wanted.text)
    for address in wanted.nameservers:
        server = Destination(address, 53)
        for protocol in ("udp", "tcp"):
            assert fate(ruleset, packet_to(server, protocol)) == (loopback(server), wanted.dns_port)
            own = fate(ruleset, packet_to(server, protocol, EXEMPT_PORTS[-1]))
            if ipaddress.ip_address(address).is_loopback:
                assert own == (address, 53)
            else:
                assert own == "leaves"


@given(wanted, destinations)
def test_a_connection_that_nothing_names_is_refused_in_the_cluster_and_left_alone_elsewhere(
    wanted: Wanted, other: Destination
) -> None:
    ruleset = parse(wanted.text)
    candidates = [other, *(Destination(address, other.port) for address in wanted.cluster)]
    for destination in candidates:
        assume(destination not in wanted.redirects)
        assume(not (destination.port == 53 and destination.address in wanted.nameservers))
        expected = (loopback(destination), REFUSING_PORT) if destination.address in wanted.cluster else "leaves"
        assert fate(ruleset, packet_to(destination)) == expected
        assert fate(ruleset, packet_to(destination, "udp")) == "leaves"


# --- the grammar --------------------------------------------------------------------------------------------------

GOOD = anchor_text(
    [Redirect(Destination("10.96.0.1", 443), 40001), Redirect(Destination("fd00::1", 443), 40003)],
    ["192.168.1.1", "127.0.0.1"],
    40053,
    ["10.96.0.1", "fd00::1"],
)
RDR = "rdr pass on lo0 inet proto tcp from ! 127.0.0.1 to 10.96.0.1 port 443 -> 127.0.0.1 port 40001\n"
ROUTE = "pass out quick route-to lo0 inet proto tcp from any to 10.96.0.1 port 443 flags S/SA keep state\n"
UDP = "pass out quick route-to lo0 inet proto udp from any to 192.168.1.1 port 53 keep state\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ROUTE + RDR, "in order"),
        (RDR.rstrip("\n"), "does not end"),
        ("", "does not end"),
        (RDR + "\n", "begins no rule"),
        (RDR.replace("port 443", "port 65536"), "port"),
        (RDR.replace("port 40001", "port 0"), "port"),
        (RDR.replace("port 40001", "port 040001"), "port"),
        (RDR.replace("10.96.0.1", "fd00::1"), "address family"),
        (RDR.replace("10.96.0.1 port 443", "10.96.0.1:443"), "host"),
        (RDR.replace("10.96.0.1", "10.96.0.256"), "host"),
        (RDR.replace("10.96.0.1", "web.shop"), "host"),
        (RDR.replace(" proto tcp", ""), "proto"),
        (RDR.replace("-> 127.0.0.1", "-> 192.168.1.7"), "loopback"),
        (RDR.replace("! 127.0.0.1", "! ::1"), "loopback"),
        (RDR.replace(" pass", ""), "pass"),
        (RDR.replace("on lo0 ", ""), "on"),
        (RDR.replace("lo0", "en0"), "lo0"),
        (RDR.replace(" to ", "  to "), "to"),
        (RDR.replace("\n", " \n"), "after the end"),
        (ROUTE.replace("quick route-to lo0", "route-to lo0 quick"), "quick"),
        (ROUTE.replace(" route-to lo0", "").replace("\n", " route-to lo0\n"), "'port' belongs"),
        (ROUTE.replace(" flags S/SA", ""), "flags"),
        (UDP.replace("keep", "flags S/SA keep"), "keep"),
        (ROUTE.replace("pass out", "pass in"), "out"),
        (ROUTE.replace("10.96.0.1 port 443", "any port 443"), "host"),
        (ROUTE.replace("10.96.0.1 port 443", "<tp2_cluster>"), "table"),
        ("pass in on lo0 inet proto tcp to 10.96.0.1 port 443 divert-to 127.0.0.1 port 40001\n", "out"),
        ("pass all\n", "out"),
        ("block drop all\n", "begins no rule"),
        ("# a comment\n", "begins no rule"),
        (RDR + "table <tp2_cluster> { 10.96.0.1 }\n", "first"),
        ("table <tp2_cluster> { }\n", "host"),
        ("table <tp2_cluster> { 10.96.0.1, }\n", "host"),
        ("table <other> { 10.96.0.1 }\n", "tp2_cluster"),
    ],
)
def test_the_reader_refuses_what_pfctl_would_refuse_and_what_tp2_would_not_write(text: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        parse(text)


@given(st.data())
def test_a_word_lost_doubled_or_out_of_its_place_is_noticed(data: st.DataObject) -> None:
    lines = GOOD.splitlines()
    # The addresses of a table may stand in any order, so its line has no order to lose.
    number = data.draw(st.integers(1, len(lines) - 1))
    words = lines[number].split(" ")
    place = data.draw(st.integers(0, len(words) - 1))
    match data.draw(st.sampled_from(["lost", "doubled", "swapped"])):
        case "lost":
            del words[place]
        case "doubled":
            words.insert(place, words[place])
        case "swapped":
            other = data.draw(st.integers(0, len(words) - 1))
            assume(words[place] != words[other])
            # Two addresses or two ports of a family may change places: that is another rule, not a bad one.
            kinds = [_kind(words[place]), _kind(words[other])]
            assume(kinds[0] is None or kinds[0] != kinds[1])
            words[place], words[other] = words[other], words[place]
    lines[number] = " ".join(words)
    with pytest.raises(GrammarError):
        parse("\n".join(lines) + "\n")


def _kind(word: str) -> str | None:
    if word.isdecimal():
        return "number"
    return "address" if "." in word or "::" in word else None


@given(st.text(max_size=200) | st.text("rdpas noql0iet/S>-{}<>,:.1 \n", max_size=200))
def test_the_reader_survives_anything(text: str) -> None:
    try:
        ruleset = parse(text)
    except GrammarError:
        return
    assert text == "\n" or ruleset.rules or ruleset.table
