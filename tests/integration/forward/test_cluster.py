"""The cluster's addresses as a whole, in the kernel: redirected on any port (origdst), or refused at once (portmap)."""

from __future__ import annotations

import errno
import socket
import sys
import time

import pytest

from tests.integration.forward.kit import Sockets, arrives, original_destination, ruleset, running
from tp2.errors import ForwarderError
from tp2.forward.nftables_table import REFUSED_SIZE
from tp2.forward.protocol import Cluster, Exempt, Update
from tp2.sandbox.namespaces import Host
from tp2.types import Destination, Redirect

WEB = Destination("10.96.0.1", 80)

families = pytest.mark.parametrize(
    ("address", "loopback"), [("10.96.0.1", "127.0.0.1"), ("fd00:10:96::1", "::1")], ids=["ipv4", "ipv6"]
)


def outcome(sockets: Sockets, destination: Destination) -> int:
    """Return the error number that connecting to *destination* comes to, or 0."""
    try:
        sockets.connect(destination).close()
    except OSError as error:
        return error.errno or -1
    return 0


@families
def test_any_port_of_a_cluster_address_arrives_and_says_where_it_was_going(
    host: Host, sockets: Sockets, address: str, loopback: str
) -> None:
    listener = sockets.listen(loopback, 20000)
    with running(host) as helper:
        helper.ask(Cluster((address,), (), 20000))
        for port in (80, 443, 65535):
            destination = Destination(address, port)
            assert original_destination(arrives(sockets.connect(destination), listener)) == destination
        helper.ask(Cluster((), (address,), 20000))
        assert outcome(sockets, Destination(address, 80)) in (errno.EHOSTUNREACH, errno.ENETUNREACH)


@families
def test_a_redirect_goes_before_the_cluster_as_a_whole(
    host: Host, sockets: Sockets, address: str, loopback: str
) -> None:
    of_all, of_one = sockets.listen(loopback, 20000), sockets.listen(loopback, 20001)
    with running(host) as helper:
        helper.ask(Cluster((address,), (), 20000))
        helper.ask(Update((Redirect(Destination(address, 80), 20001),), ()))
        arrives(sockets.connect(Destination(address, 80)), of_one)
        arrives(sockets.connect(Destination(address, 81)), of_all)


@families
def test_without_a_mapping_a_connection_is_refused_at_once_and_counted(
    host: Host, sockets: Sockets, address: str, loopback: str
) -> None:
    listener = sockets.listen(loopback, 20000)
    with running(host) as helper:
        helper.ask(Cluster((address,), (), None))
        helper.ask(Update((Redirect(Destination(address, 80), 20000),), ()))
        began = time.monotonic()
        for _ in range(3):
            assert outcome(sockets, Destination(address, 81)) == errno.ECONNREFUSED
        assert outcome(sockets, Destination(address, 443)) == errno.ECONNREFUSED
        # The kernel would repeat an unanswered SYN after a second.
        assert time.monotonic() - began < 0.9
        arrives(sockets.connect(Destination(address, 80)), listener)
        assert helper.refused() == {Destination(address, 81): 3, Destination(address, 443): 1}
        assert helper.refused() == {}
        assert outcome(sockets, Destination(address, 81)) == errno.ECONNREFUSED
        assert helper.refused() == {Destination(address, 81): 1}


def test_both_families_are_counted_together(host: Host, sockets: Sockets) -> None:
    with running(host) as helper:
        both = Destination("10.96.0.1", 81), Destination("fd00:10:96::1", 81)
        helper.ask(Cluster(tuple(destination.address for destination in both), (), None))
        for destination in both:
            assert outcome(sockets, destination) == errno.ECONNREFUSED
        assert helper.refused() == dict.fromkeys(both, 1)


# Connects to the ports 1 to N of an address and prints what came of it, each kind once.
_KNOCK = """
import errno, socket, sys
outcomes = set()
for port in range(1, int(sys.argv[2]) + 1):
    with socket.socket() as knocking:
        knocking.settimeout(20)
        outcomes.add(errno.errorcode[knocking.connect_ex((sys.argv[1], port))])
print(*outcomes)
"""


def test_more_destinations_than_are_counted_are_refused_all_the_same(host: Host) -> None:
    with running(host) as helper:
        helper.ask(Cluster(("10.96.0.1",), (), None))
        beyond = str(REFUSED_SIZE + 200)
        assert host.run(sys.executable, "-c", _KNOCK, "10.96.0.1", beyond, timeout=60) == "ECONNREFUSED\n"
        assert 0 < len(helper.refused()) <= REFUSED_SIZE
        # Having been told makes room.
        assert host.run(sys.executable, "-c", _KNOCK, "10.96.0.1", "3") == "ECONNREFUSED\n"
        assert len(helper.refused()) == 3


def test_only_new_connections_are_refused(host: Host, router: Host, sockets: Sockets) -> None:
    # One that was there before tp2, through a VPN say, goes on.
    router.run("ip", "addr", "add", "10.96.0.1/32", "dev", "lo")
    with Sockets(router) as of_router, running(host) as helper:
        server = of_router.listen(*WEB)
        before = sockets.connect(WEB)
        accepted = arrives(before, server)
        helper.ask(Cluster((WEB.address,), (), None))
        before.sendall(b"still there")
        assert accepted.recv(100) == b"still there"
        assert outcome(sockets, WEB) == errno.ECONNREFUSED
        assert helper.refused() == {WEB: 1}


def test_an_address_of_this_machine_is_never_captured(host: Host, sockets: Sockets) -> None:
    here = Destination("10.96.0.9", 8080)
    host.run("ip", "addr", "add", f"{here.address}/32", "dev", "eth0")
    own = sockets.listen(*here)
    sockets.listen("127.0.0.1", 20000)
    with running(host) as helper:
        helper.ask(Update((Redirect(here, 20000),), ()))
        arrives(sockets.connect(here), own)
        helper.ask(Update((), (here,)))
        for port in (20000, None):
            helper.ask(Cluster((here.address,), (), port))
            arrives(sockets.connect(here), own)


def test_tp2s_own_sockets_are_not_refused(host: Host, sockets: Sockets) -> None:
    with running(host) as helper:
        helper.ask(Cluster(("10.96.0.1",), (), None))
        own = sockets.make(socket.SOCK_STREAM)
        helper.ask(Exempt(), own.fileno())
        assert own.connect_ex(("10.96.0.1", 80)) == errno.EHOSTUNREACH  # says the router


def test_other_protocols_and_addresses_are_left_alone(host: Host, router: Host, sockets: Sockets) -> None:
    with running(host) as helper:
        helper.ask(Cluster(("10.96.0.1",), (), None))
        assert outcome(sockets, Destination("10.96.0.2", 80)) == errno.EHOSTUNREACH  # says the router
        router.run("ip", "addr", "add", "10.96.0.1/32", "dev", "lo")
        with Sockets(router) as of_router:
            server = of_router.udp("10.96.0.1", 53)
            asking = sockets.make(socket.SOCK_DGRAM)
            asking.sendto(b"?", ("10.96.0.1", 53))
            assert server.recv(10) == b"?"


def test_addresses_come_and_go_as_differences_and_the_mode_can_change(host: Host, sockets: Sockets) -> None:
    sockets.listen("127.0.0.1", 20000)
    sockets.listen("127.0.0.1", 20001)
    with running(host) as helper:
        helper.ask(Cluster(("10.96.0.1", "10.96.0.2", "10.96.0.1"), (), None))
        helper.ask(Cluster(("10.96.0.3", "10.96.0.2"), ("10.96.0.1", "10.96.0.9"), None))
        assert "elements = { 10.96.0.2, 10.96.0.3 }" in ruleset(host)
        assert "reject with tcp reset" in ruleset(host)
        helper.ask(Cluster((), (), 20000))
        assert "reject with tcp reset" not in ruleset(host)
        assert "redirect to :20000" in ruleset(host)
        helper.ask(Cluster(("10.96.0.3",), ("10.96.0.3", "10.96.0.2"), 20001))
        assert "redirect to :20000" not in ruleset(host)
        assert "redirect to :20001" in ruleset(host)
        assert "elements = { 10.96.0.3 }" in ruleset(host)
        before = ruleset(host)
        helper.ask(Cluster(("10.96.0.3",), ("10.96.0.2",), 20001))
        assert ruleset(host) == before
        helper.ask(Cluster((), ("10.96.0.3",), None))
        assert "10.96.0" not in ruleset(host)


def test_a_refused_change_changes_nothing(host: Host, sockets: Sockets) -> None:
    listener = sockets.listen("127.0.0.1", 20000)
    with running(host) as helper:
        helper.ask(Cluster(("10.96.0.1",), (), 20000))
        before = ruleset(host)
        with pytest.raises(ForwarderError, match="nobody listens there"):
            helper.ask(Cluster(("10.96.0.2",), ("10.96.0.1",), 20001))
        assert ruleset(host) == before
        arrives(sockets.connect(Destination("10.96.0.1", 80)), listener)


def test_thirty_thousand_addresses_fit_one_transaction(host: Host, sockets: Sockets) -> None:
    many = tuple(f"10.{n // 65536}.{n // 256 % 256}.{n % 256}" for n in range(30_000))
    with running(host) as helper:
        helper.ask(Cluster(many, (), None))
        assert outcome(sockets, Destination(many[-1], 80)) == errno.ECONNREFUSED
        helper.ask(Cluster((), many, None))
        assert outcome(sockets, Destination(many[-1], 80)) == errno.EHOSTUNREACH  # says the router
