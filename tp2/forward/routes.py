"""What this machine's network says about an address (rtnetlink(7)): its own, on a connected network, or routed.

Nothing here needs a privilege, and nothing changes anything.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NamedTuple

from tp2.forward import netlink

Network = IPv4Network | IPv6Network

RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26

# Attributes of linux/rtnetlink.h and linux/if_addr.h.
RTA_DST: Final = 1
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RTA_PREFSRC: Final = 7
RTA_MULTIPATH: Final = 9
RTA_VIA: Final = 18
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2

#: struct rtmsg: family, destination and source length, TOS, table, protocol, scope, type, flags.
ROUTE: Final = struct.Struct("=BBBBBBBBI")
#: struct ifaddrmsg: family, prefix length, flags, scope, interface index.
_ADDRESS: Final = struct.Struct("=BBBBI")

RTN_UNICAST: Final = 1
# RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT
_REFUSING: Final = (6, 7, 8)
_RTA_TABLE: Final = 15
RT_TABLE_MAIN: Final = 254

# Who made a route because of an address, and not because somebody routes something there: the kernel itself, and
# network managers that read router advertisements in its place (RTPROT_KERNEL, RTPROT_RA).
_OF_AN_ADDRESS: Final = (2, 9)


class Route(NamedTuple):
    """A route of this machine: the network that it is for, and the name of the device, "" if it has none.

    ``table`` is where it stands (254 is the main one); ``connected`` says that it is there because of an address.
    ``refuses`` says that packets are refused or dropped rather than sent (``unreachable``, ``blackhole``, ...).
    """

    network: Network
    device: str
    table: int = 254
    connected: bool = False
    refuses: bool = False


def all_routes() -> list[Route]:
    """Return the routes of all tables but the local one, the more specific first.

    :raises OSError: the kernel does not tell.
    """
    found = []
    with netlink.Netlink(netlink.ROUTE) as asking:
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in asking.dump(RTM_GETROUTE, ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
                if message.kind == RTM_NEWROUTE and (route := read_route(message.payload)) is not None:
                    found.append(route)
    return sorted(found, key=lambda route: -route.network.prefixlen)


def read_route(payload: bytes) -> Route | None:
    """Return the route in a payload of RTM_NEWROUTE; None if it is for this machine itself, or no route for packets."""
    if len(payload) < ROUTE.size:
        return None
    family, length, _, _, table, _, _, kind, _ = ROUTE.unpack_from(payload)
    attributes = netlink.attributes(payload, ROUTE.size)
    if family not in (socket.AF_INET, socket.AF_INET6) or kind not in (RTN_UNICAST, *_REFUSING):
        return None
    if _RTA_TABLE in attributes:
        table = int.from_bytes(attributes[_RTA_TABLE], sys.byteorder)
    try:
        bits = 4 if family == socket.AF_INET else 16
        network = ipaddress.ip_network((attributes.get(RTA_DST, bytes(bits)), length))
        index = int.from_bytes(attributes.get(RTA_OIF, b""), sys.byteorder)
        device = socket.if_indextoname(index) if index else ""
    except (ValueError, OSError):
        return None
    return Route(network, device, table, connected(payload) is not None, kind in _REFUSING)


def connected_networks() -> list[Network]:
    """Return the networks that this machine is directly connected to: those of its interfaces' own addresses.

    A network that is only routed is not among them, be it through a gateway or into a VPN's device; nor is the
    loopback network, or a link-local one.

    :raises OSError: the kernel does not tell.
    """
    with netlink.Netlink(netlink.ROUTE) as asking:
        found = {
            network
            for family in (socket.AF_INET, socket.AF_INET6)
            for message in asking.dump(RTM_GETROUTE, ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
            if message.kind == RTM_NEWROUTE and (network := connected(message.payload)) is not None
        }
    return sorted(found, key=lambda network: (network.version, network))


def connected(payload: bytes) -> Network | None:
    """Return the directly connected network that a route (the payload of RTM_NEWROUTE) leads to, or None."""
    if len(payload) < ROUTE.size:
        return None
    family, length, _, _, table, protocol, _, kind, _ = ROUTE.unpack_from(payload)
    attributes = netlink.attributes(payload, ROUTE.size)
    if (
        family not in (socket.AF_INET, socket.AF_INET6)
        or table != RT_TABLE_MAIN
        or kind != RTN_UNICAST
        or protocol not in _OF_AN_ADDRESS
        or attributes.keys() & {RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA}
        or RTA_DST not in attributes
    ):
        return None
    try:
        network = ipaddress.ip_network((attributes[RTA_DST], length))
    except ValueError:
        return None
    return None if network.is_loopback or network.is_link_local or network.is_multicast else network


def network_of(address: str, networks: Iterable[Network]) -> Network | None:
    """Return the first of *networks* that *address* is in, or None."""
    parsed = ipaddress.ip_address(address)
    return next((network for network in networks if parsed in network), None)


def addresses_of(index: int) -> list[IPv4Address | IPv6Address]:
    """Return the addresses of the network interface with this index, in the kernel's order.

    :raises OSError: the kernel does not tell.
    """
    found = []
    with netlink.Netlink(netlink.ROUTE) as asking:
        for message in asking.dump(RTM_GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            if len(message.payload) >= _ADDRESS.size and _ADDRESS.unpack_from(message.payload)[4] == index:
                attributes = netlink.attributes(message.payload, _ADDRESS.size)
                # On a point-to-point link the first is the other end.
                value = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
                if value is not None:
                    found.append(ipaddress.ip_address(value))
    return found
