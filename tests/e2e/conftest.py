"""A sandbox for each test module, and tp2 run in it as a person would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tp2.sandbox.box import ENDPOINT_POD, Sandbox, tp2_command

CLIENTS = Path(__file__).parent / "clients"

#: Seconds after which something that should happen soon has not happened.
PATIENCE = 20.0


@dataclass
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


class Laptop:
    """The person's machine: commands of theirs, and a running tp2."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.host = box.laptop
        self.installed = False

    def stop_endpoint(self) -> None:
        """Kill the SSH endpoint that is in use, with all its connections."""
        if self.installed:
            self.box.stop_endpoint(ENDPOINT_POD)
        else:
            self.box.stop_sshd()

    def start_endpoint(self) -> None:
        """Start it again."""
        if self.installed:
            self.box.start_endpoint(ENDPOINT_POD)
        else:
            self.box.start_sshd()

    def run(self, *arguments: str, stdin: str = "", timeout: float = 60.0) -> Ended:
        """Run a command to its end."""
        done = subprocess.run(
            [*self.host.command(), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self.box.environment,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def tp2(self, *arguments: str) -> Ended:
        """Run a tp2 command to its end."""
        return self.run(*tp2_command(*arguments))

    def curl(self, *arguments: str) -> str:
        """Fetch something; it has to work."""
        done = self.run("curl", "--silent", "--show-error", "--fail", "--max-time", "30", *arguments)
        assert done.code == 0, done.stderr
        return done.stdout

    def python(self, client: str, *arguments: str, timeout: float = 60.0) -> str:
        """Run one of the clients beside this file; it has to work."""
        done = self.run(sys.executable, str(CLIENTS / f"{client}.py"), *arguments, timeout=timeout)
        assert done.code == 0, done.stderr
        return done.stdout

    def lookup(self, name: str, kind: str = "A", *options: str) -> list[str]:
        """Ask the machine's nameserver; return the records' values."""
        done = self.run("dig", "+short", "+tries=1", *options, name, kind)
        assert done.code == 0, done.stdout
        return done.stdout.split()

    def rcode(self, name: str, kind: str = "A") -> str:
        """Ask the machine's nameserver; return the response code."""
        done = self.run("dig", "+tries=1", name, kind)
        assert "status: " in done.stdout, done.stdout
        return done.stdout.partition("status: ")[2].partition(",")[0]

    def status(self) -> dict[str, Any]:
        """``tp2 status --json``."""
        answer: dict[str, Any] = json.loads(self.tp2("status", "--json").stdout)
        return answer

    def mappings(self) -> list[dict[str, Any]]:
        """The rows of ``tp2 mappings --json``."""
        rows: list[dict[str, Any]] = json.loads(self.tp2("mappings", "--json").stdout)["mappings"]
        return rows

    def ruleset(self) -> str:
        """All of nftables."""
        return self.host.run("nft", "list", "ruleset")


class Up:
    """A ``tp2 up`` in the foreground.

    :param installed: whether it uses the endpoint that is installed in the cluster, and is told none.
    """

    def __init__(self, laptop: Laptop, *options: str, installed: bool = False) -> None:
        self.process = laptop.host.start(
            *laptop.box.up_command(*options, installed=installed),
            env=laptop.box.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.stages: list[str] = []
        for line in self.process.stdout:
            self.stages.append(line.rstrip())
            if line.startswith("ready"):
                return
        raise AssertionError(f"tp2 up ended with {self.process.wait()} after {self.stages}")

    def stop(self) -> int:
        """End it as Ctrl-C does, unless it has ended; return the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(PATIENCE)


def give_ipv6(box: Sandbox) -> None:
    """Connect the laptop to the internet by IPv6 as well; it has no way to the cluster's addresses, as with IPv4."""
    box.laptop.shell("ip -6 addr replace 2001:db8:2::10/64 dev eth0 nodad")
    box.internet.shell("""
        ip -6 addr replace 2001:db8:2::1/64 dev laptop nodad
        echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
        ip -6 route replace unreachable fd00::/8""")
    box.laptop.shell("ip -6 route replace default via 2001:db8:2::1")


def eventually(holds: Callable[[], bool], within: float = PATIENCE) -> float:
    """Wait until *holds*, and fail if it never does. For what gives an outsider no event.

    Returns the seconds after which the first attempt that succeeded began: whoever tried later would have succeeded
    too. How long an attempt itself takes, on a busy machine, does not count.
    """
    began = time.monotonic()
    while True:
        attempt = time.monotonic()
        if holds():
            return attempt - began
        assert time.monotonic() - began < within, f"not true after {within} s: {holds}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """A sandbox of the module's own."""
    if os.geteuid() != 0 and not Path("/proc/self/ns/user").exists():
        pytest.skip("needs root or user namespaces")
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def laptop(box: Sandbox) -> Laptop:
    """The laptop, with nothing running on it."""
    return Laptop(box)


@pytest.fixture
def up(laptop: Laptop) -> Iterator[Callable[..., Up]]:
    """Brings tp2 up, with options; what a failed test leaves running is killed."""
    started: list[Up] = []

    def start(*options: str, installed: bool = False) -> Up:
        started.append(Up(laptop, *options, installed=installed))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            laptop.host.kill(*laptop.host.family(one.process.pid))
            one.process.wait()


@pytest.fixture(scope="module")
def connected(laptop: Laptop) -> Iterator[Laptop]:
    """The laptop with tp2 up, for the tests of a module to share; it is still up after each."""
    up = Up(laptop)
    yield laptop
    assert up.process.poll() is None, "tp2 did not survive the tests"
    assert up.stop() == 0
