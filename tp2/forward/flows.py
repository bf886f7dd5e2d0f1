"""Making the kernel forget which way DNS queries went: a rule that is new, or gone, counts for flows that it knows too.

Address translation decides about the first packet of a flow, and connection tracking (nf_conntrack) keeps the decision
for as long as the flow is used, and half a minute or more after: for UDP, a flow is whatever has the same addresses
and ports. So a program that asked a nameserver before it was captured, and asks it again from the same port, would go
on being answered by the nameserver; and after the rules are gone, its queries would go on being sent to a port where
nobody listens any more. Ports come round soon: a busy machine has used one in a hundred within that time. Flows are
forgotten by ctnetlink (linux/netfilter/nfnetlink_conntrack.h), where the kernel has it (CONFIG_NF_CT_NETLINK); without
it, they end by themselves.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from tp2.forward.netlink import NETFILTER, Netlink, attribute, attributes
from tp2.types import DNS_PORT

_CONNTRACK: Final = 1 << 8
_GET: Final = _CONNTRACK | 1
_DELETE: Final = _CONNTRACK | 2
# struct nfgenmsg: family, version, resource.
_GENERIC: Final = struct.Struct("=BBH")
_NESTED: Final = 0x8000
_TUPLE_ORIGINAL: Final = 1
_TUPLE_ADDRESSES: Final = 1
_TUPLE_PROTOCOL: Final = 2
_DESTINATION: Final = {socket.AF_INET: 2, socket.AF_INET6: 4}
_PROTOCOL_NUMBER: Final = 1
_PROTOCOL_DESTINATION: Final = 3

_DNS_PORT: Final = struct.pack("!H", DNS_PORT)
_UDP: Final = bytes((socket.IPPROTO_UDP,))


def forget_dns(nameservers: Collection[str]) -> None:
    """Let the kernel forget the UDP flows to port 53 of *nameservers*, where it can; needs CAP_NET_ADMIN."""
    for family in (socket.AF_INET, socket.AF_INET6):
        addresses = {socket.inet_pton(family, a) for a in nameservers if (":" in a) == (family == socket.AF_INET6)}
        if addresses:
            with suppress(OSError):
                _forget(family, addresses)


def _forget(family: socket.AddressFamily, addresses: Collection[bytes]) -> None:
    generic = _GENERIC.pack(family, 0, 0)
    with Netlink(NETFILTER) as netlink:
        for message in netlink.dump(_GET, generic):
            original = attributes(message.payload, _GENERIC.size).get(_TUPLE_ORIGINAL, b"")
            if _is_dns(original, family, addresses):
                # It may have ended by itself meanwhile.
                with suppress(OSError):
                    netlink.change(_DELETE, generic + attribute(_TUPLE_ORIGINAL | _NESTED, original))


def _is_dns(original: bytes, family: socket.AddressFamily, addresses: Collection[bytes]) -> bool:
    """Whether a flow, by the addresses and ports of its first packet, is UDP to port 53 of one of *addresses*."""
    flow = attributes(original, 0)
    protocol = attributes(flow.get(_TUPLE_PROTOCOL, b""), 0)
    return (
        protocol.get(_PROTOCOL_NUMBER) == _UDP
        and protocol.get(_PROTOCOL_DESTINATION) == _DNS_PORT
        and attributes(flow.get(_TUPLE_ADDRESSES, b""), 0).get(_DESTINATION[family]) in addresses
    )
