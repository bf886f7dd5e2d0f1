"""Stopgap routes: a captured address to which the kernel has no route is given one that dies with this process.

Without any route ``connect()`` fails before a rule is looked at: on a machine that is offline, and for IPv6 wherever
only IPv4 leads out. So while the kernel has no other route for a captured address, it gets one into a device of our
own. It is a TUN device that nobody keeps: the kernel removes it, and every route into it, when the descriptor that
made it closes, SIGKILL included. The device is made when the first address needs it. To IPv4 the routes name 127.0.0.1
as their source. IPv6 takes no source of another interface, and a machine without a global address would offer its
link-local one, which nobody can answer from ::1; so the device has an address, of a network of its own (RFC 4193), and
deprecated (RFC 4862 section 5.5.4), so that whatever else the machine has is taken before it. Nothing ever leaves by
it: what is redirected takes another way, and everything else is refused at once, as it would have been without a route
(:mod:`tp2.forward.nftables`).

A host route is more specific than what a VPN or a network manager may add later. So the kernel's own notifications are
followed, and a stopgap goes as soon as there is another way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import select
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from tp2.forward import netlink, routes
from tp2.forward.netlink import Netlink, attribute
from tp2.forward.routes import ROUTE, RTA_DST, RTA_OIF, RTA_PREFSRC
from tp2.types import ROUTE_PROTOCOL

#: The name of the device.
DEVICE: Final = "tp2-stopgap"

_TUN: Final = "/dev/net/tun"

# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001

# linux/rtnetlink.h, linux/if_link.h
_RTM_NEWLINK: Final = 16
_RTM_DELROUTE: Final = 25
_RTM_RULES: Final = (32, 33)
_NLM_F_CREATE: Final = 0x400
_RTM_F_CLONED: Final = 0x200
_RTM_F_FIB_MATCH: Final = 0x2000
_RT_SCOPE_LINK: Final = 253
_IFLA_AF_SPEC: Final = 26
_IFLA_INET_CONF: Final = 1
_IPV4_DEVCONF_ROUTE_LOCALNET: Final = 26
_IFLA_INET6_ADDR_GEN_MODE: Final = 8
_IN6_ADDR_GEN_MODE_NONE: Final = 1
_IFF_UP: Final = 1
_RTM_NEWADDR: Final = 20
_IFA_ADDRESS: Final = 1
_IFA_CACHEINFO: Final = 6
_IFA_FLAGS: Final = 8
_IFA_F_NODAD_NOPREFIXROUTE: Final = 0x2 | 0x200
# struct ifinfomsg: family, type, index, flags, change.
_LINK: Final = struct.Struct("=BxHiII")

# struct ifaddrmsg: family, prefix length, flags, scope, index.
_ADDRESS: Final = struct.Struct("=BBBBI")
# struct ifa_cacheinfo: preferred and valid for so many seconds, created, changed.
_DEPRECATED_FOR_EVER: Final = struct.pack("=IIII", 0, 0xFFFFFFFF, 0, 0)

#: The device's address, whose 40 bits were drawn once: see above.
SOURCE6: Final = "fd5c:f194:724b::1"

#: Seconds for the kernel to make an address usable that needs no search for duplicates: it takes milliseconds.
PATIENCE: Final = 2

_RTNLGRP_IPV6_ROUTE: Final = 0x400

# RTNLGRP_LINK, _IPV4_ROUTE, _IPV4_RULE, _IPV6_ROUTE, _IPV6_RULE
_GROUPS: Final = 0x1 | 0x40 | 0x80 | 0x400 | 0x40000


class _Prefix(NamedTuple):
    """A destination of routes: *bits* of *family*'s address are those of *network*."""

    family: int
    network: int
    shift: int

    def covers(self, family: int, address: int) -> bool:
        return family == self.family and address >> self.shift == self.network


class Stopgap:
    """The stopgap routes of this network namespace. Not for several threads.

    Opening the TUN driver may need root; all else needs CAP_NET_ADMIN.

    :raises OSError: the kernel has no rtnetlink.
    """

    def __init__(self) -> None:
        #: Why there will be no stopgaps, or None.
        self.lack: str | None = None
        self._tun: int | None = None
        self._index = 0
        self._wanted: set[str] = set()
        self._ours: set[str] = set()
        self._asking = Netlink(netlink.ROUTE)
        self._events = Netlink(netlink.ROUTE, _GROUPS)
        try:
            self._tun = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            self.lack = f"{_TUN} cannot be opened: {error.strerror}"

    def fileno(self) -> int:
        """Return the descriptor that is readable when :meth:`changed` has something to do."""
        return self._events.fileno()

    def want(self, add: Iterable[str], remove: Iterable[str] = ()) -> None:
        """See to it that the addresses *add* have a route, and those of *remove* none of ours."""
        for address in remove:
            self._wanted.discard(address)
            self._take_back(address)
        new = [address for address in add if address not in self._wanted]
        self._wanted.update(new)
        self._help(new)

    def changed(self) -> None:
        """Look again, after the kernel told of changes to links, routes or rules."""
        doubted: set[str] = set()
        relevant = False
        try:
            for message in self._events.pending():
                touched = self._touched_by(message)
                if touched is not None:
                    relevant = True
                    doubted |= {address for address in self._ours if touched(*_number(address))}
        except OSError:
            # Some notifications were lost.
            relevant, doubted = True, set(self._ours)
        if relevant:
            # The kernel can only tell of another route while ours is not there.
            for address in doubted:
                self._take_back(address)
            self._help(self._wanted - self._ours)

    def close(self) -> None:
        """Remove the device and with it the routes. May be called twice."""
        if self._tun is not None:
            os.close(self._tun)
        self._tun = None
        self._wanted, self._ours = set(), set()
        self._asking.close()
        self._events.close()

    def _touched_by(self, message: netlink.Message) -> Callable[[int, int], bool] | None:
        """Return which addresses may have another route since *message*, or None if it concerns none at all."""
        if message.kind in _RTM_RULES:
            return lambda family, address: True
        if message.kind not in (routes.RTM_NEWROUTE, _RTM_DELROUTE):
            # A link that goes takes IPv4 routes along without another word. What has a stopgap still needs it.
            return lambda family, address: False
        if len(message.payload) < ROUTE.size:
            return None
        family, length, _, _, _, _, _, _, flags = ROUTE.unpack_from(message.payload)
        attributes = netlink.attributes(message.payload, ROUTE.size)
        ours = self._index and attributes.get(RTA_OIF) == struct.pack("=I", self._index)
        if family not in (socket.AF_INET, socket.AF_INET6) or ours or flags & _RTM_F_CLONED:
            return None
        return _prefix(family, length, attributes.get(RTA_DST, b"")).covers

    def _help(self, addresses: Iterable[str]) -> None:
        """Give a route to each of *addresses* that has none."""
        if self._tun is None:
            return
        # What leads to one address leads to all of its prefix: in the common case, one question is enough for all.
        known: list[_Prefix] = []
        for address in addresses:
            family, number = _number(address)
            if any(prefix.covers(family, number) for prefix in known):
                continue
            prefix = self._route_to(address)
            if prefix is not None:
                known.append(prefix)
            elif not self._give(address):
                return

    def _route_to(self, address: str) -> _Prefix | None:
        """Return the destination of the route that the kernel has for *address*, or None if it has none."""
        family, packed = _packed(address)
        body = ROUTE.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH) + attribute(RTA_DST, packed)
        try:
            answer = self._asking.ask(routes.RTM_GETROUTE, body)
        except OSError as error:
            # A route that says "unreachable" or "prohibited" is a route, and somebody's wish.
            return None if error.errno == errno.ENETUNREACH else _prefix(family, 8 * len(packed), packed)
        _, length, *_ = ROUTE.unpack_from(answer)
        return _prefix(family, length, netlink.attributes(answer, ROUTE.size).get(RTA_DST, b""))

    def _give(self, address: str) -> bool:
        """Set a stopgap for *address*; return False when none can be set at all."""
        if not self._index and not self._make_device():
            return False
        try:
            self._asking.change(routes.RTM_NEWROUTE, self._our_route(address), _NLM_F_CREATE)
        except OSError:
            # IPv6 is switched off, or the route came from elsewhere at this moment: as without a stopgap.
            return True
        self._ours.add(address)
        return True

    def _take_back(self, address: str) -> None:
        if address in self._ours:
            self._ours.discard(address)
            # It may have gone by itself, with ::1 or the loopback interface.
            with contextlib.suppress(OSError):
                self._asking.change(_RTM_DELROUTE, self._our_route(address))

    def _our_route(self, address: str) -> bytes:
        family, packed = _packed(address)
        scope = _RT_SCOPE_LINK if family == socket.AF_INET else 0
        body = ROUTE.pack(
            family, 8 * len(packed), 0, 0, routes.RT_TABLE_MAIN, ROUTE_PROTOCOL, scope, routes.RTN_UNICAST, 0
        )
        body += attribute(RTA_DST, packed) + attribute(RTA_OIF, struct.pack("=I", self._index))
        if family == socket.AF_INET:
            body += attribute(RTA_PREFSRC, socket.inet_aton("127.0.0.1"))
        return body

    def _add_our_address(self) -> None:
        """Give the device its IPv6 address, and return when it can be answered: the kernel does that a little later."""
        with Netlink(netlink.ROUTE, _RTNLGRP_IPV6_ROUTE) as told:
            self._asking.change(_RTM_NEWADDR, self._our_address(), _NLM_F_CREATE)
            address = socket.inet_pton(socket.AF_INET6, SOURCE6)
            waiting = select.poll()
            waiting.register(told, select.POLLIN)
            while waiting.poll(1000 * PATIENCE):
                for message in told.pending():
                    said = netlink.attributes(message.payload, ROUTE.size)
                    if message.kind == routes.RTM_NEWROUTE and said.get(RTA_DST) == address:
                        return

    def _our_address(self) -> bytes:
        body = _ADDRESS.pack(socket.AF_INET6, 128, 0, 0, self._index)
        body += attribute(_IFA_ADDRESS, socket.inet_pton(socket.AF_INET6, SOURCE6))
        body += attribute(_IFA_FLAGS, struct.pack("=I", _IFA_F_NODAD_NOPREFIXROUTE))
        return body + attribute(_IFA_CACHEINFO, _DEPRECATED_FOR_EVER)

    def _make_device(self) -> bool:
        assert self._tun is not None
        try:
            fcntl.ioctl(self._tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN_NO_PI))
            self._index = socket.if_nametoindex(DEVICE)
            # By netlink rather than by sysctl: /proc/sys is often read-only in containers.
            local = attribute(_IPV4_DEVCONF_ROUTE_LOCALNET, struct.pack("=I", 1))
            self._set_link(attribute(socket.AF_INET, attribute(_IFLA_INET_CONF, local)))
            with_ipv6 = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_IN6_ADDR_GEN_MODE_NONE]))
            try:
                self._set_link(attribute(socket.AF_INET6, with_ipv6))
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:
                    raise
            self._asking.change(_RTM_NEWLINK, _LINK.pack(socket.AF_UNSPEC, 0, self._index, _IFF_UP, _IFF_UP))
            # Where IPv6 is switched off there is nothing to have a source for.
            with contextlib.suppress(OSError):
                self._add_our_address()
        except OSError as error:
            os.close(self._tun)
            self._tun, self._index = None, 0
            self.lack = f"the device {DEVICE} cannot be made: {error.strerror}"
            return False
        return True

    def _set_link(self, of_family: bytes) -> None:
        link = _LINK.pack(socket.AF_UNSPEC, 0, self._index, 0, 0)
        self._asking.change(_RTM_NEWLINK, link + attribute(_IFLA_AF_SPEC, of_family))


def _packed(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def _number(address: str) -> tuple[int, int]:
    parsed = ipaddress.ip_address(address)
    return socket.AF_INET if parsed.version == 4 else socket.AF_INET6, int(parsed)


def _prefix(family: int, length: int, destination: bytes) -> _Prefix:
    bits = 32 if family == socket.AF_INET else 128
    return _Prefix(family, int.from_bytes(destination, "big") >> (bits - length), bits - length)
