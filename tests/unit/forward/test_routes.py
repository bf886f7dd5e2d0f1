"""What the kernel's answers say about networks; and answers that say nothing."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tp2.forward import netlink
from tp2.forward.routes import ROUTE, RTA_DST, RTA_GATEWAY, RTA_OIF, connected, network_of

KERNEL, BOOT, STATIC, RA = 2, 3, 4, 9
MAIN, LOCAL = 254, 255
UNICAST, BROADCAST, UNREACHABLE = 1, 3, 7


def route(
    network: str, *, protocol: int = KERNEL, table: int = MAIN, kind: int = UNICAST, gateway: str | None = None
) -> bytes:
    parsed = ipaddress.ip_network(network)
    family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
    message = ROUTE.pack(family, parsed.prefixlen, 0, 0, table, protocol, 253, kind, 0)
    if parsed.prefixlen:
        message += netlink.attribute(RTA_DST, parsed.network_address.packed)
    if gateway is not None:
        message += netlink.attribute(RTA_GATEWAY, ipaddress.ip_address(gateway).packed)
    return message + netlink.attribute(RTA_OIF, struct.pack("=I", 2))


@pytest.mark.parametrize(
    ("network", "protocol"),
    [("192.168.1.0/24", KERNEL), ("10.0.0.0/8", KERNEL), ("2001:db8::/64", KERNEL), ("2001:db8:1::/64", RA)],
)
def test_the_network_of_an_interfaces_own_address_is_connected(network: str, protocol: int) -> None:
    assert connected(route(network, protocol=protocol)) == ipaddress.ip_network(network)


@pytest.mark.parametrize(
    "payload",
    [
        route("10.0.0.0/8", protocol=BOOT),  # into a VPN's device
        route("10.0.0.0/8", protocol=STATIC),
        route("10.0.0.0/8", gateway="192.168.1.1"),
        route("0.0.0.0/0", gateway="192.168.1.1"),
        route("0.0.0.0/0"),
        route("10.0.0.0/8", table=100),
        route("192.168.1.255/32", table=LOCAL, kind=BROADCAST),
        route("10.0.0.0/8", kind=UNREACHABLE),
        route("127.0.0.0/8"),
        route("fe80::/64"),
        route("169.254.0.0/16"),
        route("ff00::/8"),
        b"",
        b"\0" * 11,
        route("192.168.1.0/24")[:-10],
    ],
)
def test_what_is_only_routed_is_not_connected(payload: bytes) -> None:
    assert connected(payload) is None


@given(st.binary(max_size=80))
def test_no_bytes_break_it(payload: bytes) -> None:
    connected(payload)
    netlink.attributes(payload, 0)


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=20), max_size=5))
def test_attributes_are_read_as_they_are_written(wanted: dict[int, bytes]) -> None:
    data = b"head" + b"".join(netlink.attribute(kind, value) for kind, value in wanted.items())
    assert netlink.attributes(data, 4) == wanted


def test_the_network_of_an_address_is_found() -> None:
    networks = [ipaddress.ip_network(text) for text in ("192.168.1.0/24", "2001:db8::/64")]
    assert network_of("192.168.1.77", networks) == networks[0]
    assert network_of("2001:db8::1", networks) == networks[1]
    assert network_of("192.168.2.77", networks) is None
