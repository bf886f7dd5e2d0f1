"""Mappings come and go by the thousand through the whole daemon and the kernel's own rules.

``TP2_CHURN=50000`` makes it as many mappings, which takes some minutes; by default it is a few hundred.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from bench import usage
from tests.e2e.conftest import CLIENTS, Laptop, Up, eventually
from tp2.sandbox.box import NAMESERVER
from tp2.sandbox.objects import Object, service

TOTAL = int(os.environ.get("TP2_CHURN", "560"))
FIRST_PORT = 7000
SERVICES, PORTS = (10, 20) if TOTAL < 10_000 else (104, 100)
PATIENCE = 120.0


def address(number: int) -> str:
    return f"10.100.{number // 200}.{1 + number % 200}"


def many_ports(number: int) -> Object:
    ports = {f"p{port}": port for port in range(FIRST_PORT, FIRST_PORT + PORTS)}
    return service("blog", f"churn-{number}", address(number), ports)


@pytest.mark.timeout(60 + TOTAL // 20)
def test_mappings_come_and_go_and_nothing_is_misdelivered_or_left(laptop: Laptop, up: Callable[..., Up]) -> None:
    laptop.box.create(*(many_ports(number) for number in range(SERVICES)))
    # One program at all ports of all addresses.
    laptop.box.cluster.shell("ip route add local 10.100.0.0/16 dev lo")
    programs = [f"where:everywhere:0.0.0.0:{port}" for port in range(FIRST_PORT, FIRST_PORT + PORTS)]
    server = laptop.box.cluster.start(
        *(sys.executable, "-m", "tp2.sandbox.services", *programs), env=laptop.box.environment, stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"

    running = up("--idle-timeout", "1s")
    status = laptop.status()
    processes = (status["pid"], status["forwarder"]["helper_pid"])
    visitor = laptop.host.start(
        *(sys.executable, str(CLIENTS / "churn.py"), NAMESERVER, str(FIRST_PORT), str(PORTS)),
        *(f"churn-{number}.blog={address(number)}" for number in range(SERVICES)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert visitor.stdin is not None
    assert visitor.stdout is not None

    def settled() -> bool:
        live: int = laptop.status()["mappings"]["live"]
        return live <= len(range(0, SERVICES, max(1, SERVICES // 20)))

    levels: list[tuple[float, int, int]] = []
    while laptop.status()["mappings"]["made"] < TOTAL:
        visitor.stdin.write("go\n")
        visitor.stdin.flush()
        outcome = json.loads(visitor.stdout.readline())
        assert outcome["wrong"] == []
        assert outcome["visits"] == SERVICES * PORTS
        eventually(settled, within=PATIENCE)
        memory = sum(usage.status(pid, "VmRSS") for pid in processes) * 1e6
        levels.append((memory, usage.descriptors(processes[0]), usage.descriptors(processes[1])))
        print(laptop.status()["mappings"]["made"], *levels[-1])
    # From the second round on, nothing grows: the first one has made what is kept for the next.
    (memory, *opened), (last_memory, *last_opened) = levels[1], levels[-1]
    assert last_opened == opened
    assert last_memory < memory * 1.1 + 4_000_000
    visitor.stdin.close()
    visitor.wait(20)
    eventually(lambda: laptop.status()["mappings"]["live"] == 0, within=PATIENCE)
    rules = laptop.ruleset().partition("map redirects4")[2].partition("map redirects6")[0]
    assert rules
    assert "10.100." not in rules
    assert running.stop() == 0
