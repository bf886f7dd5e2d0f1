"""A laptop's day: what goes wrong, and what a running ``curl`` loop sees of it.

Each :class:`Event` does something to the sandbox and says when its cause was gone. Meanwhile a loop on the laptop looks
a name up and fetches a page, with a new connection each time. Counted are the visits that failed, and the seconds from
the end of the cause to the end of the first visit that began after it and succeeded.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.report import Figure
from tp2.errors import Tp2Error
from tp2.sandbox.box import NAMESERVER, Sandbox
from tp2.sandbox.contents import OBJECTS

URL: Final = "http://web.shop/"

#: Visits before an event, and after the recovery from it: it worked before, and goes on working.
WARM: Final = 10

#: Seconds after which something that should happen has not.
PATIENCE: Final = 40.0


class Event(NamedTuple):
    """Something that happens to a laptop. ``happen`` returns when its cause was gone, on the monotonic clock.

    ``strands``: the laptop loses the address that its open connections have. No program can do anything about those,
    and the loop is not back before its own patience ends if it had one open at that moment.
    """

    name: str
    happen: Callable[[Sandbox], float]
    strands: bool = False


class Visit(NamedTuple):
    """One turn of the loop; ``wrong`` is empty if it succeeded."""

    began: float
    ended: float
    wrong: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the loop saw of an event."""

    visits: int
    failures: tuple[str, ...]
    recovery: float
    longest: float


def ssh_is_killed(box: Sandbox) -> float:
    """The SSH server is killed with its sessions, and started again."""
    box.stop_sshd()
    box.start_sshd()
    return time.monotonic()


def ssh_is_away(box: Sandbox) -> float:
    """The same, but it takes three seconds to come back."""
    box.stop_sshd()
    time.sleep(3)
    box.start_sshd()
    return time.monotonic()


def api_restarts(box: Sandbox) -> float:
    """The Kubernetes API server is killed and started again, with a history of its own."""
    box.api.kill()
    box.api.wait()
    box.start_api(OBJECTS)
    return time.monotonic()


def laptop_sleeps(box: Sandbox) -> float:
    """The laptop sleeps: nothing on it moves, the link is down, and the other ends have long given up when it wakes."""
    pids = box.laptop.processes()
    box.laptop.shell("ip link set eth0 down")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    # What ten minutes do to a silent connection: the server drops it, and nobody is there to be told.
    box.stop_sshd()
    box.start_sshd()
    box.api.kill()
    box.api.wait()
    box.start_api(OBJECTS)
    time.sleep(5)
    box.laptop.shell("ip link set eth0 up; ip route replace default via 192.0.2.1")
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return time.monotonic()


def network_changes(box: Sandbox) -> float:
    """Another network: another address, another gateway, another nameserver, and no goodbye to the former one."""
    box.internet.shell("ip addr replace 192.0.2.129/25 dev laptop")
    box.start_nameserver("192.0.2.57")
    _move(box, "192.0.2.130/25", "192.0.2.129")
    box.laptop.write_etc("resolv.conf", "nameserver 192.0.2.57\n")
    return time.monotonic()


def network_comes_back(box: Sandbox) -> float:
    """And back to the first one."""
    _move(box, "192.0.2.10/24", "192.0.2.1")
    box.laptop.write_etc("resolv.conf", f"nameserver {NAMESERVER}\n")
    return time.monotonic()


def _move(box: Sandbox, address: str, gateway: str) -> None:
    """Give the laptop another address and gateway; in one process, since in between there is no network at all."""
    box.laptop.shell(f"""ip -batch - <<END
        link set eth0 down
        addr flush dev eth0
        addr add {address} dev eth0
        link set eth0 up
        route replace default via {gateway}
END""")


EVENTS: Final = (
    Event("ssh is killed", ssh_is_killed),
    Event("ssh is away for 3 s", ssh_is_away),
    Event("the API server restarts", api_restarts),
    Event("the laptop sleeps", laptop_sleeps),
    Event("the network changes", network_changes, strands=True),
    Event("the network comes back", network_comes_back, strands=True),
)


def run(say: Callable[[str], None]) -> list[Figure]:
    """Let every event happen to one tp2; return what the loop saw."""
    figures = []
    with Sandbox() as box, connected(box):
        for event in EVENTS:
            outcome = watch(box, event)
            failed = f", {len(outcome.failures)} failed ({outcome.failures[0]})" if outcome.failures else ""
            say(f"{event.name}: {outcome.visits} visits{failed}, well again after {outcome.recovery:.2f} s")
            figures += [
                Figure(f"{event.name}: failed visits", "visits", {"tp2": [float(len(outcome.failures))]}, ()),
                Figure(f"{event.name}: to recovery", "s", {"tp2": [outcome.recovery]}, ()),
                Figure(f"{event.name}: longest visit", "s", {"tp2": [outcome.longest]}, ()),
            ]
    return figures


@contextlib.contextmanager
def connected(box: Sandbox, *options: str) -> Iterator[subprocess.Popen[Any]]:
    """Bring tp2 up in *box* with more *options*, and take it down."""
    up = box.laptop.start(
        *box.up_command(*options), env=box.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert up.stdout is not None
    if not any(line.startswith("ready") for line in up.stdout):
        raise Tp2Error("tp2 did not come up", f"it ended with exit code {up.wait()}", "its words are above")
    try:
        yield up
    finally:
        up.terminate()
        up.wait(PATIENCE)


def watch(box: Sandbox, event: Event, url: str = URL) -> Outcome:
    """Let *event* happen while the loop runs; return what it saw."""
    loop = box.laptop.start(
        *(sys.executable, Path(__file__).with_name("visits.py"), url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert loop.stdout is not None
    lines = (Visit(*json.loads(line)) for line in loop.stdout)
    visits = []
    for visit in lines:
        if visit.wrong:
            raise Tp2Error(
                f"{url} cannot be fetched", visit.wrong, "the bench needs it to work before anything happens"
            )
        visits.append(visit)
        if len(visits) == WARM:
            break
    gone = since = event.happen(box)
    well: Visit | None = None
    seen = 0
    for visit in lines:
        visits.append(visit)
        if event.strands and visit.began < gone and visit.wrong:
            since = max(since, visit.ended)
        if well is None and visit.began >= gone and not visit.wrong:
            well = visit
        if visit.ended > gone + PATIENCE:
            raise Tp2Error(f"after '{event.name}' nothing works", visit.wrong or "no visit succeeded", "this is a bug")
        seen += well is not None
        if seen == WARM:
            break
    assert well is not None
    assert loop.stdin is not None
    loop.stdin.close()
    visits += list(lines)
    loop.wait(PATIENCE)
    return Outcome(
        len(visits),
        tuple(visit.wrong for visit in visits if visit.wrong),
        well.ended - since,
        max(visit.ended - visit.began for visit in visits),
    )
