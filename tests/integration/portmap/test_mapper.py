"""The mapper keeps listeners and rules in step: real sockets, a forwarder that records, and a clock that is moved."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from tp2.errors import ForwarderError
from tp2.portmap.mapper import Mapper
from tp2.portmap.table import Phase, Table
from tp2.types import Destination, Redirect, Wanted

IDLE = 60.0


def wanted(number: int = 1, ttl: int = 0) -> Wanted:
    return Wanted(f"svc-{number}.ns", Destination(f"10.96.0.{number}", 80), ttl)


class Rules:
    """A forwarder that keeps what it is told, refuses when told to, and says no sooner than it is let."""

    def __init__(self) -> None:
        self.standing: dict[Destination, int] = {}
        self.commits = 0
        self.refusing = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.under_way = asyncio.Event()

    async def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        self.commits += 1
        self.under_way.set()
        await self.gate.wait()
        if self.refusing:
            raise ForwarderError("refused", "as the test asked", "none")
        for destination in remove:
            self.standing.pop(destination, None)
        for redirect in add:
            self.standing[redirect.destination] = redirect.local_port


class Connection:
    """A carried connection that ends when the test says so."""

    def __init__(self, sock: socket.socket, on_close: Callable[[Any], None]) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.sock = sock
        self._on_close = on_close

    def end(self) -> None:
        self.sock.close()
        self._on_close(self)

    abort = end


class Carrier:
    def __init__(self) -> None:
        self.carried: list[tuple[Destination, Connection]] = []
        self.came = asyncio.Event()

    def carry(self, sock: socket.socket, destination: Destination, on_close: Callable[[Any], None]) -> Connection:
        connection = Connection(sock, on_close)
        self.carried.append((destination, connection))
        self.came.set()
        return connection


class Rig:
    def __init__(self, ports: Sequence[int], capacity: int | None = None) -> None:
        self.now = 0.0
        self.rules = Rules()
        self.carrier = Carrier()
        self.table = Table(ports, capacity=capacity, idle_timeout=IDLE, rest=30.0)
        self.mapper = Mapper(self.table, self.rules, self.carrier, clock=lambda: self.now)

    async def collect(self) -> None:
        """What the collector does when its time has come."""
        await self.mapper.collect()

    def accepts(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    async def connect(self, port: int) -> tuple[socket.socket, Connection]:
        self.carrier.came.clear()
        client = socket.create_connection(("127.0.0.1", port))
        await asyncio.wait_for(self.carrier.came.wait(), 10)
        return client, self.carrier.carried[-1][1]


@contextlib.asynccontextmanager
async def running(count: int = 8, capacity: int | None = None) -> AsyncIterator[Rig]:
    # Free ports, found by the kernel; another program may take one meanwhile, and then another is used.
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
    rig = Rig(ports, capacity)
    task = asyncio.create_task(rig.mapper.run())
    try:
        yield rig
    finally:
        for _, connection in rig.carrier.carried:
            connection.sock.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def port_of(rig: Rig, number: int = 1) -> int:
    mapping = rig.table.get(wanted(number).destination)
    assert mapping is not None
    return mapping.local_port


async def test_when_it_is_ensured_the_rule_stands_and_the_listener_accepts() -> None:
    async with running() as rig:
        await rig.mapper.ensure([wanted(1), wanted(2)])
        assert rig.rules.standing == {wanted(n).destination: port_of(rig, n) for n in (1, 2)}
        assert rig.accepts(port_of(rig, 1))
        assert rig.accepts(port_of(rig, 2))
        assert rig.rules.commits == 1


async def test_nothing_is_ensured_before_its_rule_stands() -> None:
    async with running() as rig:
        rig.rules.gate.clear()
        first = asyncio.create_task(rig.mapper.ensure([wanted()]))
        await rig.rules.under_way.wait()
        second = asyncio.create_task(rig.mapper.ensure([wanted()]))
        assert not rig.mapper.renew([wanted()])
        await asyncio.sleep(0)
        assert not first.done()
        assert not second.done()
        rig.rules.gate.set()
        await asyncio.gather(first, second)
        assert rig.mapper.renew([wanted()])
        assert rig.rules.commits == 1


async def test_a_burst_of_lookups_costs_few_commits() -> None:
    async with running(80) as rig:
        await asyncio.gather(*(rig.mapper.ensure([wanted(number)]) for number in range(1, 61)))
        assert len(rig.rules.standing) == 60
        assert rig.rules.commits <= 2


async def test_a_cancelled_lookup_takes_nothing_from_the_others() -> None:
    async with running() as rig:
        rig.rules.gate.clear()
        first, second = (asyncio.create_task(rig.mapper.ensure([wanted()])) for _ in range(2))
        await rig.rules.under_way.wait()
        first.cancel()
        rig.rules.gate.set()
        await second
        assert rig.mapper.renew([wanted()])


async def test_a_refused_rule_leaves_no_listener_and_no_mapping() -> None:
    async with running() as rig:
        rig.rules.refusing = True
        with pytest.raises(ForwarderError, match="refused"):
            await rig.mapper.ensure([wanted()])
        assert len(rig.table) == 0
        rig.rules.refusing = False
        await rig.mapper.ensure([wanted()])
        assert rig.accepts(port_of(rig))


async def test_a_connection_is_carried_to_the_address_of_its_port() -> None:
    async with running() as rig:
        await rig.mapper.ensure([wanted(1), wanted(2)])
        client, _ = await rig.connect(port_of(rig, 2))
        assert rig.carrier.carried[-1][0] == wanted(2).destination
        client.close()


async def test_an_idle_mapping_is_collected_rule_first() -> None:
    async with running() as rig:
        await rig.mapper.ensure([wanted()])
        port = port_of(rig)
        rig.now = IDLE
        rig.rules.gate.clear()
        rig.rules.under_way.clear()
        collecting = asyncio.create_task(rig.collect())
        await rig.rules.under_way.wait()
        # While the rule may still stand, the listener must.
        client, connection = await rig.connect(port)
        rig.rules.gate.set()
        await collecting
        assert rig.rules.standing == {}
        # A connection that came through the rule in its last moment is served to its end.
        mapping = rig.table.get(wanted().destination)
        assert mapping is not None
        assert mapping.state == "draining"
        client.close()
        connection.end()
        assert rig.table.get(wanted().destination) is None
        assert not rig.accepts(port)


async def test_a_connection_in_the_queue_when_the_rule_goes_is_served() -> None:
    async with running() as rig:
        await rig.mapper.ensure([wanted()])
        rig.now = IDLE
        # The kernel completes this one; our loop has not had a turn to accept it.
        with socket.create_connection(("127.0.0.1", port_of(rig))):
            await rig.collect()
            assert [destination for destination, _ in rig.carrier.carried] == [wanted().destination]


async def test_a_mapping_asked_for_again_while_it_goes_keeps_its_port() -> None:
    async with running() as rig:
        await rig.mapper.ensure([wanted()])
        port = port_of(rig)
        rig.now = IDLE
        rig.rules.gate.clear()
        rig.rules.under_way.clear()
        collecting = asyncio.create_task(rig.collect())
        await rig.rules.under_way.wait()
        again = asyncio.create_task(rig.mapper.ensure([wanted()]))
        await asyncio.sleep(0)
        rig.rules.gate.set()
        await asyncio.gather(collecting, again)
        assert rig.rules.standing == {wanted().destination: port}
        assert rig.accepts(port)
        mapping = rig.table.get(wanted().destination)
        assert mapping is not None
        assert mapping.phase is Phase.LIVE


async def test_when_a_rule_cannot_be_taken_away_its_listener_stays() -> None:
    async with running() as rig:
        await rig.mapper.ensure([wanted()])
        rig.now = IDLE
        rig.rules.refusing = True
        await rig.collect()
        client, connection = await rig.connect(port_of(rig))
        client.close()
        connection.end()
        rig.rules.refusing = False
        rig.now += IDLE
        await rig.collect()
        assert len(rig.table) == 0


async def test_a_mapping_with_an_open_connection_is_never_collected() -> None:
    async with running() as rig:
        await rig.mapper.ensure([wanted()])
        client, connection = await rig.connect(port_of(rig))
        rig.now = 1000 * IDLE
        await rig.collect()
        assert rig.rules.standing == {wanted().destination: port_of(rig)}
        client.close()
        connection.end()
        rig.now += IDLE
        await rig.collect()
        assert rig.rules.standing == {}


async def test_a_full_table_makes_room_by_giving_up_what_is_unused() -> None:
    async with running(8, capacity=2) as rig:
        await rig.mapper.ensure([wanted(1)])
        rig.now = 1.0
        await rig.mapper.ensure([wanted(2)])
        rig.now = 2.0
        await rig.mapper.ensure([wanted(3)])
        assert set(rig.rules.standing) == {wanted(2).destination, wanted(3).destination}


async def test_a_full_table_whose_mappings_are_all_in_use_says_so() -> None:
    async with running(8, capacity=1) as rig:
        await rig.mapper.ensure([wanted(1, ttl=100)])
        with pytest.raises(ForwarderError, match="no local port is left"):
            await rig.mapper.ensure([wanted(2)])
        assert rig.mapper.renew([wanted(1)])


async def test_a_port_that_another_program_has_is_passed_over() -> None:
    async with running(2) as rig:
        ports = []
        with contextlib.ExitStack() as stack:
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            ports = [taken.getsockname()[1]]
            free = socket.socket()
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
            free.close()
            other = Rig(ports)
            task = asyncio.create_task(other.mapper.run())
            await other.mapper.ensure([wanted()])
            assert port_of(other) == ports[1]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert len(rig.table) == 0


async def test_tp2s_own_way_to_the_cluster_is_never_captured() -> None:
    async with running() as rig:
        own = wanted(9)
        mapper = Mapper(rig.table, rig.rules, rig.carrier, spare=lambda destination: destination == own.destination)
        await mapper.ensure([own])
        assert mapper.renew([own])
        assert rig.rules.commits == 0
        assert len(rig.table) == 0


async def test_when_the_cluster_is_another_every_mapping_goes_used_or_not() -> None:
    async with running() as rig:
        await rig.mapper.ensure([wanted(1, ttl=1000), wanted(2)])
        client, connection = await rig.connect(port_of(rig, 2))
        await rig.mapper.clear()
        assert rig.rules.standing == {}
        assert len(rig.table) == 0
        assert connection.sock.fileno() == -1
        client.close()


async def test_the_snapshot_counts_open_and_ended_connections() -> None:
    async with running() as rig:
        await rig.mapper.ensure([wanted(ttl=5)])
        client, connection = await rig.connect(port_of(rig))
        connection.bytes_sent, connection.bytes_received = 10, 20
        (row,) = rig.mapper.snapshot()
        assert (row["state"], row["connections"], row["bytes_sent"], row["bytes_received"]) == ("active", 1, 10, 20)
        assert row["expires_in"] is None
        client.close()
        connection.end()
        (row,) = rig.mapper.snapshot()
        assert (row["state"], row["connections"], row["total_connections"]) == ("idle", 0, 1)
        assert (row["bytes_sent"], row["bytes_received"]) == (10, 20)
        assert row["expires_in"] == IDLE
