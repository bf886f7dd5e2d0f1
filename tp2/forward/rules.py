"""What tp2 asks of an operating system, and nothing more: the words and the one interface of this room.

Two primitives: send TCP for a cluster ip:port to a local port, and send the DNS queries for some nameservers to a
local port. A third keeps tp2's own queries out of its own rules. :class:`Forwarder` is how the daemon asks for
them; it is answered by :class:`tp2.forward.client.HelperForwarder`, which asks the privileged helper, which holds
a :class:`Rules` of its platform (:mod:`tp2.forward.nftables`).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from tp2.types import Destination, Redirect

#: Local ports below this one belong to system services; no rule of ours ever points there.
FIRST_UNPRIVILEGED_PORT: Final = 1024

# The usable part of 127.0.0.0/8: its first and last address are broadcast addresses on Linux.
_LOOPBACK: Final = ipaddress.ip_network("127.0.0.0/8")

# The kernel allows any 15 bytes but slashes, colons and spaces; nft would read a trailing * as a pattern.
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.@+-]{1,15}")


class Inlet(NamedTuple):
    """What comes in on ``interface`` (a containers' bridge) is captured as what starts here is.

    Its connections go to ``tcp_port`` and its DNS queries to ``dns_port``, both on the interface's own address
    of their family. Nobody reaches those two ports by naming them: only what was redirected arrives.
    """

    interface: str
    tcp_port: int
    dns_port: int


def loopback(is_ipv6: bool) -> str:
    """Return the loopback address of a family, where redirects go that name no other."""
    return "::1" if is_ipv6 else "127.0.0.1"


def checked_redirect(address: object, port: object, local_port: object, local_address: object = None) -> Redirect:
    """Build a redirect from untrusted values.

    :raises ValueError: an address that is not a unicast address of another host, a port out of range, or a local
        address that is not a loopback address of the destination's family.
    """
    destination = checked_destination(address, port)
    checked_local_port = checked_port(local_port, FIRST_UNPRIVILEGED_PORT)
    if local_address is None:
        return Redirect(destination, checked_local_port)
    local = checked_address(local_address)
    parsed = ipaddress.ip_address(local)
    if (
        destination.is_ipv6
        or parsed not in _LOOPBACK
        or parsed in (_LOOPBACK.network_address, _LOOPBACK.broadcast_address)
    ):
        raise ValueError(f"not a loopback address for {destination}: {local}")
    return Redirect(destination, checked_local_port, local)


def checked_inlet(interface: object, tcp_port: object, dns_port: object) -> Inlet:
    """Build an inlet from untrusted values.

    :raises ValueError: no name of another interface than the loopback, or a port out of range.
    """
    if not isinstance(interface, str) or not _INTERFACE.fullmatch(interface) or interface in (".", "..", "lo"):
        raise ValueError(f"not a network interface: {interface!r}")
    return Inlet(
        interface,
        checked_port(tcp_port, FIRST_UNPRIVILEGED_PORT),
        checked_port(dns_port, FIRST_UNPRIVILEGED_PORT),
    )


def checked_port(value: object, lowest: int = 1) -> int:
    """Return *value* if it is a TCP or UDP port of at least *lowest*.

    :raises ValueError: it is not.
    """
    # bool is an int in Python; JSON's true is no port.
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= 65535:
        raise ValueError(f"not a port from {lowest} to 65535: {value!r}")
    return value


def checked_address(value: object) -> str:
    """Return the canonical text of an IPv4 or IPv6 address.

    :raises ValueError: *value* is no string, no address, or carries a scope.
    """
    if not isinstance(value, str) or "%" in value:
        raise ValueError(f"not an IP address: {value!r}")
    return str(ipaddress.ip_address(value))


def checked_destination(address: object, port: object) -> Destination:
    """Return a destination that may be redirected.

    :raises ValueError: it could be this host's own: loopback, unspecified, link-local, multicast or broadcast.
    """
    return Destination(checked_cluster_address(address), checked_port(port))


def checked_cluster_address(address: object) -> str:
    """Return the canonical text of an address that a cluster may have.

    :raises ValueError: as :func:`checked_destination`.
    """
    canonical = checked_address(address)
    parsed = ipaddress.ip_address(canonical)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    for candidate in (parsed, mapped):
        if candidate is not None and (
            candidate.is_loopback
            or candidate.is_unspecified
            or candidate.is_link_local
            or candidate.is_multicast
            or str(candidate) == "255.255.255.255"
        ):
            raise ValueError(f"not an address of a cluster: {canonical}")
    return canonical


class Rules(Protocol):
    """A platform's rules, as the helper holds them. Synchronous; every call is one transaction: all or nothing."""

    kind: str

    def open(self) -> None:
        """Claim the platform's rule set; nothing is redirected yet.

        :raises Tp2Error: the platform cannot, will not, or another tp2 already has it.
        """

    def capture_dns(self, nameservers: Sequence[str], port: int) -> None:
        """Send UDP and TCP port 53 of exactly *nameservers* (IP addresses) to the local *port*.

        :raises ForwarderError: the platform refused; what was captured before still is.
        """

    def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        """Take away the redirects of *remove*, then set those of *add*, replacing what stood for a destination.

        Idempotent: removing what is not there, or adding what is, changes nothing.

        :raises ForwarderError: the platform refused; the rules are as before the call.
        """

    def cluster(self, add: Sequence[str], remove: Sequence[str], port: int | None) -> None:
        """Take the addresses *remove* out of the cluster's, then put *add* in, in one transaction. Idempotent.

        TCP to one of them that no redirect names goes to the local *port*, whatever port it asks for; or, with
        None, is refused at once with a reset, and counted for :meth:`refused`. *port* holds for all of them, those
        of earlier calls included.

        :raises ForwarderError: the platform refused; all is as before the call.
        """

    def containers(self, inlets: Sequence[Inlet]) -> None:
        """Capture what comes in by exactly *inlets* too, and close their ports to whatever was not captured.

        :raises ForwarderError: the platform refused or cannot; what was captured before still is.
        """

    def steer_dns(self, domains: Sequence[str], search: Sequence[str], port: int) -> None:
        """Have the system ask 127.0.0.1 at *port* for names below exactly *domains*, without capturing a packet.

        :param search: what the system appends to a single label below them.
        :raises ForwarderError: the platform has no resolver that can be told so (only macOS has), or refused; what
            was steered before still is.
        """

    def exempt(self, sock: socket.socket) -> None:
        """Let all traffic of *sock* pass by these rules, from now on.

        :raises ForwarderError: the platform refused.
        """

    def refused(self) -> dict[Destination, int]:
        """Return how many connections :meth:`cluster` refused since the last call, by destination.

        Bounded: of very many destinations some are not told.

        :raises ForwarderError: the platform did not say.
        """

    def end_orphans(self) -> None:
        """End the captured connections whose own address this machine has lost, where the platform can: no byte and no
        reset reaches them any more."""

    def close(self) -> None:
        """Remove every rule. May be called twice, and after a failed :meth:`open`."""


class Forwarder(Protocol):
    """The same, as the daemon sees it: asynchronous, and across the privilege boundary.

    Each method raises :class:`tp2.errors.Tp2Error` as :class:`Rules` says, or when the helper is gone.
    """

    async def capture_dns(self, nameservers: Sequence[str], port: int) -> None:
        """See :meth:`Rules.capture_dns`."""

    async def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        """See :meth:`Rules.update`."""

    async def cluster(self, add: Sequence[str], remove: Sequence[str], port: int | None) -> None:
        """See :meth:`Rules.cluster`."""

    async def containers(self, inlets: Sequence[Inlet]) -> None:
        """See :meth:`Rules.containers`."""

    async def steer_dns(self, domains: Sequence[str], search: Sequence[str], port: int) -> None:
        """See :meth:`Rules.steer_dns`."""

    async def exempt(self, sock: socket.socket) -> None:
        """See :meth:`Rules.exempt`."""

    async def refused(self) -> dict[Destination, int]:
        """See :meth:`Rules.refused`."""

    async def end_orphans(self) -> None:
        """See :meth:`Rules.end_orphans`."""

    async def close(self) -> None:
        """See :meth:`Rules.close`; afterwards the helper has ended."""
