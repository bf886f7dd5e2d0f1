"""The few words that every room speaks. No behaviour lives here."""

from __future__ import annotations

from typing import Final, NamedTuple

#: Who made tp2's own routes, as ``ip route`` shows it (rtm_protocol of rtnetlink(7)): a number that nobody registered.
ROUTE_PROTOCOL: Final = 116

#: Where nameservers listen (RFC 1035 section 4.2).
DNS_PORT: Final = 53


class Destination(NamedTuple):
    """A TCP destination in the cluster.

    ``address`` is an IPv4 or IPv6 address in its canonical text form (:func:`str` of :mod:`ipaddress`),
    so that equal addresses are equal strings; ``port`` is 1 to 65535.
    """

    address: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        """Whether ``address`` is an IPv6 address."""
        return ":" in self.address

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.is_ipv6 else f"{self.address}:{self.port}"


class Redirect(NamedTuple):
    """TCP from this machine to ``destination`` goes to ``local_port`` on ``local_address``.

    ``local_address`` is None for the loopback address of the destination's family (127.0.0.1, ::1), or, for an
    IPv4 destination, another address of 127.0.0.0/8: those serve when the ports of the first run short.
    """

    destination: Destination
    local_port: int
    local_address: str | None = None


class Wanted(NamedTuple):
    """One destination that a DNS answer is about to name, and so has to be captured before it leaves.

    ``name`` is what people know it by (``web.shop``); ``ttl`` is the answer's TTL in seconds: until it has
    passed, the asker may connect without asking again (RFC 1035 section 3.2.1).
    """

    name: str
    destination: Destination
    ttl: int
