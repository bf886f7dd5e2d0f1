"""The real pf of a macOS or FreeBSD machine that may be changed: run as root, with TP2_LIVE_PF=1.

tp2's contributors have no such machine; .github/workflows/pf.yml has. Nothing but pytest, sh and tp2 has to be
installed. Cluster addresses are those of documentation networks (RFC 5737, RFC 3849), so that nothing is reached by
mistake; the machine needs a default route, since connect(2) fails without one before pf sees a packet.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.helper import Helper
from tp2.forward.pfrules import anchor_text
from tp2.forward.pfundo import DIRECTORY
from tp2.forward.platforms import MACOS, this_platform
from tp2.forward.protocol import CaptureDns, Cluster, Exempt, SteerDns, Update
from tp2.types import Destination, Redirect

pytestmark = pytest.mark.skipif(
    os.environ.get("TP2_LIVE_PF") != "1", reason="changes the machine's pf: set TP2_LIVE_PF=1, on macOS or FreeBSD"
)

PF = this_platform()
WEB = Destination("192.0.2.80", 80)
WEB6 = Destination("2001:db8::80", 80)
NAMESERVER = "192.0.2.53"
PATIENCE = 10.0


def pfctl(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/sbin/pfctl", *arguments], input=text, capture_output=True, text=True, check=False)


def anchor() -> str:
    """What tp2's anchor holds now."""
    return pfctl("-a", PF.anchor, "-s", "nat").stdout + pfctl("-a", PF.anchor, "-s", "rules").stdout


def pf_status() -> list[str]:
    """What has to be as before: whether pf is enabled, who has references, and the main ruleset."""
    enabled = "Status: Enabled" in pfctl("-s", "info").stdout
    references = pfctl("-s", "References").stdout if PF is MACOS else ""
    tokens = sorted(line.split()[2] for line in references.splitlines() if line[:1].isdigit())
    return [str(enabled), *tokens, pfctl("-s", "nat").stdout, pfctl("-s", "rules").stdout]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = pf_status()
    yield
    assert anchor().strip() == ""
    assert pf_status() == before


@contextmanager
def running() -> Iterator[Helper]:
    helper = Helper("pf")
    try:
        hello = helper.hello()
        assert b'"kind":"pf"' in hello, hello
        yield helper
    finally:
        helper.close()


@contextmanager
def listening(word: str, address: str = "127.0.0.1") -> Iterator[int]:
    """A server that greets with *word* and echoes one line; yields its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.sendall(word.encode())
                    threading.Thread(target=echo, args=(connection,), daemon=True).start()

        def echo(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.sendall(connection.recv(100))

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


@contextmanager
def answering(reply: bytes | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """A UDP server; yields its port, and the list of what has come."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        came: list[bytes] = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    data, peer = server.recvfrom(4096)
                    came.append(data)
                    server.sendto(b"tp2" if reply is None else _dns_answer(data, reply), peer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], came


def _dns_answer(query: bytes, address: bytes) -> bytes:
    """An answer (RFC 1035 section 4.1) to an A query; to any other, that there is none."""
    end = query.index(b"\0", 12) + 5
    is_a = query[end - 4 : end - 2] == b"\0\1"
    header = query[:2] + b"\x85\x80" + b"\0\1" + (b"\0\1" if is_a else b"\0\0") + b"\0\0\0\0"
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x05\0\4" + address
    return header + query[12:end] + (record if is_a else b"")


def fetch(destination: Destination, timeout: float = PATIENCE) -> str:
    with socket.create_connection(destination, timeout) as connection:
        return connection.recv(100).decode()


def ask(address: str, sock: socket.socket | None = None, timeout: float = PATIENCE) -> bytes:
    with sock or socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(timeout)
        asking.sendto(b"?", (address, 53))
        return asking.recv(100)


def test_pfctl_takes_every_text_that_tp2_writes() -> None:
    chance = random.Random(7)

    def port(lowest: int = 1) -> int:
        return chance.randint(lowest, 65535)

    def address() -> str:
        if chance.random() < 0.5:
            return f"10.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randint(1, 254)}"
        return socket.inet_ntop(socket.AF_INET6, b"\xfd" + chance.randbytes(15))

    for _ in range(40):
        redirects = {Destination(address(), port()): port(1024) for _ in range(chance.randrange(20))}
        text = anchor_text(
            [Redirect(destination, local) for destination, local in redirects.items()],
            chance.sample([address(), address(), "127.0.0.1", "::1"], chance.randrange(5)),
            port(1024),
            list({address() for _ in range(chance.randrange(5))}),
        )
        done = pfctl("-n", "-a", PF.anchor, "-o", "none", "-f", "-", text=text)
        assert done.returncode == 0, (text, done.stderr)


def test_pfctl_does_refuse_when_it_is_asked_not_to_load() -> None:
    text = anchor_text([Redirect(WEB, 20000)], [], 0, [])
    wrong = "".join(reversed(text.splitlines(keepends=True)))
    assert pfctl("-n", "-a", PF.anchor, "-o", "none", "-f", "-", text=wrong).returncode != 0


def test_a_connection_to_a_cluster_address_arrives_at_its_local_port() -> None:
    with running() as helper, listening("first") as first, listening("second") as second:
        helper.ask(Update((Redirect(WEB, first), Redirect(Destination(WEB.address, 81), second)), ()))
        assert fetch(WEB) == "first"
        assert fetch(Destination(WEB.address, 81)) == "second"
        # Whoever connects to the listener itself gets through too: no answer is rewritten.
        assert fetch(Destination("127.0.0.1", first)) == "first"


def test_ipv6_likewise() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((WEB6.address, 9))
        except OSError as error:
            pytest.skip(f"no IPv6 route: {error.strerror}")
    with running() as helper, listening("six", "::1") as port:
        helper.ask(Update((Redirect(WEB6, port),), ()))
        assert fetch(WEB6) == "six"


def test_an_open_connection_outlives_its_rule() -> None:
    with running() as helper, listening("first") as port:
        helper.ask(Update((Redirect(WEB, port),), ()))
        with socket.create_connection(WEB, PATIENCE) as connection:
            assert connection.recv(100) == b"first"
            helper.ask(Update((), (WEB,)))
            connection.sendall(b"still here")
            assert connection.recv(100) == b"still here"
        with pytest.raises(OSError):
            fetch(WEB, timeout=2.0)


def test_what_nothing_names_at_a_cluster_address_is_refused_at_once() -> None:
    with running() as helper, listening("first") as port:
        helper.ask(Update((Redirect(WEB, port),), ()))
        helper.ask(Cluster((WEB.address,), (), None))
        assert fetch(WEB) == "first"
        with pytest.raises(ConnectionRefusedError):
            fetch(Destination(WEB.address, 81))


@pytest.mark.parametrize("nameserver", [NAMESERVER, "127.0.0.1"])
def test_port_53_of_a_captured_nameserver_comes_to_us_but_our_own_queries_do_not(nameserver: str) -> None:
    with running() as helper, answering() as (port, came):
        helper.ask(CaptureDns((nameserver,), port))
        assert ask(nameserver) == b"tp2"
        assert came == [b"?"]
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        helper.ask(Exempt(), own.fileno())
        with pytest.raises(OSError):
            ask(nameserver, own, timeout=2.0)
        assert came == [b"?"]


@pytest.mark.skipif(sys.platform != "darwin", reason="only macOS has /etc/resolver")
def test_names_below_a_steered_domain_are_asked_of_us() -> None:
    with running() as helper, answering(socket.inet_aton(WEB.address)) as (port, came):
        helper.ask(SteerDns(("tp2-live.test",), (), port))
        found = socket.getaddrinfo("web.tp2-live.test", 80, socket.AF_INET, socket.SOCK_STREAM)
        assert found[0][4] == WEB
        assert came
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("web.tp2-live.test", 80, socket.AF_INET, socket.SOCK_STREAM)


def wait_for_guardian() -> None:
    """Return when no guardian is there any more: it holds a lock for as long as it has something to do."""
    with (DIRECTORY / "guardian").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def test_when_the_helper_is_killed_its_guardian_takes_the_rules_away() -> None:
    with running() as helper:
        helper.ask(Update((Redirect(WEB, 20000),), ()))
        assert WEB.address in anchor()
        os.kill(helper.process.pid, signal.SIGKILL)
        helper.process.wait(PATIENCE)
        wait_for_guardian()
        assert anchor().strip() == ""


def test_when_both_are_killed_the_next_start_sweeps() -> None:
    with running() as helper:
        helper.ask(Update((Redirect(WEB, 20000),), ()))
        found = subprocess.run(["pgrep", "-P", str(helper.process.pid)], capture_output=True, text=True, check=True)
        [guardian] = found.stdout.split()
        for pid in (int(guardian), helper.process.pid):
            os.kill(pid, signal.SIGKILL)
        helper.process.wait(PATIENCE)
    assert WEB.address in anchor()
    with running():
        assert anchor().strip() == ""
