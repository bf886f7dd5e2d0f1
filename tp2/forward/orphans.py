"""Ending connections whose own address this machine has lost: nothing can reach them any more, a reset included.

A captured connection ends at a local port, but it still has the address that the machine had when it began. When the
network changes and that address goes, the two ends cannot hear each other, though both are on this machine, and a
program would wait for minutes. Linux lets an administrator end such a socket (SOCK_DESTROY, sock_diag(7), kernel 4.5
with CONFIG_INET_DIAG_DESTROY): the program sees ECONNABORTED at once, and can try again.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from tp2.environment import has_address
from tp2.types import Destination

logger = logging.getLogger(__name__)

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_SOCK_DESTROY: Final = 21
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST: Final = 0x001
_ACK: Final = 0x004
_DUMP: Final = 0x300

_HEADER: Final = struct.Struct("=IHHII")
_REQUEST_V2: Final = struct.Struct("=BBBxI48s")
_ESTABLISHED_OR_ON_THE_WAY: Final = 1 << 1 | 1 << 2
_BUFFER: Final = 64 * 1024


class Orphan(NamedTuple):
    """A TCP socket of this machine: its own address, whom it talks to, and the kernel's name for it."""

    family: socket.AddressFamily
    local: str
    peer: Destination
    ident: bytes


def end_orphans(ours: Callable[[Destination], bool]) -> int:
    """End the connections to destinations that are *ours* whose own address is not this machine's any more.

    Needs CAP_NET_ADMIN. Returns how many were ended; none where the kernel cannot.
    """
    ended = 0
    kept: dict[str, bool] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for found in list(_connections(netlink, family)):
                if not ours(found.peer):
                    continue
                if found.local not in kept:
                    kept[found.local] = has_address(found.local)
                if not kept[found.local]:
                    ended += _destroy(netlink, found)
    return ended


def parse(data: bytes) -> Iterator[Orphan | int]:
    """Give what is in a buffer of netlink messages: sockets, and 0 or an errno where a list or request has ended."""
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        body = data[_HEADER.size : length]
        if kind == _NLMSG_DONE:
            yield 0
        elif kind == _NLMSG_ERROR and len(body) >= 4:
            yield -struct.unpack_from("=i", body)[0]
        elif kind == _SOCK_DIAG_BY_FAMILY and len(body) >= 52 and body[0] in (socket.AF_INET, socket.AF_INET6):
            yield _socket(body)
        data = data[(length + 3) & ~3 :]


def _socket(body: bytes) -> Orphan:
    family = socket.AddressFamily(body[0])
    ident = body[4:52]
    size = 4 if family == socket.AF_INET else 16
    port = int.from_bytes(ident[2:4])
    local, remote = ident[4 : 4 + size], ident[20 : 20 + size]
    return Orphan(
        family,
        socket.inet_ntop(family, local),
        Destination(socket.inet_ntop(family, remote), port),
        ident,
    )


def _connections(netlink: socket.socket, family: socket.AddressFamily) -> Iterator[Orphan]:
    request = _REQUEST_V2.pack(family, socket.IPPROTO_TCP, 0, _ESTABLISHED_OR_ON_THE_WAY, bytes(48))
    _send(netlink, _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, request)
    while True:
        for item in parse(netlink.recv(_BUFFER)):
            if isinstance(item, int):
                return
            yield item


def _destroy(netlink: socket.socket, orphan: Orphan) -> bool:
    request = _REQUEST_V2.pack(orphan.family, socket.IPPROTO_TCP, 0, _ESTABLISHED_OR_ON_THE_WAY, orphan.ident)
    _send(netlink, _SOCK_DESTROY, _REQUEST | _ACK, request)
    code = next((item for item in parse(netlink.recv(_BUFFER)) if isinstance(item, int)), 0)
    if code not in (0, errno.ENOENT):
        logger.debug("cannot end a connection to %s: %s", orphan.peer, errno.errorcode.get(code, code))
    return code == 0


def _send(netlink: socket.socket, kind: int, flags: int, body: bytes) -> None:
    netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
