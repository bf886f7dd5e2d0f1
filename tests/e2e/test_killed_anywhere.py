"""However early, late or often tp2 is killed, the machine is as before: SIGKILL at random moments of its life.

Which moments follows from a seed, which a failure names: TP2_SEED repeats it, as far as a clock repeats anything.
TP2_KILLS is how many rounds there are of each way to capture.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.pfctl import Double
from tests.e2e.conftest import Laptop, Up, eventually
from tests.e2e.mac import PF, pf_of_a_mac, resolver_of_a_mac
from tests.e2e.test_no_garbage import processes_of_tp2, runtime_files
from tp2.forward.pfctl import PROGRAM
from tp2.runtime import RuntimeDirectory
from tp2.sandbox.box import tp2_command
from tp2.sandbox.objects import service

ROUNDS = int(os.environ.get("TP2_KILLS", "6"))
SEED = int(os.environ.get("TP2_SEED") or random.SystemRandom().getrandbits(32))

#: The ways in which it can capture, as options.
WAYS = {"portmap": ("--mode", "portmap"), "origdst": ("--mode", "origdst"), "pf": PF}

#: What a killed tp2 cannot take away, and the next one does.
REMAINS = {"control.sock", "lock", "tp2.log"}

# All that tp2 might change: rules, links, addresses, routes, who listens, and the files that name nameservers.
_LOOK = """
nft list ruleset
ip -o link
ip -o addr
for family in -4 -6; do
    ip $family rule
    ip $family route show table all
done
ss -Hlntu
ss -Hlnx
cat /etc/resolv.conf /etc/hosts /etc/nsswitch.conf
find /etc -newer "$1" ! -type d
ls -R /run
grep -rs . /proc/sys/net/ipv4/conf/ /proc/sys/net/ipv4/ip_forward || true
"""


@dataclass(frozen=True)
class Kill:
    """One way to die."""

    #: Of its life: start, run or stop.
    when: str
    #: Which part of that time has passed.
    part: float
    #: Who is killed, one after the other.
    victims: tuple[str, ...]
    #: How it is told to stop.
    how: str
    detached: bool


def kills(rounds: int, seed: int) -> list[Kill]:
    """Return the ways to die: all times of life and all victims with each other, as evenly as the number allows."""
    draw = random.Random(seed)
    victims = [("daemon",), ("helper",), ("daemon", "helper"), ("helper", "daemon")]
    found: list[Kill] = []
    while len(found) < rounds:
        # A start is the longest, and the most happens in it.
        every = [(when, who) for when in ("start", "start", "run", "stop") for who in victims]
        draw.shuffle(every)
        for when, who in every:
            found.append(Kill(when, draw.random(), who, draw.choice(["down", "SIGTERM"]), draw.random() < 0.25))
    return found[:rounds]


def state(laptop: Laptop, since: Path, pf: Double | None) -> list[str]:
    """Everything that has to be as before."""
    rules = [f"pf: {key} {value}" for key, value in pf.state.items() if key != "next_token"] if pf else []
    look = laptop.host.run("sh", "-c", _LOOK, "sh", str(since)).splitlines()
    return [*look, *rules, *processes_of_tp2(laptop)]


def pids(laptop: Laptop) -> dict[str, list[int]]:
    """The processes of tp2's two parts: those that 'tp2 up' has by now, and no other."""
    found: dict[str, list[int]] = {"daemon": [], "helper": []}
    for pid, words in laptop.host.commands().items():
        if b"tp2.forward.helper" in words:
            found["helper"].append(pid)
        elif b"tp2" in words and b"up" in words:
            found["daemon"].append(pid)
    return found


class Life:
    """A 'tp2 up' whose words are kept in a file, since whoever reads them must not be part of what is measured."""

    def __init__(self, laptop: Laptop, way: tuple[str, ...], kill: Kill) -> None:
        self.laptop = laptop
        self.words = laptop.box.directory / "words"
        options = [*way, *(["--detach"] if kill.detached else [])]
        with self.words.open("wb") as words:
            self.process: subprocess.Popen[Any] = laptop.host.start(
                *laptop.box.up_command(*options),
                env=laptop.box.environment,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
            )

    def tell(self, how: str) -> list[subprocess.Popen[Any]]:
        """Tell it to stop; return who waits for that."""
        if how == "SIGTERM":
            for pid in pids(self.laptop)["daemon"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            return []
        with self.words.open("ab") as words:
            command = tp2_command("down")
            return [self.laptop.host.start(*command, env=self.laptop.box.environment, stdout=words, stderr=words)]

    def said(self) -> str:
        return self.words.read_text()

    def strike(self, victim: str) -> None:
        """Kill the *victim*: as soon as there is one, unless tp2 has ended without."""

        def struck() -> bool:
            found = pids(self.laptop)
            self.laptop.host.kill(*found[victim])
            ended = self.process.poll() is not None and not found["daemon"]
            # One that goes to the background is several processes for a while.
            return ended or bool(victim == "helper" and found["helper"])

        eventually(struck)

    def wait_until_ready(self) -> None:
        eventually(lambda: "\nready" in self.said() or self.process.poll() not in (None, 0))
        assert "\nready" in self.said(), self.said()


def live_and_die(laptop: Laptop, way: tuple[str, ...], kill: Kill, start_takes: float) -> str:
    """Start tp2, let it live as long as *kill* says, and kill it; return what it said."""
    life = Life(laptop, way, kill)
    clients: list[subprocess.Popen[Any]] = []
    told: list[subprocess.Popen[Any]] = []
    if kill.when == "start":
        wait = kill.part * 1.1 * start_takes
    else:
        life.wait_until_ready()
        # They are looked up and connected to while it is killed. To the second there is no route but tp2's own.
        names = ("http://web.shop/", "http://six.shop/", "http://web.blog/", "http://api.shop:8080/")
        clients.append(laptop.host.start("curl", "--silent", "--max-time", "5", *names, stdout=subprocess.DEVNULL))
        wait = kill.part * 0.4
    if kill.when == "stop":
        told = life.tell(kill.how)
    # The moment itself is what is drawn: there is no event to wait for.
    time.sleep(wait)
    for victim in kill.victims:
        life.strike(victim)
    for client in clients:
        client.kill()
    for process in (*clients, *told):
        process.wait(30)
    code = life.process.wait(30)
    if kill.victims == ("helper",) and kill.when == "run":
        # A daemon that captures nothing any more says so, and ends; detached, it was ready before.
        assert code == (0 if kill.detached else 6), life.said()
    assert code in (0, 5, 6, 130, -signal.SIGKILL, 255 & -signal.SIGKILL), (code, life.said())
    return life.said()


@pytest.fixture(scope="module")
def busy(laptop: Laptop) -> Laptop:
    """The laptop with rules of somebody else's, which outlive everything too, and a service without a route."""
    laptop.box.create(service("shop", "six", "fd00:10:96::6", {"http": 80}))
    laptop.host.run("nft", "add table ip theirs; add chain ip theirs out { type nat hook output priority -100; }")
    # The machine's own link-local address takes a second to become usable (RFC 4862 section 5.4).
    eventually(lambda: "tentative" not in laptop.host.run("ip", "-o", "addr"))
    return laptop


@pytest.fixture
def pf(way: str, busy: Laptop, tmp_path: Path) -> Iterator[Double | None]:
    """The pf of a Mac, if that is the way."""
    if way != "pf":
        yield None
    elif PROGRAM.exists():
        pytest.skip("this machine has a pf of its own, which is not to be touched")
    else:
        with pf_of_a_mac(tmp_path / "machine") as machine, resolver_of_a_mac(busy):
            # The locks in the directory of its records stay, which the first start makes.
            assert Up(busy, *PF).stop() == 0
            yield machine


@pytest.mark.timeout(60 + 10 * ROUNDS)
@pytest.mark.parametrize("way", list(WAYS))
def test_wherever_tp2_is_killed_the_machine_is_as_before(
    busy: Laptop, up: Callable[..., Up], way: str, pf: Double | None
) -> None:
    box, options = busy.box, WAYS[way]
    since = box.directory / "began"
    since.touch()
    runtime = RuntimeDirectory(Path(box.environment["TP2_RUNTIME_DIR"]))
    before = now = state(busy, since, pf)
    began = time.monotonic()
    first = up(*options)
    start_takes = time.monotonic() - began
    busy.lookup("six.shop", "AAAA")
    assert state(busy, since, pf) != before
    assert first.stop() == 0

    def is_as_before() -> bool:
        nonlocal now
        now = state(busy, since, pf)
        return now == before and runtime.holder() is None

    for number, kill in enumerate(kills(ROUNDS, SEED + list(WAYS).index(way))):
        which = f"round {number} of TP2_SEED={SEED}, {way}: {kill}"
        said = live_and_die(busy, options, kill, start_takes)
        assert "Traceback" not in said, f"{which}\n{said}"
        try:
            eventually(is_as_before, within=10)
        except AssertionError:
            changed = sorted(set(before) ^ set(now))
            pytest.fail(f"{which}\nheld by {runtime.holder()}; changed: {changed}\n{said}")
        assert set(runtime_files(busy)) <= REMAINS, which

    last = up(*options)
    assert busy.curl("http://web.shop/") == "this is web.shop, port 80\n"
    assert last.stop() == 0
    assert state(busy, since, pf) == before
    assert runtime_files(busy) == []
