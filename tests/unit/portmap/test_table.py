"""The mapping table's promises, by example and against a model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tp2.portmap.table import Exhausted, Mapping, Phase, Table
from tp2.types import Destination, Wanted

IDLE = 60.0
REST = 30.0


def wanted(number: int = 1, ttl: int = 5) -> Wanted:
    return Wanted(f"svc-{number}.ns", Destination(f"10.96.0.{number}", 80), ttl)


def table(ports: int = 10, capacity: int | None = None) -> Table:
    return Table(range(20000, 20000 + ports), capacity=capacity, idle_timeout=IDLE, rest=REST)


def live(of: Table, number: int = 1, now: float = 0.0, ttl: int = 5) -> Mapping:
    mapping = of.lease(wanted(number, ttl), now)
    of.opened(mapping)
    return mapping


def test_the_same_destination_keeps_its_port() -> None:
    mappings = table()
    first = live(mappings)
    assert mappings.lease(wanted(), 10.0) is first
    assert len(mappings) == 1


def test_two_services_on_the_same_port_have_a_local_port_each() -> None:
    mappings = table()
    assert live(mappings, 1).local_port != live(mappings, 2).local_port


def test_a_mapping_is_collected_after_the_idle_timeout() -> None:
    mappings = table()
    mapping = live(mappings, now=0.0)
    assert mappings.expired(IDLE - 0.1) == []
    assert mappings.expired(IDLE) == [mapping]


def test_an_answer_renews_the_lease() -> None:
    mappings = table()
    mapping = live(mappings, now=0.0)
    assert mappings.renew(wanted(), 50.0)
    assert mappings.expired(IDLE) == []
    assert mappings.expired(50.0 + IDLE) == [mapping]


def test_a_mapping_with_an_open_connection_is_never_collected() -> None:
    mappings = table()
    mapping = live(mappings)
    mappings.connected(mapping, 1.0)
    assert mappings.expired(1e9) == []
    assert mappings.evictable(1e9, 1) == []
    mappings.disconnected(mapping, 1e9, sent=3, received=4)
    assert mappings.expired(1e9) == []
    assert mappings.expired(1e9 + IDLE) == [mapping]
    assert (mapping.bytes_sent, mapping.bytes_received, mapping.total_connections) == (3, 4, 1)


def test_a_mapping_that_may_be_in_a_clients_cache_is_never_collected() -> None:
    mappings = table()
    mapping = live(mappings, ttl=1000)
    assert mappings.expired(999.0) == []
    assert mappings.evictable(999.0, 1) == []
    assert mappings.expired(1000.0) == [mapping]


def test_a_shorter_answer_does_not_cut_the_lease_of_a_longer_one() -> None:
    mappings = table()
    mapping = live(mappings, ttl=1000)
    mappings.renew(wanted(ttl=1), 1.0)
    assert mapping.answered_until == 1000.0


def test_a_port_rests_before_it_is_used_again() -> None:
    mappings = table(ports=1)
    mapping = live(mappings, 1)
    mappings.withdraw(mapping)
    mappings.withdrawn(mapping)
    mappings.discard(mapping, 100.0)
    with pytest.raises(Exhausted):
        mappings.lease(wanted(2), 100.0 + REST - 0.1)
    assert mappings.lease(wanted(2), 100.0 + REST).local_port == mapping.local_port


def test_the_port_that_rested_longest_is_used_first() -> None:
    mappings = table(ports=3)
    assert [live(mappings, number).local_port for number in (1, 2, 3)] == [20000, 20001, 20002]


def test_a_draining_mapping_that_is_asked_for_again_keeps_its_port_but_needs_its_rule() -> None:
    mappings = table()
    mapping = live(mappings)
    mappings.withdraw(mapping)
    mappings.withdrawn(mapping)
    assert mapping.state == "draining"
    assert not mappings.renew(wanted(), 1.0)
    assert mappings.lease(wanted(), 1.0) is mapping
    assert mapping.phase is Phase.OPENING


def test_a_full_table_gives_up_the_longest_unused_mapping_first() -> None:
    mappings = table(capacity=2)
    older, newer = live(mappings, 1, now=0.0), live(mappings, 2, now=1.0)
    with pytest.raises(Exhausted):
        mappings.lease(wanted(3), 10.0)
    assert mappings.evictable(10.0, 5) == [older, newer]
    mappings.renew(wanted(1, ttl=0), 11.0)
    assert mappings.evictable(12.0, 1) == [newer]


def test_some_ports_are_held_back_so_that_an_eviction_finds_a_rested_one() -> None:
    assert table(ports=80).capacity == 70
    assert table(ports=1).capacity == 1


def test_a_port_that_belongs_to_another_program_is_replaced_and_tried_later() -> None:
    mappings = table(ports=2)
    mapping = mappings.lease(wanted(), 0.0)
    assert mapping.local_port == 20000
    mappings.another_port(mapping, 0.0)
    assert mapping.local_port == 20001
    with pytest.raises(Exhausted):
        mappings.another_port(mapping, 1.0)
    assert mapping.local_port == 20001


class TableMachine(RuleBasedStateMachine):
    """Answers, connections, collection and time in any order, against what must always hold."""

    @initialize(ports=st.integers(1, 12))
    def build(self, ports: int) -> None:
        self.table = Table(range(20000, 20000 + ports), idle_timeout=IDLE, rest=REST)
        self.now = 0.0
        self.rests: dict[int, float] = {}
        self.cached: dict[Destination, float] = {}
        self.open: dict[Destination, int] = {}

    def mappings(self) -> list[Mapping]:
        return sorted(self.table, key=lambda mapping: mapping.local_port)

    @rule(seconds=st.floats(0.0, 100.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=st.integers(1, 20), ttl=st.integers(0, 120), works=st.booleans())
    def answer(self, number: int, ttl: int, works: bool) -> None:
        item = wanted(number, ttl)
        known = {mapping.local_port for mapping in self.table}
        try:
            mapping = self.table.lease(item, self.now)
        except Exhausted:
            return
        if mapping.local_port not in known:
            assert self.rests.get(mapping.local_port, 0.0) <= self.now, "a port was used before it had rested"
        if mapping.phase is Phase.OPENING:
            if not works and not mapping.connections:
                self.table.discard(mapping, self.now)
                self.rests[mapping.local_port] = self.now + REST
                return
            self.table.opened(mapping)
        self.cached[item.destination] = max(self.cached.get(item.destination, 0.0), self.now + ttl)

    @rule(data=st.data())
    def connect(self, data: st.DataObject) -> None:
        usable = [mapping for mapping in self.mappings() if mapping.phase is Phase.LIVE]
        if usable:
            mapping = data.draw(st.sampled_from(usable))
            self.table.connected(mapping, self.now)
            self.open[mapping.destination] = self.open.get(mapping.destination, 0) + 1

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        destination = data.draw(st.sampled_from(sorted(key for key, count in self.open.items() if count)))
        mapping = self.table.get(destination)
        assert mapping is not None, "a connection lost its mapping"
        self.open[destination] -= 1
        self.table.disconnected(mapping, self.now, sent=0, received=0)
        self.finish(mapping)

    @rule(evict=st.booleans())
    def collect(self, evict: bool) -> None:
        for mapping in self.table.evictable(self.now, 3) if evict else self.table.expired(self.now):
            assert not self.open.get(mapping.destination), "a mapping with an open connection was given up"
            assert self.cached[mapping.destination] <= self.now, "a mapping in a client's cache was given up"
            self.table.withdraw(mapping)
            self.table.withdrawn(mapping)
            self.finish(mapping)

    def finish(self, mapping: Mapping) -> None:
        if mapping.phase is Phase.DRAINING and not mapping.connections:
            self.table.discard(mapping, self.now)
            self.rests[mapping.local_port] = self.now + REST
            self.cached.pop(mapping.destination, None)

    @invariant()
    def no_two_mappings_share_a_port(self) -> None:
        ports = [mapping.local_port for mapping in self.table]
        assert len(ports) == len(set(ports))

    @invariant()
    def connections_are_counted(self) -> None:
        for mapping in self.table:
            assert mapping.connections == self.open.get(mapping.destination, 0)

    def teardown(self) -> None:
        if not hasattr(self, "table"):
            return
        for destination, count in self.open.items():
            for _ in range(count):
                mapping = self.table.get(destination)
                assert mapping is not None
                self.table.disconnected(mapping, self.now, sent=0, received=0)
                self.finish(mapping)
        self.open.clear()
        self.now += 1000.0
        self.collect(evict=False)
        assert len(self.table) == 0, "something idle stayed"


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
