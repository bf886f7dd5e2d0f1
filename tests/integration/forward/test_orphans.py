"""A captured connection whose own address the machine has lost is ended at once, and no other is."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.integration.forward.kit import running
from tp2.forward.protocol import EndOrphans, Update
from tp2.sandbox.namespaces import Host
from tp2.types import Destination, Redirect

# Listens on a port, and connects to it from an address and by way of a rule; says how that connection ends.
PAIR = """
import errno, socket, sys
source, destination, port, local = sys.argv[1:]
family = socket.AF_INET6 if ":" in destination else socket.AF_INET
listener = socket.socket(family)
listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", int(local)))
listener.listen()
print("listening", flush=True)
sys.stdin.readline()
client = socket.socket(family)
client.bind((source, 0))
client.connect((destination, int(port)))
accepted, _ = listener.accept()
print("connected", flush=True)
try:
    print(client.recv(1), flush=True)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
"""


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("laptop") as laptop, Host("router", laptop) as router:
        laptop.link("eth0", "192.0.2.10/24", router, "laptop", "192.0.2.1/24")
        laptop.shell("""
            ip addr add 192.0.2.11/24 dev eth0
            ip addr add 2001:db8::10/64 dev eth0 nodad
            ip route add default via 192.0.2.1
            ip -6 route add default dev eth0""")
        yield laptop


@pytest.mark.parametrize(
    ("source", "prefix", "destination", "other"),
    [("192.0.2.10", "24", "10.96.1.1", "192.0.2.11"), ("2001:db8::10", "64", "fd00::1", None)],
)
def test_a_connection_from_an_address_that_is_gone_is_ended(
    host: Host, source: str, prefix: str, destination: str, other: str | None
) -> None:
    def pair(source: str, local: int) -> subprocess.Popen[str]:
        process = host.start(
            *(sys.executable, "-c", PAIR, source, destination, str(local), str(local)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        return process

    with running(host) as helper:
        pairs = [pair(source, 20001)] + ([pair(other, 20002)] if other else [])
        ports = range(20001, 20001 + len(pairs))
        helper.ask(Update(tuple(Redirect(Destination(destination, port), port) for port in ports), ()))
        for process in pairs:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "connected\n"
        helper.ask(EndOrphans())
        assert [process.poll() for process in pairs] == [None] * len(pairs)
        host.shell(f"ip addr del {source}/{prefix} dev eth0")
        helper.ask(EndOrphans())
        first = pairs[0].stdout
        assert first is not None
        assert first.readline() == f"{errno.errorcode[errno.ECONNABORTED]}\n"
        assert [process.poll() for process in pairs[1:]] == [None] * (len(pairs) - 1)
        for process in pairs[1:]:
            process.kill()
