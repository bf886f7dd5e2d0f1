"""Waking up and a changed network are noticed."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tp2.sandbox.namespaces import Host
from tp2.system import environment
from tp2.types import ROUTE_PROTOCOL

WATCH = """
import asyncio
from tp2.system import environment
async def main():
    watching = asyncio.create_task(environment.watch(lambda why: print(why, flush=True)))
    await asyncio.sleep(0.1)
    print("watching", flush=True)
    await watching
asyncio.run(main())
"""


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("laptop") as laptop, Host("router", laptop) as router:
        laptop.link("eth0", "192.0.2.10/24", router, "laptop", "192.0.2.1/24")
        yield laptop


def watching(host: Host) -> subprocess.Popen[str]:
    process = host.start(sys.executable, "-c", WATCH, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline() != "watching\n":
        pass
    return process


def test_addresses_routes_and_links_that_change_are_told_once_a_bunch(host: Host) -> None:
    process = watching(host)
    assert process.stdout is not None
    host.shell("""
        ip addr add 192.0.2.11/24 dev eth0
        ip addr del 192.0.2.11/24 dev eth0
        ip route add default via 192.0.2.1""")
    assert process.stdout.readline() == "the network changed\n"
    host.shell("ip link set eth0 down")
    assert process.stdout.readline() == "the network changed\n"


def test_routes_of_tp2s_own_are_no_change_of_the_network(host: Host) -> None:
    process = watching(host)
    assert process.stdout is not None
    host.shell(f"""
        ip route add 10.96.0.1/32 dev lo proto {ROUTE_PROTOCOL}
        ip -6 route add fd00:10:96::1/128 dev lo proto {ROUTE_PROTOCOL}
        ip route del 10.96.0.1/32 dev lo proto {ROUTE_PROTOCOL}""")
    # Waits for as long as a bunch may take: what is tested is that nothing is told.
    readable, _, _ = select.select([process.stdout], [], [], 5 * environment.QUIET)
    assert not readable
    host.shell("ip route add 10.96.0.2/32 dev lo")
    assert process.stdout.readline() == "the network changed\n"


def test_a_process_that_was_stopped_knows_that_it_slept(host: Host) -> None:
    process = watching(host)
    assert process.stdout is not None
    os.kill(process.pid, 19)
    # Sleep is what is tested: there is no event for time that has passed.
    subprocess.run(["sleep", str(environment.TICK + environment.SLEPT + 1)], check=True)
    os.kill(process.pid, 18)
    assert "slept for" in process.stdout.readline()


async def test_a_clock_that_jumps_is_a_wake_up_and_one_that_ticks_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "TICK", 0.01)
    times = iter([0.0, 0.01, 0.02, 600.0, 600.01, 600.02])
    told: list[str] = []
    with pytest.raises(RuntimeError):  # StopIteration, when the clock has no more to say
        await environment._watch_clock(told.append, lambda: next(times))
    assert told == ["this machine, or tp2, slept for 600 s"]


async def test_cancelling_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    task = asyncio.create_task(environment.watch(lambda _: None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
