"""Where a redirected connection was to go before a rule sent it here: the kernel remembers (Linux, netfilter).

SO_ORIGINAL_DST is asked of the accepted socket; the answer is the destination of the connection's first packet, as
connection tracking has it (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Final

from tp2.types import Destination

SO_ORIGINAL_DST: Final = 80
IP6T_SO_ORIGINAL_DST: Final = 80

#: struct sockaddr_in: family, port, address, padding (ip(7)).
_SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")

#: struct sockaddr_in6: family, port, flow information, address, scope (ipv6(7)).
_SOCKADDR_IN6: Final = struct.Struct("!2xH4x16s4x")


def original_destination(sock: socket.socket) -> Destination | None:
    """Return where the client of an accepted *sock* wanted to go; None if that is *sock* itself, or nobody knows.

    No rule has sent such a connection here: its client named the listener's own address and port.
    """
    ipv6 = sock.family == socket.AF_INET6
    level, option = (socket.IPPROTO_IPV6, IP6T_SO_ORIGINAL_DST) if ipv6 else (socket.IPPROTO_IP, SO_ORIGINAL_DST)
    layout = _SOCKADDR_IN6 if ipv6 else _SOCKADDR_IN
    try:
        port, address = layout.unpack(sock.getsockopt(level, option, layout.size))
        own = sock.getsockname()
    except OSError:
        # Not tracked, or gone already.
        return None
    destination = Destination(str(ipaddress.ip_address(address)), port)
    return None if destination == (str(ipaddress.ip_address(own[0].partition("%")[0])), own[1]) else destination
