"""Captured addresses without a route, in namespaces that are offline, wholly or for IPv6."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.integration.forward.kit import PATIENCE, Helper, Sockets, arrives, network, running
from tp2.forward import protocol
from tp2.forward.protocol import CaptureDns, Cluster, Refused, Update
from tp2.forward.stopgap import DEVICE, SOURCE6
from tp2.sandbox.namespaces import Host
from tp2.types import Destination, Redirect

WEB = Destination("10.96.0.1", 80)
WEB6 = Destination("fd00:10:96::1", 80)

families = pytest.mark.parametrize(("web", "loopback"), [(WEB, "127.0.0.1"), (WEB6, "::1")], ids=["ipv4", "ipv6"])


@pytest.fixture
def offline() -> Iterator[Host]:
    """A host that has nothing but its loopback interface."""
    with Host("island") as island:
        yield island


@pytest.fixture
def there(offline: Host) -> Iterator[Sockets]:
    with Sockets(offline) as made:
        for loopback in ("127.0.0.1", "::1"):
            made.listen(loopback, 20001)
        yield made


def routes(host: Host) -> str:
    """Return the stopgap routes of *host*, once the helper has seen what happened until now."""
    return host.run("ip", "route", "show", "dev", DEVICE, check=False) + host.run(
        "ip", "-6", "route", "show", "dev", DEVICE, check=False
    )


def has_seen(helper: Helper) -> None:
    """Return when *helper* has seen every change of the network until now: notifications go before requests."""
    helper.ask(Refused())


@families
def test_offline_a_captured_address_is_reached_all_the_same(
    offline: Host, there: Sockets, web: Destination, loopback: str
) -> None:
    listener = there.listen(loopback, 20000)
    with pytest.raises(OSError, match="Network is unreachable"):
        there.connect(web)
    with running(offline) as helper:
        helper.ask(Update((Redirect(web, 20000),), ()))
        connection = there.connect(web)
        accepted = arrives(connection, listener)
        assert connection.getsockname()[0] == (SOURCE6 if web.is_ipv6 else loopback)
        connection.sendall(b"there")
        assert accepted.recv(10) == b"there"
        accepted.sendall(b"and back")
        assert connection.recv(10) == b"and back"
        # Other ports of it have no route as ever, and neither has any other address.
        for other in (web._replace(port=81), web._replace(address=f"{web.address[:-1]}2")):
            with pytest.raises(OSError, match=r"Network is unreachable|No route to host"):
                there.connect(other)
        helper.ask(Update((), (web,)))
        with pytest.raises(OSError, match="Network is unreachable"):
            there.connect(web)


def test_a_link_local_address_is_not_what_a_captured_connection_comes_from(offline: Host, there: Sockets) -> None:
    """As on a network that has IPv4 only: nobody could answer such an address from ::1."""
    offline.shell("ip link add eth0 type veth peer name other; ip link set eth0 up; ip link set other up")
    offline.shell("until ip -6 addr show dev eth0 scope link -tentative | grep -q fe80; do sleep 0.05; done")
    listener = there.listen("::1", 20000)
    with running(offline) as helper:
        helper.ask(Update((Redirect(WEB6, 20000),), ()))
        connection = there.connect(WEB6)
        accepted = arrives(connection, listener)
        connection.sendall(b"there")
        assert accepted.recv(10) == b"there"
        accepted.sendall(b"and back")
        assert connection.recv(10) == b"and back"


def test_an_address_that_the_machine_has_is_taken_before_the_stopgaps(offline: Host, there: Sockets) -> None:
    offline.shell("""
        ip link add eth0 type veth peer name other
        ip link set eth0 up
        ip link set other up
        ip -6 addr add 2001:db8::10/64 dev eth0 nodad""")
    listener = there.listen("::1", 20000)
    with running(offline) as helper:
        helper.ask(Update((Redirect(WEB6, 20000),), ()))
        connection = there.connect(WEB6)
        arrives(connection, listener)
        assert connection.getsockname()[0] == "2001:db8::10"


@families
def test_offline_a_captured_nameserver_is_reached_all_the_same(
    offline: Host, there: Sockets, web: Destination, loopback: str
) -> None:
    server = there.udp(loopback, 20001)
    with running(offline) as helper:
        helper.ask(CaptureDns((web.address,), 20001))
        asking = there.make(socket.SOCK_DGRAM, is_ipv6=web.is_ipv6)
        asking.connect((web.address, 53))
        asking.send(b"?")
        _, peer = server.recvfrom(10)
        server.sendto(b"!", peer)
        assert asking.recv(10) == b"!"


@pytest.mark.parametrize("end", ["end of file", "SIGTERM", "SIGKILL"])
def test_routes_and_device_are_gone_however_the_helper_ends(offline: Host, there: Sockets, end: str) -> None:
    before = network(offline)
    with running(offline) as helper:
        helper.ask(Update((Redirect(WEB, 20001), Redirect(WEB6, 20001)), ()))
        assert "10.96.0.1" in routes(offline)
        assert "fd00:10:96::1" in routes(offline)
        if end == "end of file":
            helper.channel.shutdown(socket.SHUT_WR)
        else:
            os.kill(helper.process.pid, signal.Signals[end])
        helper.process.wait(PATIENCE)
        assert network(offline) == before


def test_killed_in_the_middle_of_its_work_the_helper_leaves_nothing(offline: Host, there: Sockets) -> None:
    before = network(offline)
    changes = [
        protocol.encode_request(request)
        for n in range(1, 40)
        for request in (
            Update((Redirect(Destination(f"10.96.1.{n}", 80), 20001), Redirect(WEB6._replace(port=n), 20001)), ()),
            Cluster((f"10.97.1.{n}", f"fd00:97::{n:x}"), (), 20001 if n % 2 else None),
            Update((), (Destination(f"10.96.1.{n - 1}", 80),)),
        )
    ]
    for answered in (0, 1, 2, 5, 11, 40, 90):
        with running(offline) as helper:
            helper.channel.sendall(b"".join(changes))
            for _ in range(answered):
                assert helper.lines.readline() == protocol.encode_reply()
            # Whatever it is doing now: the requests that follow are there already.
            os.kill(helper.process.pid, signal.SIGKILL)
            helper.process.wait(PATIENCE)
            assert network(offline) == before


def test_nothing_else_is_sent_into_the_device(offline: Host, there: Sockets) -> None:
    with running(offline) as helper:
        helper.ask(Update((Redirect(WEB, 20001), Redirect(WEB6, 20001)), ()))
        for web in (WEB, WEB6):
            asking = there.make(socket.SOCK_DGRAM, is_ipv6=web.is_ipv6)
            asking.connect((web.address, 53))
            with pytest.raises(OSError, match=r"not permitted|unreachable|No route"):  # at once
                for _ in range(2):
                    asking.send(b"?")
        assert "TX:  bytes packets" in (statistics := offline.run("ip", "-s", "link", "show", DEVICE))
        assert statistics.split()[-6:-4] == ["0", "0"]


def test_with_origdst_every_address_of_the_cluster_has_a_route(offline: Host, there: Sockets) -> None:
    with running(offline) as helper:
        helper.ask(Cluster((WEB.address, WEB6.address), (), None))
        # What is refused needs none.
        assert routes(offline) == ""
        helper.ask(Cluster((), (), 20001))
        assert "10.96.0.1" in routes(offline)
        assert "fd00:10:96::1" in routes(offline)
        helper.ask(Update((Redirect(WEB, 20001),), ()))
        helper.ask(Cluster((), (WEB.address, WEB6.address), 20001))
        # It is captured for another reason too.
        assert "10.96.0.1" in routes(offline)
        assert "fd00" not in routes(offline)
        helper.ask(Update((), (WEB,)))
        assert routes(offline) == ""


def test_where_everything_has_a_route_there_is_no_device(host: Host, sockets: Sockets) -> None:
    sockets.listen("127.0.0.1", 20000)
    sockets.listen("::1", 20000)
    before = network(host)
    with running(host) as helper:
        helper.ask(Update((Redirect(WEB, 20000), Redirect(WEB6, 20000)), ()))
        assert network(host) | {"rules": ""} == before | {"rules": ""}


def test_only_the_family_without_a_route_gets_stopgaps(host: Host, sockets: Sockets) -> None:
    listener = sockets.listen("::1", 20000)
    sockets.listen("127.0.0.1", 20000)
    host.run("ip", "-6", "route", "del", "default")
    with running(host) as helper:
        helper.ask(Update((Redirect(WEB, 20000), Redirect(WEB6, 20000)), ()))
        assert "10.96.0.1" not in routes(host)
        arrives(sockets.connect(WEB6), listener)


@pytest.mark.parametrize("destination", ["default", "fd00:10:96::/48"], ids=["default route", "VPN"])
def test_a_stopgap_goes_when_there_is_another_way_and_comes_back_after_it(
    host: Host, sockets: Sockets, destination: str
) -> None:
    listener = sockets.listen("::1", 20000)
    other = Destination("fd00:20:96::1", 80)
    host.run("ip", "-6", "route", "del", "default")
    with running(host) as helper:
        helper.ask(Update((Redirect(WEB6, 20000), Redirect(other, 20000)), ()))
        assert WEB6.address in routes(host)
        host.run("ip", "-6", "route", "add", destination, "via", "2001:db8::1")
        has_seen(helper)
        assert WEB6.address not in routes(host)
        assert (other.address in routes(host)) is (destination != "default")
        arrives(sockets.connect(WEB6), listener)
        host.run("ip", "-6", "route", "del", destination, "via", "2001:db8::1")
        has_seen(helper)
        assert WEB6.address in routes(host)
        assert other.address in routes(host)
        arrives(sockets.connect(WEB6), listener)


def test_when_the_network_goes_away_stopgaps_take_its_place(host: Host, sockets: Sockets) -> None:
    listeners = {web: sockets.listen(loopback, 20000) for web, loopback in ((WEB, "127.0.0.1"), (WEB6, "::1"))}
    with running(host) as helper:
        helper.ask(Update((Redirect(WEB, 20000), Redirect(WEB6, 20000)), ()))
        host.run("ip", "link", "set", "eth0", "down")
        has_seen(helper)
        for web, listener in listeners.items():
            arrives(sockets.connect(web), listener)


def test_a_route_that_says_unreachable_is_somebodys_wish(offline: Host, there: Sockets) -> None:
    offline.run("ip", "route", "add", "unreachable", "10.96.0.0/16")
    with running(offline) as helper:
        helper.ask(Update((Redirect(WEB, 20001),), ()))
        asking = there.make(socket.SOCK_STREAM)
        assert asking.connect_ex(tuple(WEB)) == errno.EHOSTUNREACH
        assert routes(offline) == ""


def test_without_the_tun_driver_everything_else_works(offline: Host, there: Sockets) -> None:
    offline.run("mount", "-t", "tmpfs", "tmpfs", "/dev/net")
    offline.run("ip", "route", "add", "10.96.0.1/32", "dev", "lo", "src", "127.0.0.1")
    listener = there.listen("127.0.0.1", 20000)
    with running(offline) as helper:
        lack = protocol.decode_reply(helper.hello)["lack"]
        assert lack == "/dev/net/tun cannot be opened: No such file or directory"
        helper.ask(Update((Redirect(WEB, 20000), Redirect(WEB6, 20001)), ()))
        arrives(there.connect(WEB), listener)


def test_a_device_that_cannot_be_made_is_no_reason_to_fail(offline: Host, there: Sockets) -> None:
    offline.run("ip", "link", "add", DEVICE, "type", "bridge")
    offline.run("ip", "route", "add", "10.96.0.1/32", "dev", "lo", "src", "127.0.0.1")
    before = network(offline)
    listener = there.listen("127.0.0.1", 20000)
    with running(offline) as helper:
        helper.ask(Update((Redirect(WEB6, 20001), Redirect(WEB, 20000)), ()))
        arrives(there.connect(WEB), listener)
    assert network(offline) == before
