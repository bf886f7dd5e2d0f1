"""The privileged helper with the kernel's nftables, in a network namespace of its own."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys

import pytest

from tests.integration.forward.kit import PATIENCE, Sockets, arrives, ruleset, running
from tp2.forward.protocol import CaptureDns, Exempt, Update
from tp2.sandbox.namespaces import Host
from tp2.types import Destination, Redirect

WEB = Destination("10.96.0.1", 80)
WEB6 = Destination("fd00:10:96::1", 80)


@pytest.mark.parametrize(("web", "loopback"), [(WEB, "127.0.0.1"), (WEB6, "::1")])
def test_a_connection_to_a_cluster_address_arrives_at_its_local_port(
    host: Host, sockets: Sockets, web: Destination, loopback: str
) -> None:
    first, second = sockets.listen(loopback, 20000), sockets.listen(loopback, 20001)
    with running(host) as helper:
        other = web._replace(port=81)
        helper.ask(Update((Redirect(web, 20000), Redirect(other, 20001)), ()))
        arrives(sockets.connect(web), first)
        arrives(sockets.connect(other), second)


def test_further_loopback_addresses_have_ports_of_their_own(host: Host, sockets: Sockets) -> None:
    first, second = sockets.listen("127.0.0.1", 20000), sockets.listen("127.83.0.7", 20000)
    other = Destination("10.96.0.2", 80)
    with running(host) as helper:
        helper.ask(Update((Redirect(WEB, 20000, "127.83.0.7"), Redirect(other, 20000)), ()))
        arrives(sockets.connect(WEB), second)
        arrives(sockets.connect(other), first)


@pytest.mark.parametrize(("web", "loopback"), [(WEB, "127.0.0.1"), (WEB6, "::1")])
def test_other_ports_and_addresses_are_left_alone(
    host: Host, sockets: Sockets, web: Destination, loopback: str
) -> None:
    sockets.listen(loopback, 20000)
    with running(host) as helper:
        helper.ask(Update((Redirect(web, 20000),), ()))
        for other in (web._replace(port=82), web._replace(address=f"{web.address[:-1]}2")):
            with pytest.raises(OSError, match=r"No route to host|Network is unreachable"):  # says the router
                sockets.connect(other)


def test_updates_are_idempotent_and_replace(host: Host, sockets: Sockets) -> None:
    for port in (20000, 20001, 20003):
        sockets.listen("127.0.0.1", port)
    sockets.listen("::1", 20002)
    with running(host) as helper:
        helper.ask(Update((Redirect(WEB, 20000), Redirect(WEB6, 20002)), ()))
        helper.ask(Update((Redirect(WEB, 20000),), (Destination("10.96.9.9", 1),)))
        assert "10.96.0.1 . 80 : 127.0.0.1 . 20000" in ruleset(host)
        assert "fd00:10:96::1 . 80 : 20002" in ruleset(host)
        helper.ask(Update((Redirect(WEB, 20001),), ()))
        assert "10.96.0.1 . 80 : 127.0.0.1 . 20001" in ruleset(host)
        helper.ask(Update((Redirect(WEB, 20003),), (WEB,)))
        assert "10.96.0.1 . 80 : 127.0.0.1 . 20003" in ruleset(host)
        helper.ask(Update((Redirect(WEB, 20001), Redirect(WEB, 20003)), (WEB, WEB)))
        assert "10.96.0.1 . 80 : 127.0.0.1 . 20003" in ruleset(host)
        helper.ask(Update((), (WEB, WEB6)))
        assert "10.96.0.1" not in ruleset(host)
        assert "fd00" not in ruleset(host)


# Drives the rules themselves, without the helper, for its figures: how long changes take, in seconds.
_COST = """
import sys, time
from tp2.forward.nftables import Nftables
from tp2.forward.rules import Inlet
from tp2.types import Destination, Redirect

def redirect(n):
    return Redirect(Destination(f"10.{n // 65536}.{n // 256 % 256}.{n % 256}", 80), 1024 + n % 60000)

rules = Nftables()
rules.open()
if sys.argv[1] == "containers":
    rules.containers([Inlet("br0", 30000, 30001)])
for live in (10, 10_000):
    rules.update([redirect(n) for n in range(live)], [])
    rules.cluster([redirect(n).destination.address for n in range(live)], [], None)
    for n in range(100_000, 100_150):
        began = time.perf_counter()
        rules.update([redirect(n)], [])
        rules.cluster([redirect(n).destination.address], [], None)
        print(live, time.perf_counter() - began)
    rules.update([], [redirect(n).destination for n in range(100_000, 100_150)])
    rules.cluster([], [redirect(n).destination.address for n in range(100_000, 100_150)], None)
rules.update([], [redirect(n).destination for n in range(10_000)])
print("left", len(rules._redirects), 0)
"""


@pytest.mark.parametrize("inlets", ["host", "containers"])
def test_ten_thousand_mappings_fit_one_transaction_and_a_new_one_costs_the_same(host: Host, inlets: str) -> None:
    lines = host.run(sys.executable, "-c", _COST, inlets, timeout=60).splitlines()
    assert lines.pop() == "left 0 0"
    cost: dict[str, list[float]] = {"10": [], "10000": []}
    for line in lines:
        live, seconds = line.split()
        cost[live].append(float(seconds))
    # The kernel's and the library's work is the same; a linear cost would be a hundred times it.
    assert statistics.median(cost["10000"]) < 5 * statistics.median(cost["10"]), cost


@pytest.mark.parametrize("end", ["end of file", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_however_the_helper_ends(host: Host, sockets: Sockets, end: str) -> None:
    before = ruleset(host)
    sockets.listen("127.0.0.1", 20000)
    for address in ("127.0.0.1", "::1"):
        sockets.listen(address, 5353)
        sockets.udp(address, 5353)
    with running(host) as helper:
        helper.ask(Update((Redirect(WEB, 20000),), ()))
        helper.ask(CaptureDns(("192.0.2.53", "fd00::53"), 5353))
        assert "owner" in ruleset(host)
        if end == "end of file":
            helper.channel.shutdown(socket.SHUT_WR)
            assert helper.process.wait(PATIENCE) == 0
        else:
            os.kill(helper.process.pid, signal.Signals[end])
            helper.process.wait(PATIENCE)
        assert ruleset(host) == before


def test_nobody_else_can_change_the_rules(host: Host) -> None:
    with running(host):
        assert subprocess.run([*host.command(), "nft", "flush", "ruleset"], check=False).returncode == 0
        assert "table inet tp2" in ruleset(host)


def test_a_second_helper_is_told_about_the_first(host: Host) -> None:
    with running(host), running(host) as second:
        assert b"another tp2 captures in this network namespace" in second.hello
        assert second.process.wait(PATIENCE) == 1


def test_a_foreign_table_of_the_same_name_is_left_alone(host: Host) -> None:
    host.run("nft", "add", "table", "inet", "tp2")
    with running(host) as helper:
        assert b"nft delete table inet tp2" in helper.hello
    assert "table inet tp2" in ruleset(host)


@pytest.mark.parametrize("line", [b"\n", b"nonsense\n", b'{"op":"reboot"}\n', b'{"op":"exempt"}\n'])
def test_words_outside_the_protocol_end_the_helper(host: Host, line: bytes) -> None:
    before = ruleset(host)
    with running(host) as helper:
        helper.channel.sendall(line)
        assert helper.process.wait(PATIENCE) == 2
        assert ruleset(host) == before


def test_by_hand_the_helper_does_nothing() -> None:
    done = subprocess.run([sys.executable, "-m", "tp2.forward.helper"], stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 2
    assert b"started by 'tp2 up'" in done.stderr


@pytest.mark.parametrize(("nameserver", "loopback"), [("192.0.2.53", "127.0.0.1"), ("2001:db8::53", "::1")])
def test_port_53_of_a_captured_nameserver_comes_to_us_but_our_own_queries_do_not(
    host: Host, sockets: Sockets, nameserver: str, loopback: str
) -> None:
    host.run("ip", "addr", "add", nameserver, "dev", "lo")
    real, ours = sockets.udp(nameserver, 53), sockets.udp(loopback, 5353)
    real_tcp, ours_tcp = sockets.listen(nameserver, 53), sockets.listen(loopback, 5353)
    is_ipv6 = ":" in nameserver

    def asked(server: socket.socket, asking: socket.socket | None = None) -> None:
        asking = asking or sockets.make(socket.SOCK_DGRAM, is_ipv6=is_ipv6)
        asking.sendto(b"?", (nameserver, 53))
        question, peer = server.recvfrom(10)
        server.sendto(b"!", peer)
        answer, source = asking.recvfrom(10)
        assert (question, answer, source[:2]) == (b"?", b"!", (nameserver, 53))

    with running(host) as helper:
        exempt = sockets.make(socket.SOCK_DGRAM, is_ipv6=is_ipv6)
        helper.ask(Exempt(), exempt.fileno())
        helper.ask(CaptureDns((nameserver,), 5353))
        asked(ours)
        arrives(sockets.connect(Destination(nameserver, 53)), ours_tcp)
        asked(real, exempt)
        helper.ask(CaptureDns((), 5353))
        asked(real)
        arrives(sockets.connect(Destination(nameserver, 53)), real_tcp)
