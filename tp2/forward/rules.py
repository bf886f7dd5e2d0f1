"""What tp2 asks of an operating system, and nothing more: the words and the one interface of this room.

Two primitives: send TCP for a cluster ip:port to a local port, and send the DNS queries for some nameservers to a
local port. A third keeps tp2's own queries out of its own rules. :class:`Forwarder` is how the daemon asks for
them; it is answered by :class:`tp2.forward.client.HelperForwarder`, which asks the privileged helper, which holds
a :class:`Rules` of its platform (:mod:`tp2.forward.nftables`).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Protocol

from tp2.types import Destination, Redirect

#: Local ports below this one belong to system services; no rule of ours ever points there.
FIRST_UNPRIVILEGED_PORT = 1024


def checked_redirect(address: object, port: object, local_port: object) -> Redirect:
    """Build a redirect from untrusted values.

    :raises ValueError: an address that is not a unicast address of another host, or a port out of range.
    """
    return Redirect(checked_destination(address, port), checked_port(local_port, FIRST_UNPRIVILEGED_PORT))


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
    return Destination(canonical, checked_port(port))


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

    def exempt(self, sock: socket.socket) -> None:
        """Let all traffic of *sock* pass by these rules, from now on.

        :raises ForwarderError: the platform refused.
        """

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

    async def exempt(self, sock: socket.socket) -> None:
        """See :meth:`Rules.exempt`."""

    async def close(self) -> None:
        """See :meth:`Rules.close`; afterwards the helper has ended."""
