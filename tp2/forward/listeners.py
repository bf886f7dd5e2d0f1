"""Whose socket listens where: what the helper asks the kernel before it redirects anything to a local port.

A redirect hands other people's connections to whoever listens on a port. So the helper takes only ports on which
the daemon's own user listens at that moment: of its requests the kernel tells who sent them (SCM_CREDENTIALS of
unix(7)), of sockets the kernel tells whose they are (sock_diag(7)). One question is one lookup in the kernel's own
table: it costs the same however many sockets there are.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from tp2.errors import ForwarderError
from tp2.forward import netlink
from tp2.forward.protocol import CaptureDns, Cluster, Containers, Request, Update
from tp2.forward.routes import addresses_of
from tp2.forward.rules import Inlet, loopback

_SOCK_DIAG_BY_FAMILY: Final = 20

# struct inet_diag_req_v2 of linux/inet_diag.h: family, protocol, extensions, states; then the socket's identity.
_QUESTION: Final = struct.Struct("=BBBxI")
_IDENTITY: Final = struct.Struct("!HH16s16s")
# struct inet_diag_msg: 4 bytes, the identity (48), expires, rqueue, wqueue, uid, inode.
_UID_OFFSET: Final = 4 + 48 + 12
_NO_COOKIE: Final = b"\xff" * 8
_ANY: Final = bytes(16)


class Listeners:
    """The sockets of this network namespace.

    :raises ForwarderError: the kernel does not tell.
    """

    def __init__(self) -> None:
        # Of the cluster's addresses, whether they are IPv6: those that there have been.
        self._families: set[bool] = set()
        try:
            self._netlink = netlink.Netlink(netlink.SOCK_DIAG)
        except OSError as error:
            raise ForwarderError(
                "cannot see who listens where",
                f"sock_diag: {error.strerror}",
                "tp2 needs a Linux kernel with INET_DIAG (modprobe tcp_diag udp_diag)",
            ) from error

    def check(self, request: Request, uid: int) -> None:
        """Return if everything that *request* redirects arrives at a socket of user *uid*.

        :raises ForwarderError: something would not.
        """
        match request:
            case CaptureDns(nameservers, port):
                for address in {loopback(":" in nameserver) for nameserver in nameservers}:
                    self._require(uid, address, port, socket.IPPROTO_UDP)
                    self._require(uid, address, port, socket.IPPROTO_TCP)
            case Update(add=redirects):
                for redirect in redirects:
                    address = redirect.local_address or loopback(redirect.destination.is_ipv6)
                    self._require(uid, address, redirect.local_port, socket.IPPROTO_TCP)
            case Cluster(add=addresses, port=port):
                self._families |= {":" in address for address in addresses}
                if port is not None:
                    self._check_cluster(port, uid)
            case Containers(inlets):
                for inlet in inlets:
                    self._check_inlet(inlet, uid)
            case _:
                pass

    def owner(self, address: str, port: int, protocol: int = socket.IPPROTO_TCP, interface: int = 0) -> int | None:
        """Return the user whose socket gets what is sent to *address*:*port*, or None where there is none.

        :param interface: the index of the interface by which it comes in, for sockets that are bound to one.
        """
        is_ipv6 = ":" in address
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        here = socket.inet_pton(family, address).ljust(16, b"\0")
        if protocol == socket.IPPROTO_UDP:
            # For UDP the kernel takes the two ends of a single lookup the other way round (net/ipv4/udp_diag.c).
            identity = _IDENTITY.pack(0, port, _ANY, here)
        else:
            identity = _IDENTITY.pack(port, 0, here, _ANY)
        body = _QUESTION.pack(family, protocol, 0, 0xFFFFFFFF) + identity + struct.pack("=I", interface) + _NO_COOKIE
        try:
            answer = self._netlink.ask(_SOCK_DIAG_BY_FAMILY, body)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise ForwarderError(
                "cannot see who listens where", f"sock_diag: {error.strerror}", "restart tp2"
            ) from error
        (uid,) = struct.unpack_from("=I", answer, _UID_OFFSET)
        return int(uid)

    def close(self) -> None:
        """Close the netlink socket."""
        self._netlink.close()

    def _require(self, uid: int, address: str, port: int, protocol: int, interface: int = 0) -> None:
        if (owner := self.owner(address, port, protocol, interface)) != uid:
            raise _refusal(owner, uid, f"{address} port {port}")

    def _check_cluster(self, port: int, uid: int) -> None:
        for is_ipv6 in (False, True):
            # The port is for the addresses of earlier requests too.
            if is_ipv6 in self._families or self.owner(loopback(is_ipv6), port) is not None:
                self._require(uid, loopback(is_ipv6), port, socket.IPPROTO_TCP)

    def _check_inlet(self, inlet: Inlet, uid: int) -> None:
        try:
            index = socket.if_nametoindex(inlet.interface)
        except OSError:
            raise ForwarderError(
                "cannot capture what containers send",
                f"there is no network interface {inlet.interface}",
                "see 'ip link' for its name",
            ) from None
        addresses = [str(address) for address in addresses_of(index)]
        for port, protocols in (
            (inlet.tcp_port, [socket.IPPROTO_TCP]),
            (inlet.dns_port, [socket.IPPROTO_TCP, socket.IPPROTO_UDP]),
        ):
            for protocol in protocols:
                owners = {self.owner(address, port, protocol, index) for address in addresses} - {None}
                # Not every family has to be served, but nobody else may serve one.
                if owners != {uid}:
                    raise _refusal(next(iter(owners - {uid}), None), uid, f"{inlet.interface} port {port}")


def _refusal(owner: int | None, uid: int, where: str) -> ForwarderError:
    who = "nobody listens there" if owner is None else f"user {owner} listens there"
    return ForwarderError(
        "the helper refused a redirect",
        f"it leads to {where}, but {who}, and not tp2's user ({uid})",
        "restart tp2; if it happens again, report it",
    )
