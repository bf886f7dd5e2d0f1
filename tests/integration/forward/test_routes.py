"""Which networks a machine is connected to, as its kernel tells."""

from __future__ import annotations

import sys

from tp2.sandbox.namespaces import Host

_ASK = "from tp2.forward.routes import connected_networks; print(*connected_networks())"


def test_connected_networks_are_those_of_the_machines_own_addresses(host: Host) -> None:
    def ask() -> list[str]:
        return host.run(sys.executable, "-c", _ASK).split()

    assert ask() == ["192.0.2.0/24", "2001:db8::/64"]
    host.shell("""
        ip link add br0 type bridge
        ip addr add 172.17.0.1/16 dev br0
        ip addr add 172.18.0.7/32 dev br0
        ip link set br0 up
        ip link add wg0 type bridge
        ip addr add 10.8.0.2/24 dev wg0
        ip link set wg0 up
        ip route add 10.0.0.0/8 dev wg0
        ip route add 172.30.0.0/16 via 192.0.2.1""")
    assert ask() == ["10.8.0.0/24", "172.17.0.0/16", "192.0.2.0/24", "2001:db8::/64"]
    host.run("ip", "link", "set", "wg0", "down")
    assert ask() == ["172.17.0.0/16", "192.0.2.0/24", "2001:db8::/64"]
