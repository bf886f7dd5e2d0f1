"""The mapper keeps listeners and rules in step: real sockets, a forwarder that records, and a clock that is moved."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest

from tp2.errors import ForwarderError, UsageError
from tp2.portmap import mapper as mapper_module
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
        self.addresses: dict[Destination, str | None] = {}
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
            self.addresses[redirect.destination] = redirect.local_address


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
    def __init__(self, ports: Sequence[int], capacity: int | None = None, further: Sequence[str] = ()) -> None:
        self.now = 0.0
        self.rules = Rules()
        self.carrier = Carrier()
        self.table = Table(ports, further=further, capacity=capacity, idle_timeout=IDLE, rest=30.0)
        self.mapper = Mapper(self.table, self.rules, self.carrier, clock=lambda: self.now)

    async def collect(self) -> None:
        """What the collector does when its time has come."""
        await self.mapper.collect()

    def accepts(self, port: int, address: str = "127.0.0.1") -> bool:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            return probe.connect_ex((address, port)) == 0

    async def connect(self, port: int) -> tuple[socket.socket, Connection]:
        self.carrier.came.clear()
        client = socket.create_connection(("127.0.0.1", port))
        await asyncio.wait_for(self.carrier.came.wait(), 10)
        return client, self.carrier.carried[-1][1]


@contextlib.asynccontextmanager
async def running(count: int = 8, capacity: int | None = None, further: Sequence[str] = ()) -> AsyncIterator[Rig]:
    # Free ports, found by the kernel; another program may take one meanwhile, and then another is used.
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
    rig = Rig(ports, capacity, further)
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
        assert rig.mapper.shortage.lookups == 0
        with pytest.raises(ForwarderError, match="no local port is left"):
            await rig.mapper.ensure([wanted(2)])
        assert rig.mapper.renew([wanted(1)])
        assert rig.mapper.shortage.lookups == 1
        assert rig.mapper.shortage.why == "all 1 mappings are in use"


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
        mapper = Mapper(
            rig.table, rig.rules, rig.carrier, spare=lambda there: "ours" if there == own.destination else None
        )
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


async def test_while_ports_rest_nothing_is_given_up_in_vain() -> None:
    async with running(2) as rig:
        await rig.mapper.ensure([wanted(1)])
        await rig.mapper.ensure([wanted(2)])
        await rig.mapper.unpin([wanted(1).destination])
        with pytest.raises(ForwarderError, match="rest after use"):
            await rig.mapper.ensure([wanted(3)])
        assert set(rig.rules.standing) == {wanted(2).destination}
        rig.now = 30.0
        await rig.mapper.ensure([wanted(3)])


async def test_when_no_descriptor_is_left_the_longest_unused_mapping_makes_room() -> None:
    async with running(8) as rig:
        await rig.mapper.ensure([wanted(1)])
        rig.now = 1.0
        await rig.mapper.ensure([wanted(2)])
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with open_files_at_their_limit():
            await rig.mapper.ensure([wanted(3)])
            assert set(rig.rules.standing) == {wanted(2).destination, wanted(3).destination}
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits
        assert rig.accepts(port_of(rig, 3))


async def test_when_no_descriptor_is_left_and_nothing_may_go_the_lookup_fails_with_the_reason() -> None:
    async with running(8) as rig:
        await rig.mapper.ensure([wanted(1, ttl=100)])
        with open_files_at_their_limit(), pytest.raises(ForwarderError, match="too many open files"):
            await rig.mapper.ensure([wanted(2)])
        assert set(rig.rules.standing) == {wanted(1).destination}
        assert len(rig.table) == 1
        await rig.mapper.ensure([wanted(2)])


@contextlib.contextmanager
def open_files_at_their_limit() -> Iterator[None]:
    """Leave this process no descriptor that it has not got already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in fillers:
            os.close(descriptor)


async def test_of_many_that_expire_together_the_one_that_is_used_meanwhile_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mapper_module, "AT_A_TIME", 1)
    async with running() as rig:
        await rig.mapper.ensure([wanted(1), wanted(2)])
        rig.now = IDLE
        rig.rules.gate.clear()
        rig.rules.under_way.clear()
        collecting = asyncio.create_task(rig.collect())
        await rig.rules.under_way.wait()
        client, connection = await rig.connect(port_of(rig, 2))
        rig.rules.gate.set()
        await collecting
        assert set(rig.rules.standing) == {wanted(2).destination}
        client.close()
        connection.end()


async def test_when_neither_the_end_nor_the_return_of_a_rule_works_its_listener_stays() -> None:
    async with running() as rig:
        await rig.mapper.ensure([wanted()])
        rig.now = IDLE
        rig.rules.refusing = True
        rig.rules.gate.clear()
        rig.rules.under_way.clear()
        collecting = asyncio.create_task(rig.collect())
        await rig.rules.under_way.wait()
        again = asyncio.create_task(rig.mapper.ensure([wanted()]))
        await asyncio.sleep(0)
        rig.rules.gate.set()
        await collecting
        with pytest.raises(ForwarderError):
            await again
        assert rig.rules.standing == {wanted().destination: port_of(rig)}
        assert rig.accepts(port_of(rig))


async def test_an_ipv6_destination_arrives_on_the_ipv6_loopback_address() -> None:
    six = Wanted("six.ns", Destination("fd00:10:96::1", 80), 0)
    async with running() as rig:
        await rig.mapper.ensure([six])
        (row,) = rig.mapper.snapshot()
        assert (row["address"], row["local_address"]) == ("fd00:10:96::1", "::1")
        assert rig.accepts(row["local_port"], "::1")
        assert rig.rules.addresses == {six.destination: None}


async def test_a_further_loopback_address_serves_when_the_first_ones_ports_run_short() -> None:
    async with running(1, further=["127.0.0.2"]) as rig:
        await rig.mapper.ensure([wanted(1), wanted(2)])
        rows = {row["name"]: (row["local_address"], row["local_port"]) for row in rig.mapper.snapshot()}
        assert [address for address, _ in rows.values()] == ["127.0.0.1", "127.0.0.2"]
        assert all(rig.accepts(port, address) for address, port in rows.values())
        assert rig.rules.addresses == {wanted(1).destination: None, wanted(2).destination: "127.0.0.2"}


async def test_a_pinned_mapping_needs_no_lookup_and_stays_until_it_is_let_go_of() -> None:
    async with running(8, capacity=1) as rig:
        await rig.mapper.pin([wanted()])
        rig.now = 1000 * IDLE
        await rig.collect()
        assert rig.rules.standing == {wanted().destination: port_of(rig)}
        (row,) = rig.mapper.snapshot()
        assert (row["state"], row["expires_in"]) == ("pinned", None)
        with pytest.raises(ForwarderError):
            await rig.mapper.ensure([wanted(2)])
        await rig.mapper.unpin([wanted().destination])
        assert rig.rules.standing == {}
        assert len(rig.table) == 0


async def test_a_mapping_that_is_in_use_is_let_go_of_when_that_ends() -> None:
    async with running() as rig:
        await rig.mapper.pin([wanted()])
        client, connection = await rig.connect(port_of(rig))
        await rig.mapper.unpin([wanted().destination])
        assert rig.mapper.snapshot()[0]["state"] == "active"
        client.close()
        connection.end()
        rig.now = IDLE
        await rig.collect()
        assert len(rig.table) == 0


async def test_what_cannot_be_pinned_altogether_is_not_pinned_at_all() -> None:
    async with running(8, capacity=1) as rig:
        with pytest.raises(ForwarderError):
            await rig.mapper.pin([wanted(1), wanted(2)])
        (row,) = rig.mapper.snapshot()
        assert row["state"] == "idle"


async def test_what_is_to_be_left_alone_cannot_be_pinned() -> None:
    async with running() as rig:
        mapper = Mapper(rig.table, rig.rules, rig.carrier, spare=lambda there: "it is this machine's own address")
        with pytest.raises(UsageError, match="this machine's own"):
            await mapper.pin([wanted()])


async def test_mappings_that_are_to_be_left_alone_from_now_on_lose_their_rules_and_not_their_connections() -> None:
    async with running() as rig:
        own: set[Destination] = set()
        rig.mapper = Mapper(rig.table, rig.rules, rig.carrier, spare=lambda there: "ours" if there in own else None)
        task = asyncio.create_task(rig.mapper.run())
        await rig.mapper.ensure([wanted(1), wanted(2)])
        client, connection = await rig.connect(port_of(rig, 1))
        own.add(wanted(1).destination)
        await rig.mapper.leave_alone()
        assert set(rig.rules.standing) == {wanted(2).destination}
        assert connection.sock.fileno() != -1
        client.close()
        connection.end()
        assert [mapping.destination for mapping in rig.table] == [wanted(2).destination]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_connection_that_came_in_elsewhere_is_carried_if_its_destination_is_mapped() -> None:
    async with running() as rig:
        await rig.mapper.ensure([wanted(1)])
        ours, theirs = socket.socketpair()
        assert not rig.mapper.accept(wanted(2).destination, theirs)
        assert rig.mapper.accept(wanted(1).destination, theirs)
        assert rig.mapper.snapshot()[0]["connections"] == 1
        rig.carrier.carried[-1][1].end()
        ours.close()
