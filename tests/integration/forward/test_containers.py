"""Containers on a bridge, and a host on the LAN: what they reach of tp2, and what they must not."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.forward.kit import (
    Helper,
    Sockets,
    arrives,
    original_destination,
    ruleset,
    running,
)
from tp2.errors import ForwarderError
from tp2.forward.protocol import CaptureDns, Cluster, Containers, Update
from tp2.forward.rules import Inlet
from tp2.sandbox.namespaces import Host
from tp2.types import Destination, Redirect

WEB = Destination("10.96.0.1", 80)
WEB6 = Destination("fd00:10:96::1", 80)
BRIDGE = "172.17.0.1"
BRIDGE6 = "fd00:172:17::1"
NAMESERVER = "192.0.2.53"
NAMESERVER6 = "2001:db8::53"
TCP, DNS = 31000, 31001

#: Seconds in which a connection is not made that must not be made; nothing tells of a packet that was dropped.
IN_VAIN = 0.5

families = pytest.mark.parametrize("web", [WEB, WEB6], ids=["ipv4", "ipv6"])


@dataclass
class Place:
    """A laptop with a bridge, a container on it, and sockets of both and of the router on the LAN."""

    laptop: Host
    container: Host
    of_laptop: Sockets
    of_container: Sockets
    of_lan: Sockets
    inlet: socket.socket
    dns: socket.socket

    def capture(self, helper: Helper) -> None:
        """Redirect two services, capture the DNS, and let the container in."""
        for address in ("127.0.0.1", "::1"):
            self.of_laptop.listen(address, 20000)
            self.of_laptop.listen(address, 5353)
            self.of_laptop.udp(address, 5353)
        helper.ask(CaptureDns((NAMESERVER, NAMESERVER6), 5353))
        helper.ask(Update((Redirect(WEB, 20000), Redirect(WEB6, 20000)), ()))
        helper.ask(Containers((Inlet("br0", TCP, DNS),)))


@pytest.fixture
def place(host: Host, router: Host) -> Iterator[Place]:
    with Host("container", host) as container:
        host.shell(f"""
            echo 1 >/proc/sys/net/ipv4/ip_forward
            echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
            ip link add br0 type bridge
            ip addr add {BRIDGE}/16 dev br0
            ip -6 addr add {BRIDGE6}/64 dev br0 nodad
            ip link set br0 up""")
        host.link("vethc", "169.254.9.1/30", container, "eth0", "172.17.0.2/16")
        host.shell("""
            ip addr flush dev vethc
            ip link set vethc master br0""")
        container.shell(f"""
            ip -6 addr add fd00:172:17::2/64 dev eth0 nodad
            ip route add default via {BRIDGE}
            ip -6 route add default via {BRIDGE6}""")
        router.shell(f"""
            ip route add 172.17.0.0/16 via 192.0.2.10
            ip -6 route add {BRIDGE6}/64 via 2001:db8::10
            ip addr add {NAMESERVER}/32 dev lo
            ip -6 addr add {NAMESERVER6}/128 dev lo nodad""")
        with Sockets(host) as of_laptop, Sockets(container) as of_container, Sockets(router) as of_lan:
            inlet = of_laptop.listen("0.0.0.0", TCP, interface="br0")
            dns = of_laptop.udp("0.0.0.0", DNS, interface="br0")
            of_laptop.listen("0.0.0.0", DNS, interface="br0")
            yield Place(host, container, of_laptop, of_container, of_lan, inlet, dns)


def unreachable(sockets: Sockets, destination: Destination, kind: int = socket.SOCK_STREAM) -> bool:
    """Whether a connection to *destination* is not made, or a datagram not answered."""
    asking = sockets.make(kind, is_ipv6=destination.is_ipv6)
    asking.settimeout(IN_VAIN)
    try:
        asking.connect(tuple(destination))
        if kind == socket.SOCK_STREAM:
            return False
        asking.send(b"?")
        asking.recv(10)
    except OSError:
        return True
    return False


@families
def test_a_containers_connection_arrives_and_says_where_it_was_going(place: Place, web: Destination) -> None:
    inlet = place.of_laptop.listen("::", TCP, interface="br0") if web.is_ipv6 else place.inlet
    with running(place.laptop) as helper:
        place.capture(helper)
        connection = place.of_container.connect(web)
        accepted = arrives(connection, inlet)
        assert original_destination(accepted) == web
        connection.sendall(b"there")
        assert accepted.recv(10) == b"there"
        accepted.sendall(b"and back")
        assert connection.recv(10) == b"and back"


def test_a_listener_on_the_bridges_own_address_serves_as_well(place: Place) -> None:
    place.inlet.close()
    inlet = place.of_laptop.listen(BRIDGE, TCP)
    with running(place.laptop) as helper:
        place.capture(helper)
        arrives(place.of_container.connect(WEB), inlet)


def test_with_origdst_any_port_of_the_cluster_arrives_from_a_container(place: Place) -> None:
    with running(place.laptop) as helper:
        place.capture(helper)
        helper.ask(Cluster(("10.96.0.2",), (), 20000))
        there = Destination("10.96.0.2", 4711)
        assert original_destination(arrives(place.of_container.connect(there), place.inlet)) == there


def test_with_portmap_an_unmapped_port_is_refused_to_a_container_at_once(place: Place) -> None:
    with running(place.laptop) as helper:
        place.capture(helper)
        helper.ask(Cluster((WEB.address, WEB6.address), (), None))
        for web in (WEB, WEB6):
            asking = place.of_container.make(socket.SOCK_STREAM, is_ipv6=web.is_ipv6)
            assert asking.connect_ex((web.address, 81)) == errno.ECONNREFUSED
        assert helper.refused() == {WEB._replace(port=81): 1, WEB6._replace(port=81): 1}


@pytest.mark.parametrize("nameserver", [NAMESERVER, NAMESERVER6])
def test_a_containers_queries_come_to_us(place: Place, nameserver: str) -> None:
    is_ipv6 = ":" in nameserver
    dns = place.of_laptop.udp("::", DNS, interface="br0") if is_ipv6 else place.dns
    with running(place.laptop) as helper:
        place.capture(helper)
        asking = place.of_container.make(socket.SOCK_DGRAM, is_ipv6=is_ipv6)
        asking.connect((nameserver, 53))
        asking.send(b"?")
        question, peer = dns.recvfrom(10)
        assert question == b"?"
        dns.sendto(b"!", peer)
        assert asking.recv(10) == b"!"


# Docker's embedded DNS server: it listens in the container, and asks the nameserver in turn. Its arguments are the
# nameserver and two sockets, from whichever namespaces.
_EMBEDDED = """
import socket, sys
inside, outside = (socket.socket(fileno=int(descriptor)) for descriptor in sys.argv[2:])
inside.setblocking(True)
outside.setblocking(True)
while True:
    question, peer = inside.recvfrom(512)
    outside.sendto(question, (sys.argv[1], 53))
    inside.sendto(outside.recv(512), peer)
"""


@pytest.mark.parametrize("asks_from", ["the container", "the host"])
def test_dockers_embedded_dns_is_captured_by_what_it_asks_in_turn(place: Place, asks_from: str) -> None:
    place.container.shell("""
        nft add table ip docker
        nft 'add chain ip docker out { type nat hook output priority -100; }'
        nft add rule ip docker out ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:40053""")
    inside = place.of_container.udp("127.0.0.11", 40053)
    outside = (place.of_container if asks_from == "the container" else place.of_laptop).make(socket.SOCK_DGRAM)
    with running(place.laptop) as helper:
        place.capture(helper)
        answering = place.dns
        if asks_from == "the host":
            # From there its question takes the host's own way: to the DNS server on the loopback address.
            answering = place.of_laptop.udp("127.0.0.1", 5354)
            place.of_laptop.listen("127.0.0.1", 5354)
            helper.ask(CaptureDns((NAMESERVER,), 5354))
        descriptors = inside.fileno(), outside.fileno()
        embedded = subprocess.Popen(
            [sys.executable, "-I", "-c", _EMBEDDED, NAMESERVER, *map(str, descriptors)], pass_fds=descriptors
        )
        try:
            asking = place.of_container.make(socket.SOCK_DGRAM)
            asking.connect(("127.0.0.11", 53))
            asking.send(b"?")
            _, peer = answering.recvfrom(10)
            answering.sendto(b"!", peer)
            assert asking.recv(10) == b"!"
        finally:
            embedded.kill()
            embedded.wait()


def test_a_question_to_docker_on_the_host_itself_comes_to_us_before_docker_sees_it(place: Place) -> None:
    # As where a whole machine is a container: Docker's rules and ours are in the same namespace.
    place.laptop.shell("""
        nft add table ip nat
        nft 'add chain ip nat DOCKER_OUTPUT'
        nft 'add chain ip nat OUTPUT { type nat hook output priority -100; }'
        nft add rule ip nat OUTPUT ip daddr 127.0.0.11 jump DOCKER_OUTPUT
        nft add rule ip nat DOCKER_OUTPUT udp dport 53 dnat to 127.0.0.11:40053""")
    dockers = place.of_laptop.udp("127.0.0.11", 40053)
    ours = place.of_laptop.udp("127.0.0.1", 5353)
    place.of_laptop.listen("127.0.0.1", 5353)

    def ask() -> None:
        place.of_laptop.make(socket.SOCK_DGRAM).sendto(b"?", ("127.0.0.11", 53))

    ask()
    assert dockers.recv(10) == b"?"
    with running(place.laptop) as helper:
        helper.ask(CaptureDns(("127.0.0.11",), 5353))
        ask()
        assert ours.recv(10) == b"?"


@pytest.mark.parametrize("bound", [True, False], ids=["bound to the bridge", "on the bridge's address"])
def test_nobody_reaches_the_inlets_ports_by_naming_them(place: Place, bound: bool) -> None:
    if not bound:
        place.inlet.close()
        place.dns.close()
        place.inlet = place.of_laptop.listen(BRIDGE, TCP)
        place.dns = place.of_laptop.udp(BRIDGE, DNS)
    echo = Destination(BRIDGE, 32000)
    open_to_all = place.of_laptop.listen(*echo)
    with running(place.laptop) as helper:
        place.capture(helper)
        for who in (place.of_container, place.of_lan):
            assert unreachable(who, Destination(BRIDGE, TCP))
            assert unreachable(who, Destination(BRIDGE, DNS))
            assert unreachable(who, Destination("192.0.2.10", TCP))
            # What is not tp2's is reached as ever.
            arrives(who.connect(echo), open_to_all)
        place.dns.settimeout(IN_VAIN)
        for who in (place.of_container, place.of_lan):
            who.make(socket.SOCK_DGRAM).sendto(b"?", (BRIDGE, DNS))
            with pytest.raises(TimeoutError):
                place.dns.recv(10)
        # The way that is meant to be open is.
        arrives(place.of_container.connect(WEB), place.inlet)


def test_a_service_on_the_same_port_of_another_address_is_left_alone(place: Place) -> None:
    place.inlet.close()
    place.of_laptop.listen(BRIDGE, TCP)
    there = Destination("192.0.2.10", TCP)
    other = place.of_laptop.listen(*there)
    with running(place.laptop) as helper:
        place.capture(helper)
        arrives(place.of_lan.connect(there), other)
        arrives(place.of_laptop.connect(there), other)


def test_the_lan_is_not_captured_although_it_routes_through_this_machine(place: Place, router: Host) -> None:
    router.run("ip", "route", "replace", f"{WEB.address}/32", "via", "192.0.2.10")
    with running(place.laptop) as helper:
        place.capture(helper)
        assert unreachable(place.of_lan, WEB)


def test_loopback_ports_stay_closed_even_where_loopback_addresses_are_routed(place: Place, router: Host) -> None:
    # As kube-proxy and some Docker set-ups leave it (CVE-2020-8558).
    place.laptop.shell("echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet")
    for machine, gateway in ((router, "192.0.2.10"), (place.container, BRIDGE)):
        machine.shell(f"""
            echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
            ip addr del 127.0.0.1/8 dev lo
            ip route add 127.0.0.1/32 via {gateway}""")
    mapping = Destination("127.0.0.1", 20009)
    listener = place.of_laptop.listen(*mapping)
    for who in (place.of_lan, place.of_container):
        # Without tp2 it is as open as that: this test tests something.
        arrives(who.connect(mapping), listener)
    with running(place.laptop) as helper:
        place.capture(helper)
        for who in (place.of_lan, place.of_container):
            assert unreachable(who, mapping)
        arrives(place.of_laptop.connect(mapping), listener)
        arrives(place.of_container.connect(WEB), place.inlet)


def test_inlets_are_replaced_as_a_whole_and_mappings_follow(place: Place) -> None:
    with running(place.laptop) as helper:
        place.capture(helper)
        place.of_laptop.listen("0.0.0.0", TCP + 10, interface="br0")
        place.of_laptop.listen("0.0.0.0", DNS + 10, interface="br0")
        place.of_laptop.udp("0.0.0.0", DNS + 10, interface="br0")
        helper.ask(Containers((Inlet("br0", TCP + 10, DNS + 10),)))
        assert str(TCP) not in ruleset(place.laptop)
        later = Destination("10.96.0.5", 443)
        helper.ask(Update((Redirect(later, 20000),), (WEB,)))
        assert unreachable(place.of_container, WEB)
        place.of_container.connect(later).close()
        helper.ask(Containers(()))
        assert "br0" not in ruleset(place.laptop)
        assert unreachable(place.of_container, later)
        helper.ask(Update((Redirect(WEB, 20000),), (later,)))
        helper.ask(Containers((Inlet("br0", TCP, DNS),)))
        arrives(place.of_container.connect(WEB), place.inlet)
        assert unreachable(place.of_container, later)


@pytest.mark.parametrize(
    ("inlet", "why"),
    [
        (Inlet("br1", TCP, DNS), "there is no network interface br1"),
        (Inlet("br0", TCP + 1000, DNS), "nobody listens there"),
        (Inlet("br0", TCP, DNS + 1000), "nobody listens there"),
        (Inlet("eth0", TCP, DNS), "nobody listens there"),
    ],
)
def test_an_inlet_that_leads_nowhere_is_refused(place: Place, inlet: Inlet, why: str) -> None:
    with running(place.laptop) as helper:
        place.capture(helper)
        before = ruleset(place.laptop)
        with pytest.raises(ForwarderError, match=why):
            helper.ask(Containers((inlet,)))
        assert ruleset(place.laptop) == before
