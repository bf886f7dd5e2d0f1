"""Many new mappings, few loads of the anchor: from the mapper through the helper to (a double of) pfctl."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.pfctl import Double
from tests.doubles.pfgrammar import parse
from tp2.forward.client import Helper, HelperForwarder
from tp2.forward.pfctl import PROGRAM
from tp2.portmap.mapper import Mapper
from tp2.portmap.table import Table
from tp2.sandbox.namespaces import Host
from tp2.types import Destination, Wanted

pytestmark = pytest.mark.skipif(PROGRAM.exists(), reason="this machine has a pf of its own, which is not to be touched")

COUNT = 200


class NoCarrier:
    def carry(self, sock: socket.socket, destination: Destination, on_close: Callable[[Any], None]) -> Any:
        raise AssertionError("nobody connects here")


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("mac") as mac:
        yield mac


@contextlib.asynccontextmanager
async def mapping(host: Host, double: Double) -> AsyncIterator[Mapper]:
    """A mapper whose rules are those of a helper with pf."""
    channel, theirs = socket.socketpair()
    env = os.environ | {"PATH": f"{double.bin}{os.pathsep}{os.environ['PATH']}"}
    with theirs:
        command = [*host.command(), sys.executable, "-I", "-m", "tp2.forward.helper", "pf"]
        process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno(), env=env)
    assert b'"kind":"pf"' in await asyncio.to_thread(channel.recv, 4096)
    forwarder = HelperForwarder(Helper(process, channel, "pf", process.pid))
    # Free ports, found by the kernel; another program may take one meanwhile, and then another is used.
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(2 * COUNT):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
    mapper = Mapper(Table(ports, idle_timeout=600.0), forwarder, NoCarrier())
    task = asyncio.create_task(mapper.run())
    try:
        yield mapper
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await forwarder.close()


def wanted(number: int) -> Wanted:
    return Wanted(f"svc-{number}.ns", Destination(f"10.96.1.{number}", 80), 30)


def captured(double: Double) -> set[str]:
    return {rule.to for rule in parse(double.rules).rules}


async def test_lookups_that_come_together_cost_a_load_or_two(host: Host, tmp_path: Path) -> None:
    double = Double(tmp_path / "machine")
    async with mapping(host, double) as mapper:
        before = double.loads
        await asyncio.gather(*(mapper.ensure([wanted(number)]) for number in range(COUNT)))
        assert captured(double) == {wanted(number).destination.address for number in range(COUNT)}
        assert double.loads - before <= 2


async def test_lookups_that_come_one_after_the_other_share_the_loads_that_they_wait_for(
    host: Host, tmp_path: Path
) -> None:
    double = Double(tmp_path / "machine")
    async with mapping(host, double) as mapper:
        before = double.loads
        async with asyncio.TaskGroup() as group:
            for number in range(COUNT):
                group.create_task(mapper.ensure([wanted(number)]))
                await asyncio.sleep(0.001)  # what lies between two queries of a busy client
        assert captured(double) == {wanted(number).destination.address for number in range(COUNT)}
        # A load takes as long as it takes; all that come meanwhile share the next.
        assert double.loads - before <= COUNT / 4
