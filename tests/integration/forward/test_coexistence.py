"""Beside Docker's rules, a firewall, a VPN's routes and another tp2: everybody goes on, and is left as they were."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.forward.kit import PATIENCE, Sockets, arrives, network, ruleset, running
from tp2.forward.protocol import CaptureDns, Cluster, Containers, Update
from tp2.forward.rules import Inlet
from tp2.sandbox.namespaces import Host
from tp2.types import Destination, Redirect

WEB = Destination("10.96.0.1", 80)
WEB6 = Destination("fd00:10:96::1", 80)
UNMAPPED = Destination("10.96.0.2", 80)
TCP, DNS = 31000, 31001

# What dockerd sets through iptables-nft, with one published port (8080).
DOCKER = """
table ip nat {
    chain DOCKER {
        iifname "docker0" counter return
        iifname != "docker0" tcp dport 8080 counter dnat to 172.17.0.2:80
    }
    chain PREROUTING {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump DOCKER
    }
    chain OUTPUT {
        type nat hook output priority -100; policy accept;
        ip daddr != 127.0.0.0/8 fib daddr type local counter jump DOCKER
    }
    chain POSTROUTING {
        type nat hook postrouting priority srcnat; policy accept;
        oifname != "docker0" ip saddr 172.17.0.0/16 counter masquerade
    }
}
table ip filter {
    chain DOCKER {
        iifname != "docker0" oifname "docker0" ip daddr 172.17.0.2 tcp dport 80 counter accept
    }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        oifname "docker0" ct state related,established counter accept
        oifname "docker0" counter jump DOCKER
        iifname "docker0" oifname != "docker0" counter accept
    }
}
"""

# What firewalld sets: everything that comes in is dropped, but what belongs to it, the loopback, and trusted zones.
FIREWALL = """
table inet firewalld {
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
    chain filter_OUTPUT {
        type filter hook output priority filter + 10; policy accept;
        ct state { established, related } accept
        oifname "lo" accept
    }
}
"""

# One that knows nothing of redirected packets.
STRICT = """
table ip filter {
    chain INPUT {
        type filter hook input priority filter; policy drop;
        iifname "lo" accept
        ct state established,related accept
    }
}
"""


class Place:
    """A laptop with Docker on it, a container, and a LAN."""

    def __init__(self, laptop: Host, of_laptop: Sockets, of_container: Sockets, of_lan: Sockets) -> None:
        self.laptop = laptop
        self.of_laptop = of_laptop
        self.of_container = of_container
        self.of_lan = of_lan


@pytest.fixture
def place(host: Host, router: Host) -> Iterator[Place]:
    with Host("container", host) as container:
        host.shell("""
            echo 1 >/proc/sys/net/ipv4/ip_forward
            ip link add docker0 type bridge
            ip addr add 172.17.0.1/16 dev docker0
            ip link set docker0 up""")
        host.link("vethc", "169.254.9.1/30", container, "eth0", "172.17.0.2/16")
        host.shell("""
            ip addr flush dev vethc
            ip link set vethc master docker0""")
        container.run("ip", "route", "add", "default", "via", "172.17.0.1")
        host.run("nft", "-f", "-", stdin=DOCKER)
        with Sockets(host) as of_laptop, Sockets(container) as of_container, Sockets(router) as of_lan:
            yield Place(host, of_laptop, of_container, of_lan)


def without_counters(found: dict[str, str]) -> dict[str, str]:
    """Return *found* without what counts packets, which go on flowing."""
    words = found["rules"].split()
    numbers = {place + 1 for place, word in enumerate(words) if word in ("packets", "bytes")}
    return {**found, "rules": " ".join(word for place, word in enumerate(words) if place not in numbers)}


@pytest.mark.parametrize("firewall", ["", FIREWALL], ids=["Docker", "Docker and firewalld"])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_docker_and_a_firewall_go_on_and_are_left_as_they_were(
    place: Place, router: Host, firewall: str, end: signal.Signals
) -> None:
    place.laptop.run("nft", "-f", "-", stdin=firewall)
    before = without_counters(network(place.laptop))
    mapped, inlet = place.of_laptop.listen("127.0.0.1", 20000), place.of_laptop.listen("172.17.0.1", TCP)
    for address, port in (("172.17.0.1", DNS), ("127.0.0.1", 5353)):
        place.of_laptop.listen(address, port)
        place.of_laptop.udp(address, port)
    published = place.of_container.listen("172.17.0.2", 80)
    outside = place.of_lan.listen("192.0.2.1", 7000)

    def dockers_own() -> None:
        # A published port, from the LAN and from the host; a container's way out, masqueraded.
        arrives(place.of_lan.connect(Destination("192.0.2.10", 8080)), published)
        place.of_laptop.connect(Destination("192.0.2.10", 8080))
        published.accept()
        place.of_container.connect(Destination("192.0.2.1", 7000))
        _, peer = outside.accept()
        assert peer[0] == "192.0.2.10"

    dockers_own()
    with running(place.laptop) as helper:
        helper.ask(CaptureDns(("192.0.2.53",), 5353))
        helper.ask(Cluster((WEB.address, UNMAPPED.address), (), None))
        helper.ask(Containers((Inlet("docker0", TCP, DNS),)))
        helper.ask(Update((Redirect(WEB, 20000),), ()))
        arrives(place.of_laptop.connect(WEB), mapped)
        arrives(place.of_container.connect(WEB), inlet)
        for sockets in (place.of_laptop, place.of_container):
            refused = sockets.make(socket.SOCK_STREAM)
            assert refused.connect_ex(tuple(UNMAPPED)) == errno.ECONNREFUSED
        dockers_own()
        os.kill(helper.process.pid, end)
        helper.process.wait(PATIENCE)
    dockers_own()
    assert without_counters(network(place.laptop)) == before


def test_a_firewall_that_lets_in_nothing_from_the_bridge_has_the_last_word(place: Place) -> None:
    # Redirected packets come in like others. The host's own come by the loopback, which everybody lets in.
    place.laptop.run("nft", "-f", "-", stdin=STRICT)
    mapped = place.of_laptop.listen("127.0.0.1", 20000)
    place.of_laptop.listen("172.17.0.1", TCP)
    place.of_laptop.listen("172.17.0.1", DNS)
    place.of_laptop.udp("172.17.0.1", DNS)
    with running(place.laptop) as helper:
        helper.ask(Containers((Inlet("docker0", TCP, DNS),)))
        helper.ask(Update((Redirect(WEB, 20000),), ()))
        arrives(place.of_laptop.connect(WEB), mapped)
        with pytest.raises(TimeoutError):
            place.of_container.connect(WEB, timeout=0.5)


# As wg-quick sets them for a tunnel that takes everything: a routing table for all but the tunnel's own packets, and
# rules that let nothing reach the tunnel's address but what came through it or from this machine's own addresses.
WG_QUICK = """
    ip link add wg0 type bridge
    ip addr add 10.8.0.2/24 dev wg0
    ip -6 addr add fd00:8::2/64 dev wg0 nodad
    ip link set wg0 up
    ip route add 10.0.0.0/8 dev wg0
    ip route add default dev wg0 table 51820
    ip rule add not fwmark 51820 table 51820
    ip rule add table main suppress_prefixlength 0
    ip -6 route add default dev wg0 table 51820
    ip -6 rule add not fwmark 51820 table 51820
    ip -6 rule add table main suppress_prefixlength 0
    nft add table ip wg-quick-wg0
    nft add table ip6 wg-quick-wg0
    nft 'add chain ip wg-quick-wg0 preraw { type filter hook prerouting priority -300; }'
    nft 'add chain ip6 wg-quick-wg0 preraw { type filter hook prerouting priority -300; }'
    nft 'add rule ip wg-quick-wg0 preraw iifname != "wg0" ip daddr 10.8.0.2 fib saddr type != local drop'
    nft 'add rule ip6 wg-quick-wg0 preraw iifname != "wg0" ip6 daddr fd00:8::2 fib saddr type != local drop'
"""


@pytest.mark.parametrize(
    ("web", "nameserver", "loopback", "source"),
    [(WEB, "198.51.100.53", "127.0.0.1", "10.8.0.2"), (WEB6, "2001:db8:53::53", "::1", "fd00:8::2")],
    ids=["ipv4", "ipv6"],
)
def test_a_vpn_that_takes_everything_goes_on_and_so_do_we(
    host: Host, sockets: Sockets, web: Destination, nameserver: str, loopback: str, source: str
) -> None:
    host.shell(WG_QUICK)
    before = network(host)
    listener, server = sockets.listen(loopback, 20000), sockets.udp(loopback, 5353)
    sockets.listen(loopback, 5353)
    unmapped = web._replace(address=f"{web.address[:-1]}2")
    with running(host) as helper:
        helper.ask(Update((Redirect(web, 20000),), ()))
        connection = sockets.connect(web)
        assert connection.getsockname()[0] == source
        accepted = arrives(connection, listener)
        much = os.urandom(1 << 20)
        with ThreadPoolExecutor() as pool:
            for sender, receiver in ((connection, accepted), (accepted, connection)):
                sending = pool.submit(sender.sendall, much)
                assert receiver.makefile("rb").read(len(much)) == much
                sending.result()
        helper.ask(Cluster((unmapped.address,), (), None))
        refused = sockets.make(socket.SOCK_STREAM, is_ipv6=web.is_ipv6)
        assert refused.connect_ex(tuple(unmapped)) == errno.ECONNREFUSED
        helper.ask(CaptureDns((nameserver,), 5353))
        asking = sockets.make(socket.SOCK_DGRAM, is_ipv6=web.is_ipv6)
        asking.sendto(b"?", (nameserver, 53))
        _, peer = server.recvfrom(10)
        server.sendto(b"!", peer)
        assert asking.recvfrom(10)[1][:2] == (nameserver, 53)
        assert network(host) | {"rules": ""} == before | {"rules": ""}
    assert network(host) == before


def test_two_tp2_in_two_namespaces_know_nothing_of_each_other(host: Host, router: Host, sockets: Sockets) -> None:
    with Sockets(router) as of_router, running(host) as one, running(router) as other:
        here, there = sockets.listen("127.0.0.1", 20000), of_router.listen("127.0.0.1", 20000)
        one.ask(Update((Redirect(WEB, 20000),), ()))
        other.ask(Update((Redirect(WEB, 20000),), ()))
        arrives(sockets.connect(WEB), here)
        # The router refuses the cluster's addresses by a route, which is before any rule.
        router.run("ip", "route", "replace", f"{WEB.address}/32", "via", "192.0.2.10")
        arrives(of_router.connect(WEB), there)
        other.close()
        arrives(sockets.connect(WEB), here)
        assert ruleset(router) == ""
