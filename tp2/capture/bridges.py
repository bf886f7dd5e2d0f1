"""The interfaces of this machine, with what tells a containers' bridge from others (rtnetlink(7), Linux)."""

from __future__ import annotations

import struct
import sys
from typing import Final

from tp2.containers.bridges import Link
from tp2.forward import netlink
from tp2.system import interfaces

_RTM_NEWLINK: Final = 16
_RTM_GETLINK: Final = 18
_IFF_UP: Final = 0x1

#: struct ifinfomsg of linux/rtnetlink.h: family, type, index, flags, change.
_IFINFOMSG: Final = struct.Struct("=BxHiII")

# Attributes of linux/if_link.h.
_IFLA_IFNAME: Final = 3
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_INFO_KIND: Final = 1


def links() -> list[Link]:
    """Return all network interfaces; none where the platform has no bridges of containers.

    :raises OSError: the kernel does not say.
    """
    if sys.platform != "linux":
        return []
    ipv4: dict[str, str] = {}
    ipv6: dict[str, str] = {}
    for interface, address in interfaces.addresses():
        if address.version == 4:
            ipv4.setdefault(interface, str(address.ip))
        elif not address.is_link_local:
            ipv6.setdefault(interface, str(address.ip))
    found = []
    with netlink.Netlink(netlink.ROUTE) as socket:
        for message in socket.dump(_RTM_GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0)):
            if message.kind != _RTM_NEWLINK:
                continue
            _, _, index, flags, _ = _IFINFOMSG.unpack_from(message.payload)
            said = netlink.attributes(message.payload, _IFINFOMSG.size)
            name = _text(said.get(_IFLA_IFNAME, b""))
            kind = _text(netlink.attributes(said.get(_IFLA_LINKINFO, b""), 0).get(_IFLA_INFO_KIND, b""))
            master = int.from_bytes(said.get(_IFLA_MASTER, b""), sys.byteorder)
            found.append(Link(index, name, kind, master, bool(flags & _IFF_UP), ipv4.get(name), ipv6.get(name)))
    return found


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
