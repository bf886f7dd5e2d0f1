"""The addresses that this machine has, as the operating system tells them (getifaddrs(3))."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Interface, IPv6Interface
from typing import NamedTuple

import ifaddr


class Address(NamedTuple):
    """An address of ``interface``, with the length of its network's prefix."""

    interface: str
    address: IPv4Interface | IPv6Interface


def addresses() -> list[Address]:
    """Return all addresses of this machine, those of one interface in the order in which the kernel prefers them.

    :raises OSError: the operating system does not say.
    """
    found = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            # An IPv6 address comes with its flow information and scope (sockaddr_in6).
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            found.append(Address(adapter.name, ipaddress.ip_interface(f"{text}/{entry.network_prefix}")))
    return found
