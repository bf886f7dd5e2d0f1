"""Which addresses of a cluster are left alone, and what the user is told about it."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tp2.exclusions import Borders, Exclusions
from tp2.forward.rules import checked_cluster_address

MACHINE = frozenset(
    map(ip_interface, ["127.0.0.1/8", "::1/128", "192.0.2.10/24", "fd00:2::10/64", "10.8.0.2/32", "172.17.0.1/16"])
)
BORDERS = Borders(
    Exclusions(
        networks=(ip_network("10.96.128.0/17"), ip_network("fd00:96::/112")),
        interfaces=MACHINE,
        own_way=frozenset({"198.51.100.10", "fd00:5::1"}),
    )
)


@pytest.mark.parametrize("address", ["10.96.0.1", "10.244.1.1", "fd00:10:96::1", "198.51.100.11", "10.8.0.1"])
def test_ordinary_addresses_of_a_cluster_are_captured(address: str) -> None:
    assert BORDERS.why(address) is None


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("192.0.2.10", "that is this machine"),
        ("10.8.0.2", "that is this machine"),
        ("fd00:2::10", "that is this machine"),
        ("192.0.2.77", "this machine is on that network (192.0.2.0/24)"),
        ("172.17.0.2", "this machine is on that network (172.17.0.0/16)"),
        ("fd00:2::11", "this machine is on that network (fd00:2::/64)"),
        ("10.96.200.1", "--exclude 10.96.128.0/17 says so"),
        ("fd00:96::1", "--exclude fd00:96::/112 says so"),
        ("198.51.100.10", "tp2 itself reaches the cluster that way"),
        ("fd00:5::1", "tp2 itself reaches the cluster that way"),
        ("127.0.0.7", "no other machine has such addresses"),
        ("169.254.169.254", "no other machine has such addresses"),
        ("fe80::1%eth0", "no other machine has such addresses"),
        ("::ffff:10.96.0.1", "no other machine has such addresses"),
        ("10.96.0.1; flush ruleset", "that is no IP address"),
    ],
)
def test_others_are_left_alone_for_a_reason(address: str, why: str) -> None:
    assert BORDERS.why(address) == why


def test_without_ipv6_no_such_address_is_captured() -> None:
    borders = Borders(Exclusions(ipv6=False))
    assert borders.why("fd00:10:96::1") == "this machine has no IPv6"
    assert borders.why("10.96.0.1") is None


@given(st.ip_addresses().map(str) | st.sampled_from(["::ffff:127.0.0.1", "255.255.255.255", "0.0.0.0", "ff02::1"]))
def test_what_the_helper_would_not_take_is_never_asked_of_it(address: str) -> None:
    """A malformed request ends the helper, and with it everything."""
    if Borders(Exclusions()).why(address) is None:
        assert checked_cluster_address(address) == address


@given(
    address=st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="fd00::/8"),
    networks=st.lists(
        st.tuples(st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="fd00::/8"), st.integers(0, 128)),
        max_size=6,
    ),
)
def test_a_network_excludes_exactly_its_addresses(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    networks: list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]],
) -> None:
    excluded = []
    for base, length in networks:
        with suppress(ValueError):
            excluded.append(ip_network(f"{base}/{length}", strict=False))
    inside = any(address.version == network.version and address in network for network in excluded)
    assert (Borders(Exclusions(networks=tuple(excluded))).why(str(address)) is not None) is inside
