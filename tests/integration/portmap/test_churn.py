"""Mappings made and collected by the thousand, with connections running through: none is misdelivered, nothing is left.

Real sockets, real time (an idle timeout of a tenth of a second), and a model of the kernel: who connects to a
destination goes where the rule for it leads at that moment. The same with the kernel's own rules, through the whole
daemon: :mod:`tests.e2e.test_churn`.
"""

from __future__ import annotations

import asyncio
import gc
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tp2.errors import ForwarderError
from tp2.portmap.mapper import Mapper
from tp2.portmap.table import Table
from tp2.types import Destination, Redirect, Wanted

MAPPINGS = 3_000
DESTINATIONS = [Destination(f"10.96.{number // 40}.{number % 40 + 1}", 80) for number in range(800)]
PORTS = 400
CLIENTS = 80
IDLE = 0.1
REST = 0.3


class Kernel:
    """Rules, as the forwarder is told them; each commit takes a moment."""

    def __init__(self) -> None:
        self.rules: dict[Destination, tuple[str, int]] = {}

    async def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        await asyncio.sleep(random.choice([0, 0.001]))
        for destination in remove:
            self.rules.pop(destination, None)
        for redirect in add:
            self.rules[redirect.destination] = (redirect.local_address or "127.0.0.1", redirect.local_port)
        await asyncio.sleep(0)

    async def connect(self, destination: Destination) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        rule = self.rules.get(destination)
        if rule is None:
            return None
        # Blocking: from the rule to the queue of the listener takes the kernel no time in which a rule could change.
        sock = socket.create_connection(rule)
        return await asyncio.open_connection(sock=sock)


class Service:
    """A connection that was carried: the service at its other end says its address, and then repeats what it hears."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0

    def abort(self) -> None:
        raise AssertionError("nobody aborts here")


class Cluster:
    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    def carry(self, sock: socket.socket, destination: Destination, on_close: Callable[[Any], None]) -> Service:
        service = Service()

        async def serve() -> None:
            reader, writer = await asyncio.open_connection(sock=sock)
            writer.write(f"{destination}\n".encode())
            while line := await reader.readline():
                writer.write(line)
            writer.close()
            await writer.wait_closed()
            on_close(service)

        task = asyncio.create_task(serve())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return service


class Visitors:
    """Clients that look up, connect, stay for a while and leave."""

    def __init__(self, mapper: Mapper, kernel: Kernel) -> None:
        self.mapper = mapper
        self.kernel = kernel
        self.visits = 0
        self.without_room = 0
        self.wrong: list[str] = []

    async def visit_many(self, seed: int) -> None:
        chance = random.Random(seed)
        while self.mapper.table.made < MAPPINGS:
            destination = chance.choice(DESTINATIONS)
            try:
                # Some have an answer for longer than the mapping is idle.
                await self.mapper.ensure([Wanted(str(destination), destination, chance.choice([0, 0, 0, 1]))])
            except ForwarderError:
                self.without_room += 1
                await asyncio.sleep(0.01)
                continue
            await self.visit(destination, chance)

    async def visit(self, destination: Destination, chance: random.Random) -> None:
        connection = await self.kernel.connect(destination)
        if connection is None:
            self.wrong.append(f"{destination}: the rule was not there when the answer was")
            return
        reader, writer = connection
        greeting = (await reader.readline()).decode().strip()
        if greeting != str(destination):
            self.wrong.append(f"{destination} was answered by {greeting!r}")
        for turn in range(chance.choice([0, 0, 1, 5])):
            await asyncio.sleep(chance.uniform(0, IDLE))
            writer.write(f"{turn}\n".encode())
            if await reader.readline() != f"{turn}\n".encode():
                self.wrong.append(f"{destination} lost its connection")
                break
        writer.close()
        await writer.wait_closed()
        self.visits += 1


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def test_thousands_of_mappings_come_and_go_and_nothing_is_misdelivered_or_left() -> None:
    gc.collect()
    before = descriptors()
    kernel, cluster = Kernel(), Cluster()
    table = Table(free_ports(PORTS), idle_timeout=IDLE, rest=REST)
    mapper = Mapper(table, kernel, cluster)
    running = asyncio.create_task(mapper.run())
    visitors = Visitors(mapper, kernel)
    async with asyncio.timeout(100):
        await asyncio.gather(*(visitors.visit_many(seed) for seed in range(CLIENTS)))
        assert visitors.wrong == []
        assert table.made >= MAPPINGS
        while len(table) or cluster.tasks:
            await asyncio.sleep(0.05)
    assert kernel.rules == {}
    assert descriptors() <= before + 2
    assert len(table._queue) <= 64
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    # The test had something to test: it was not for want of room that everything went well.
    assert visitors.visits > visitors.without_room
