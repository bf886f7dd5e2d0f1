"""Ending connections whose own address this machine has lost: nothing can reach them any more, a reset included.

A captured connection ends at a local port, but it still has the address that the machine had when it began. When the
network changes and that address goes, the two ends cannot hear each other, though both are on this machine, and a
program would wait for minutes; a resolver would wait for an answer until its timeout, which is five seconds
(resolv.conf(5)). Linux lets an administrator end such a socket (SOCK_DESTROY of sock_diag(7), kernel 4.5 with
CONFIG_INET_DIAG_DESTROY, 4.9 for UDP): the program sees ECONNABORTED at once, and can try again.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from itertools import product
from typing import Final, NamedTuple

from tp2.forward.netlink import SOCK_DIAG, Netlink
from tp2.system.environment import has_address
from tp2.types import Destination

# linux/sock_diag.h and linux/inet_diag.h: a request is family, protocol, extensions, states, identity; an answer has
# four bytes before the identity, and the family first.
_SOCK_DIAG_BY_FAMILY: Final = 20
_SOCK_DESTROY: Final = 21
_REQUEST: Final = struct.Struct("=BBBxI48s")
_ESTABLISHED_OR_SYN_SENT: Final = 1 << 1 | 1 << 2
_IDENTITY: Final = slice(4, 52)
_ANYBODY: Final = bytes(48)


class Connection(NamedTuple):
    """A connected socket of this machine: its own address, whom it talks to, and the kernel's name for it."""

    protocol: int
    family: socket.AddressFamily
    local: str
    peer: Destination
    identity: bytes


def end_orphans(captured: Callable[[Destination], bool]) -> int:
    """End the connections to *captured* destinations whose own address is not this machine's any more.

    Needs CAP_NET_ADMIN. Returns how many were ended: none where the kernel cannot.
    """
    ended = 0
    with Netlink(SOCK_DIAG) as netlink:
        for protocol, family in product((socket.IPPROTO_TCP, socket.IPPROTO_UDP), (socket.AF_INET, socket.AF_INET6)):
            found = _connections(netlink, protocol, family)
            ours = [connection for connection in found if captured(connection.peer)]
            gone = {local for local in {connection.local for connection in ours} if not has_address(local)}
            ended += sum(_end(netlink, connection) for connection in ours if connection.local in gone)
    return ended


def _connections(netlink: Netlink, protocol: int, family: int) -> list[Connection]:
    request = _REQUEST.pack(family, protocol, 0, _ESTABLISHED_OR_SYN_SENT, _ANYBODY)
    try:
        return [read(protocol, message.payload) for message in netlink.dump(_SOCK_DIAG_BY_FAMILY, request)]
    except OSError as error:
        # A kernel without CONFIG_INET_UDP_DIAG.
        if error.errno == errno.ENOENT:
            return []
        raise


def read(protocol: int, payload: bytes) -> Connection:
    """Return the connection of a *protocol* in a ``struct inet_diag_msg``."""
    family = socket.AddressFamily(payload[0])
    identity = payload[_IDENTITY]
    size = 4 if family == socket.AF_INET else 16
    local, remote = (socket.inet_ntop(family, identity[start : start + size]) for start in (4, 20))
    return Connection(protocol, family, local, Destination(remote, int.from_bytes(identity[2:4])), identity)


def _end(netlink: Netlink, connection: Connection) -> bool:
    body = _REQUEST.pack(connection.family, connection.protocol, 0, _ESTABLISHED_OR_SYN_SENT, connection.identity)
    try:
        netlink.change(_SOCK_DESTROY, body)
    except OSError as error:
        # Gone by itself meanwhile, or a kernel without CONFIG_INET_DIAG_DESTROY.
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
            return False
        raise
    return True
