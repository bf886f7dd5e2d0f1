"""The privileged helper with the kernel's nftables, in a network namespace of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tp2.forward import protocol
from tp2.forward.protocol import CaptureDns, Exempt, Request, Update
from tp2.sandbox.namespaces import Host
from tp2.types import Destination, Redirect

WEB = Destination("10.96.0.1", 80)
WEB6 = Destination("fd00:10:96::1", 80)


class Helper:
    """A helper in a namespace, spoken to as the daemon does, but without an event loop."""

    def __init__(self, host: Host) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(20)
        with theirs:
            command = [*host.command(), sys.executable, "-I", "-m", "tp2.forward.helper"]
            self.process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno())
        self.lines = self.channel.makefile("rb")
        self.hello = self.lines.readline()

    def ask(self, request: Request, *descriptors: int) -> None:
        line = protocol.encode_request(request)
        if descriptors:
            socket.send_fds(self.channel, [line], list(descriptors))
        else:
            self.channel.sendall(line)
        protocol.decode_reply(self.lines.readline())

    def close(self) -> None:
        self.lines.close()
        self.channel.close()
        self.process.wait(20)


@contextmanager
def running(host: Host) -> Iterator[Helper]:
    helper = Helper(host)
    try:
        yield helper
    finally:
        helper.close()


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("laptop") as laptop, Host("router", laptop) as router:
        laptop.link("eth0", "192.0.2.10/24", router, "laptop", "192.0.2.1/24")
        laptop.shell("ip route add default via 192.0.2.1")
        router.shell("""
            echo 1 >/proc/sys/net/ipv4/ip_forward
            ip route add unreachable 10.0.0.0/8""")
        yield laptop


def ruleset(host: Host) -> str:
    return host.run("nft", "list", "ruleset")


SERVE = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(sys.argv[2].encode())
    connection.close()
"""

FETCH = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 1) as connection:
        print(connection.recv(100).decode(), end="")
except OSError as error:
    print(type(error).__name__, end="")
"""


def serve(host: Host, port: int, word: str) -> None:
    process = host.start(sys.executable, "-c", SERVE, str(port), word, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


def fetch(host: Host, destination: Destination) -> str:
    return host.run(sys.executable, "-c", FETCH, destination.address, str(destination.port))


def test_a_connection_to_a_cluster_address_arrives_at_its_local_port(host: Host) -> None:
    serve(host, 20000, "first")
    serve(host, 20001, "second")
    with running(host) as helper:
        helper.ask(Update((Redirect(WEB, 20000), Redirect(Destination(WEB.address, 81), 20001)), ()))
        assert fetch(host, WEB) == "first"
        assert fetch(host, Destination(WEB.address, 81)) == "second"


def test_other_ports_and_addresses_are_left_alone(host: Host) -> None:
    serve(host, 20000, "first")
    with running(host) as helper:
        helper.ask(Update((Redirect(WEB, 20000),), ()))
        assert fetch(host, Destination(WEB.address, 82)) == "OSError"  # no route to host, says the router
        assert fetch(host, Destination("10.96.0.2", 80)) == "OSError"  # no route to host, says the router


def test_updates_are_idempotent_and_replace(host: Host) -> None:
    with running(host) as helper:
        helper.ask(Update((Redirect(WEB, 20000), Redirect(WEB6, 20002)), ()))
        helper.ask(Update((Redirect(WEB, 20000),), (Destination("10.96.9.9", 1),)))
        assert "10.96.0.1 . 80 : 20000" in ruleset(host)
        assert "fd00:10:96::1 . 80 : 20002" in ruleset(host)
        helper.ask(Update((Redirect(WEB, 20001),), ()))
        assert "10.96.0.1 . 80 : 20001" in ruleset(host)
        helper.ask(Update((Redirect(WEB, 20003),), (WEB,)))
        assert "10.96.0.1 . 80 : 20003" in ruleset(host)
        helper.ask(Update((), (WEB, WEB6)))
        assert "10.96.0.1" not in ruleset(host)
        assert "fd00" not in ruleset(host)


def test_ten_thousand_mappings_fit_one_transaction(host: Host) -> None:
    many = tuple(Redirect(Destination(f"10.{n // 256}.{n % 256}.1", 80), 20000 + n) for n in range(10_000))
    with running(host) as helper:
        helper.ask(Update(many, ()))
        assert ruleset(host).count(" . 80 : ") == 10_000
        helper.ask(Update((), tuple(redirect.destination for redirect in many)))
        assert " . 80 : " not in ruleset(host)


@pytest.mark.parametrize("end", ["end of file", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_however_the_helper_ends(host: Host, end: str) -> None:
    before = ruleset(host)
    with running(host) as helper:
        helper.ask(Update((Redirect(WEB, 20000),), ()))
        helper.ask(CaptureDns(("192.0.2.53", "fd00::53"), 5353))
        assert "owner" in ruleset(host)
        if end == "end of file":
            helper.channel.shutdown(socket.SHUT_WR)
            assert helper.process.wait(20) == 0
        else:
            os.kill(helper.process.pid, signal.Signals[end])
            helper.process.wait(20)
        assert ruleset(host) == before


def test_nobody_else_can_change_the_rules(host: Host) -> None:
    with running(host):
        assert subprocess.run([*host.command(), "nft", "flush", "ruleset"], check=False).returncode == 0
        assert "table inet tp2" in ruleset(host)


def test_a_second_helper_is_told_about_the_first(host: Host) -> None:
    with running(host), running(host) as second:
        assert b"another tp2 captures in this network namespace" in second.hello
        assert second.process.wait(20) == 1


def test_a_foreign_table_of_the_same_name_is_left_alone(host: Host) -> None:
    host.run("nft", "add", "table", "inet", "tp2")
    with running(host) as helper:
        assert b"nft delete table inet tp2" in helper.hello
    assert "table inet tp2" in ruleset(host)


def test_without_the_privilege_the_helper_says_so(host: Host) -> None:
    command = [*host.command(), "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [*command, sys.executable, "-I", "-m", "tp2.forward.helper"], stdin=theirs.fileno(), stdout=theirs.fileno()
        )
        theirs.close()
        with ours.makefile("rb") as lines:
            line = lines.readline()
        assert b"grant CAP_NET_ADMIN" in line
        assert process.wait(20) == 1


@pytest.mark.parametrize("line", [b"\n", b"nonsense\n", b'{"op":"reboot"}\n', b'{"op":"exempt"}\n'])
def test_words_outside_the_protocol_end_the_helper(host: Host, line: bytes) -> None:
    before = ruleset(host)
    with running(host) as helper:
        helper.channel.sendall(line)
        assert helper.process.wait(20) == 2
        assert ruleset(host) == before


def test_by_hand_the_helper_does_nothing() -> None:
    done = subprocess.run([sys.executable, "-m", "tp2.forward.helper"], stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 2
    assert b"started by 'tp2 up'" in done.stderr


DNS_SERVE = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    data, peer = server.recvfrom(4096)
    server.sendto(sys.argv[3].encode(), peer)
"""

# Asks over a socket that its parent made in the namespace: descriptor 0.
ASK = """
import socket, sys
sock = socket.socket(fileno=0)
sock.settimeout(5)
sock.sendto(b"?", ("192.0.2.53", 53))
print(sock.recv(100).decode(), end="")
"""


# Makes a socket, and hands it to its parent over descriptor 0.
MAKE = """
import socket
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
socket.send_fds(socket.socket(fileno=0), [b"!"], [made.fileno()])
"""


def test_port_53_of_a_captured_nameserver_comes_to_us_but_our_own_queries_do_not(host: Host) -> None:
    host.run("ip", "addr", "add", "192.0.2.53/32", "dev", "lo")
    for address, port, word in (("192.0.2.53", 53, "real"), ("127.0.0.1", 5353, "tp2")):
        process = host.start(sys.executable, "-c", DNS_SERVE, address, str(port), word, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    # A socket belongs to the namespace in which it was made.

    def in_host() -> socket.socket:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            subprocess.run([*host.command(), sys.executable, "-c", MAKE], stdin=theirs.fileno(), check=True)
            _, descriptors, _, _ = socket.recv_fds(ours, 10, 1)
        return socket.socket(fileno=descriptors[0])

    def ask(sock: socket.socket) -> str:
        done = subprocess.run(
            [*host.command(), sys.executable, "-c", ASK],
            stdin=sock.fileno(),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    with running(host) as helper, in_host() as plain, in_host() as exempt:
        helper.ask(CaptureDns(("192.0.2.53",), 5353))
        helper.ask(Exempt(), exempt.fileno())
        assert ask(plain) == "tp2"
        assert ask(exempt) == "real"
        helper.ask(CaptureDns((), 5353))
        with in_host() as fresh:
            assert ask(fresh) == "real"
