"""Which of a cluster's addresses are left alone, and why. Pure.

A cluster chooses its addresses without asking this machine, and what it says is not to be trusted blindly. These are
never captured, whichever the cluster has; the first that applies is the reason that is told:

===================================== ==================================================================
addresses                             why
===================================== ==================================================================
loopback, link-local, multicast ...   no other machine has such addresses
of this machine                       who asks for them means this machine
that tp2 reaches the cluster by       its own connection would come back to it
in a network given with --exclude     the user said so
in a network that this machine is on  they are next door, and reached without a tunnel
IPv6, on a machine without it         nothing can be redirected to ::1
===================================== ==================================================================
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Final

Network = IPv4Network | IPv6Network

_NOBODYS: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/32", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"),
            # The mapped ones are IPv4 addresses in another form, which no catalog has a use for.
            *("::/128", "::1/128", "fe80::/10", "ff00::/8", "::ffff:0:0/96"),
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Exclusions:
    """What is excluded at one moment.

    :param networks: those of ``--exclude``.
    :param interfaces: this machine's addresses, with their networks.
    :param own_way: the addresses that tp2 itself connects to.
    :param ipv6: whether this machine has an IPv6 loopback address.
    """

    networks: tuple[Network, ...] = ()
    interfaces: frozenset[IPv4Interface | IPv6Interface] = frozenset()
    own_way: frozenset[str] = frozenset()
    ipv6: bool = True


class Borders:
    """The same, made ready to be asked about thousands of addresses."""

    def __init__(self, exclusions: Exclusions) -> None:
        self.exclusions = exclusions
        self._own_way = exclusions.own_way
        self._ipv6 = exclusions.ipv6
        # By IP version and prefix length: a lookup is one dictionary access for each length that occurs.
        self._early: dict[tuple[int, int], dict[int, str]] = {}
        self._late: dict[tuple[int, int], dict[int, str]] = {}
        _enter(self._early, _NOBODYS, "no other machine has such addresses")
        own = (ipaddress.ip_network(interface.ip) for interface in exclusions.interfaces)
        _enter(self._early, own, "that is this machine")
        for network in exclusions.networks:
            _enter(self._late, [network], f"--exclude {network} says so")
        for network in sorted({interface.network for interface in exclusions.interfaces}, key=str):
            _enter(self._late, [network], f"this machine is on that network ({network})")

    def why(self, address: str, *, own_way: bool = True) -> str | None:
        """Say why *address* is left alone; None if it is not.

        :param own_way: whether that tp2 itself connects to it is a reason.
        """
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return "that is no IP address"
        if "%" in address:
            return "no other machine has such addresses"
        version, number, bits = parsed.version, int(parsed), parsed.max_prefixlen
        reason = _look_up(self._early, version, number, bits)
        if reason is None and own_way and address in self._own_way:
            reason = "tp2 itself reaches the cluster that way"
        if reason is None:
            reason = _look_up(self._late, version, number, bits)
        if reason is None and version == 6 and not self._ipv6:
            reason = "this machine has no IPv6"
        return reason


def _enter(table: dict[tuple[int, int], dict[int, str]], networks: Iterable[Network], why: str) -> None:
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        prefixes = table.setdefault((network.version, shift), {})
        prefixes.setdefault(int(network.network_address) >> shift, why)


def _look_up(table: dict[tuple[int, int], dict[int, str]], version: int, number: int, bits: int) -> str | None:
    for (of, shift), prefixes in table.items():
        if of == version and (why := prefixes.get(number >> shift)) is not None:
            return why
    return None
