"""Hosts for the tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.forward.kit import Sockets
from tp2.sandbox.namespaces import Host


@pytest.fixture
def network_of_two() -> Iterator[tuple[Host, Host]]:
    """A laptop, and the router behind which everything else is."""
    with Host("laptop") as laptop, Host("router", laptop) as router:
        laptop.link("eth0", "192.0.2.10/24", router, "laptop", "192.0.2.1/24")
        laptop.shell("""
            ip -6 addr add 2001:db8::10/64 dev eth0 nodad
            ip route add default via 192.0.2.1
            ip -6 route add default via 2001:db8::1""")
        router.shell("""
            ip -6 addr add 2001:db8::1/64 dev laptop nodad
            echo 1 >/proc/sys/net/ipv4/ip_forward
            echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
            ip route add unreachable 10.0.0.0/8
            ip -6 route add unreachable fd00::/8""")
        yield laptop, router


@pytest.fixture
def host(network_of_two: tuple[Host, Host]) -> Host:
    """A laptop behind a router that knows no way to the cluster's addresses."""
    return network_of_two[0]


@pytest.fixture
def router(network_of_two: tuple[Host, Host]) -> Host:
    """The laptop's router."""
    return network_of_two[1]


@pytest.fixture
def sockets(host: Host) -> Iterator[Sockets]:
    """Sockets of the laptop."""
    with Sockets(host) as made:
        yield made
