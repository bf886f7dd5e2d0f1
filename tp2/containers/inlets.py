"""What listens where containers come in: on each bridge's own address, for TCP and for DNS.

A connection of a container that a rule has sent here was going somewhere else, and the kernel says where; whether that
is captured, the mode decides. The sockets are bound to their bridge: what comes in by another interface is not heard,
even if it names the bridge's address. Rules come after their listeners, and go before them.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from tp2.containers.bridges import Link
from tp2.errors import Tp2Error
from tp2.system.listeners import Listeners, reset
from tp2.types import Destination

logger = logging.getLogger(__name__)

#: A port that is free for one family may be taken for the other; so often another one is tried.
_ATTEMPTS: Final = 20

#: An inlet as the forwarder wants it: interface, TCP port, DNS port.
Ports = tuple[str, int, int]


class Dns(Protocol):
    """The DNS server, which can listen in more places."""

    async def listen_on(self, device: str, addresses: Sequence[str]) -> int:
        """Listen on *addresses* of an interface; return the port. Raises Tp2Error."""

    async def leave(self, device: str) -> None:
        """Stop listening there."""


@dataclass(frozen=True, slots=True)
class _Inlet:
    link: Link
    tcp_port: int
    dns_port: int


class Inlets:
    """The inlets that are open.

    :param announce: tells the forwarder of exactly these inlets; raises Tp2Error.
    :param origin: says where an accepted connection was going; None if it was to the listener itself.
    :param accept: takes over a connection to a destination; False, and nothing done, if that is not captured.
    :param refuse: takes over a connection that is not captured.
    """

    def __init__(
        self,
        announce: Callable[[Sequence[Ports]], Awaitable[None]],
        dns: Dns,
        *,
        origin: Callable[[socket.socket], Destination | None],
        accept: Callable[[Destination, socket.socket], bool],
        refuse: Callable[[Destination, socket.socket], None],
    ) -> None:
        self._announce = announce
        self._dns = dns
        self._origin = origin
        self._accept = accept
        self._refuse = refuse
        self._listeners: Listeners[tuple[str, str]] = Listeners(self._accepted)
        self._open: dict[str, _Inlet] = {}

    @property
    def names(self) -> list[str]:
        """The interfaces that have one."""
        return sorted(self._open)

    async def use(self, links: Sequence[Link]) -> None:
        """Have an inlet on each of *links* and nowhere else.

        One that cannot be opened is reported and left out; it is tried again with the next call.

        :raises Tp2Error: the forwarder refused; what stood before still does.
        """
        links = [usable for link in links if (usable := _usable(link)).addresses]
        wanted = {link.name: link for link in links}
        gone = [inlet for name, inlet in self._open.items() if wanted.get(name) != inlet.link]
        kept = {inlet.link.name: inlet for inlet in self._open.values() if inlet not in gone}
        if gone:
            await self._tell(kept)
            for former in gone:
                await self._close(former)
            self._open = kept
        new = [link for link in links if link.name not in kept]
        opened = [inlet for link in new if (inlet := await self._try_to_open(link)) is not None]
        if opened:
            both = kept | {inlet.link.name: inlet for inlet in opened}
            try:
                await self._tell(both)
            except BaseException:
                for inlet in opened:
                    await self._close(inlet)
                raise
            self._open = both

    def accept_pending(self) -> None:
        """Accept what waits in the queues now."""
        for inlet in self._open.values():
            for address in inlet.link.addresses:
                self._listeners.accept_pending((inlet.link.name, address))

    async def close(self) -> None:
        """Stop listening everywhere; the rules must have gone before."""
        for inlet in self._open.values():
            await self._close(inlet)
        self._open = {}

    async def _tell(self, inlets: dict[str, _Inlet]) -> None:
        await self._announce([(name, inlet.tcp_port, inlet.dns_port) for name, inlet in inlets.items()])

    async def _try_to_open(self, link: Link) -> _Inlet | None:
        try:
            dns_port = await self._dns.listen_on(link.name, link.addresses)
        except Tp2Error as error:
            logger.warning("containers on %s do not reach the cluster: %s. %s", link.name, error, error.remedy)
            return None
        try:
            tcp_port = self._listen(link)
        except OSError as error:
            logger.warning("containers on %s do not reach the cluster: %s", link.name, error.strerror or error)
            await self._dns.leave(link.name)
            return None
        return _Inlet(link, tcp_port, dns_port)

    def _listen(self, link: Link) -> int:
        """Listen on one port of all addresses of *link*; return it."""
        failure = OSError("no port is free for both families")
        for _ in range(_ATTEMPTS):
            port = 0
            opened = []
            try:
                for address in link.addresses:
                    port = self._listeners.open((link.name, address), address, port, device=link.name)
                    opened.append(address)
            except OSError as error:
                failure = error
                for address in opened:
                    self._listeners.close((link.name, address))
                if not opened:
                    # It is not for the port, which was the kernel's choice.
                    break
            else:
                return port
        raise failure

    async def _close(self, inlet: _Inlet) -> None:
        for address in inlet.link.addresses:
            self._listeners.accept_pending((inlet.link.name, address))
            self._listeners.close((inlet.link.name, address))
        await self._dns.leave(inlet.link.name)

    def _accepted(self, key: tuple[str, str], sock: socket.socket) -> None:
        destination = self._origin(sock)
        if destination is None:
            logger.debug("reset a connection to %s that no rule has sent here", key[0])
            reset(sock)
        elif not self._accept(destination, sock):
            self._refuse(destination, sock)


def _usable(link: Link) -> Link:
    """Return *link* without addresses that cannot be used yet: a bridge without a container never ends its search for
    duplicates of its IPv6 address (RFC 4862 section 5.4)."""

    def can_be_bound(address: str) -> bool:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((address, 0))
            except OSError as error:
                logger.debug("%s on %s cannot be used yet: %s", address, link.name, error)
                return False
        return True

    return replace(
        link,
        ipv4=link.ipv4 if link.ipv4 is not None and can_be_bound(link.ipv4) else None,
        ipv6=link.ipv6 if link.ipv6 is not None and can_be_bound(link.ipv6) else None,
    )
