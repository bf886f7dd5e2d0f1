"""The mapping table against a model of what is around it: clients with caches, connections, listeners, rules, time.

The model knows what a user can see: which rule leads where, who has an answer in a cache, who is connected to what.
It never asks the table what is right.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tp2.portmap.ports import SPARE_SHARE
from tp2.portmap.table import Exhausted, Mapping, Phase, Table
from tp2.types import Destination, Wanted

IDLE = 60.0
REST = 30.0

#: More of them than there are ports, of both families, two of which share an address.
DESTINATIONS = [
    *(Destination(f"10.96.0.{number}", port) for number in range(1, 7) for port in (80, 443)),
    *(Destination(f"fd00:10:96::{number}", 80) for number in range(1, 7)),
]

LocalSocket = tuple[str, int]


class TableMachine(RuleBasedStateMachine):
    """Answers, connections, pins, collection, eviction, failures and time in any order."""

    @initialize(
        ports=st.integers(1, 9),
        further=st.sampled_from([(), ("127.0.0.2",), ("127.0.0.2", "127.0.0.3")]),
        capacity=st.none() | st.integers(1, 12),
    )
    def build(self, ports: int, further: tuple[str, ...], capacity: int | None) -> None:
        self.table = Table(
            range(20000, 20000 + ports), further=further, capacity=capacity, idle_timeout=IDLE, rest=REST
        )
        self.ports, self.further, self.most = ports, len(further), capacity
        self.now = 0.0
        # What stands outside: a listener for a destination, and the rule that leads there.
        self.listeners: dict[LocalSocket, Destination] = {}
        self.standing: dict[Destination, LocalSocket] = {}
        self.closed: dict[LocalSocket, float] = {}
        # Answers in clients' caches, with when they end and the rule that they were given with.
        self.caches: list[tuple[float, Destination, LocalSocket]] = []
        self.open: Counter[Destination] = Counter()
        self.pinned: set[Destination] = set()
        self.used: dict[Destination, float] = {}

    # What happens.

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, REST, IDLE]) | st.floats(0.0, 100.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.caches = [entry for entry in self.caches if entry[0] > self.now]

    @rule(
        destination=st.sampled_from(DESTINATIONS),
        ttl=st.integers(0, 120),
        outcome=st.sampled_from(["works", "works", "works", "port taken", "rule refused"]),
    )
    def answer(self, destination: Destination, ttl: int, outcome: str) -> None:
        item = Wanted("svc.ns", destination, ttl)
        if not self.table.renew(item, self.now):
            mapping = self.lease(item)
            if mapping is None or not self.open_listener(mapping, port_taken=outcome == "port taken"):
                return
            if outcome == "rule refused":
                self.table.withdrawn(mapping)
                self.finish(mapping)
                return
            self.table.opened(mapping)
            self.standing[destination] = local(mapping)
        if ttl:
            self.caches.append((self.now + ttl, destination, self.standing[destination]))
        self.used[destination] = self.now

    def lease(self, item: Wanted) -> Mapping | None:
        """As the mapper does: give something up for it, if that helps."""
        try:
            return self.table.lease(item, self.now)
        except Exhausted as exhausted:
            if not exhausted.by_giving_up:
                return None
        same_family = self.family_is_full(item.destination)
        candidates = [
            self.used[mapping.destination]
            for mapping in self.table
            if mapping.phase is Phase.LIVE
            and self.may_be_let_go(mapping.destination)
            and (not same_family or mapping.destination.is_ipv6 is item.destination.is_ipv6)
        ]
        victims = self.table.evictable(self.now, 1, item.destination)
        assert bool(victims) is bool(candidates), "there is something to give up, or there is not"
        for mapping in victims:
            assert self.used[mapping.destination] == min(candidates), "not the longest unused one was given up"
            self.give_up(mapping)
        try:
            return self.table.lease(item, self.now)
        except Exhausted:
            return None

    def family_is_full(self, destination: Destination) -> bool:
        mapped = sum(mapping.destination.is_ipv6 is destination.is_ipv6 for mapping in self.table)
        sockets = self.ports * (1 if destination.is_ipv6 else 1 + self.further)
        return mapped == sockets - sockets // SPARE_SHARE

    def open_listener(self, mapping: Mapping, *, port_taken: bool) -> bool:
        if self.listeners.get(local(mapping)) == mapping.destination:
            return True  # It is still open from before.
        if port_taken:
            before = local(mapping)
            self.check_rested(before)
            try:
                self.table.another_port(mapping, self.now)
            except Exhausted:
                self.table.discard(mapping, self.now)
                self.closed[before] = self.now
                return False
            self.closed[before] = self.now
        self.check_rested(local(mapping))
        assert local(mapping) not in self.listeners, "a port has two owners"
        self.listeners[local(mapping)] = mapping.destination
        return True

    def check_rested(self, socket: LocalSocket) -> None:
        assert self.now >= self.closed.get(socket, -REST) + REST, "a port was used before it had rested"

    @precondition(lambda self: self.standing)
    @rule(data=st.data())
    def connect(self, data: st.DataObject) -> None:
        """Anybody may connect by any rule, whether or not they have looked the name up."""
        destination = data.draw(st.sampled_from(sorted(self.standing)))
        owner = self.listeners[self.standing[destination]]
        assert owner == destination, "a connection was misdelivered"
        mapping = self.table.get(owner)
        assert mapping is not None
        self.table.connected(mapping, self.now)
        self.open[owner] += 1
        self.used[owner] = self.now

    @precondition(lambda self: self.caches)
    @rule(data=st.data())
    def connect_by_a_cached_answer(self, data: st.DataObject) -> None:
        _, destination, socket = data.draw(st.sampled_from(self.caches))
        assert self.standing.get(destination) == socket, "a cached answer has lost its rule"
        assert self.listeners[socket] == destination, "a cached answer points at a port of another service"

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        destination = data.draw(st.sampled_from(sorted(self.open)))
        self.end_one(destination)

    def end_one(self, destination: Destination) -> None:
        mapping = self.table.get(destination)
        assert mapping is not None, "a connection lost its mapping"
        assert self.listeners[local(mapping)] == destination
        self.open -= Counter([destination])
        self.table.disconnected(mapping, self.now, sent=1, received=2)
        self.used[destination] = self.now
        self.finish(mapping)

    @precondition(lambda self: self.standing)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        destination = data.draw(st.sampled_from(sorted(self.standing)))
        mapping = self.table.get(destination)
        assert mapping is not None
        self.table.pin(mapping)
        self.pinned.add(destination)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        destination = data.draw(st.sampled_from(sorted(self.pinned)))
        mapping = self.table.get(destination)
        assert mapping is not None, "a pinned mapping is gone"
        self.table.unpin(mapping)
        self.pinned.discard(destination)

    @rule(works=st.booleans())
    def collect(self, works: bool) -> None:
        soonest = self.table.next_expiry()
        expired = self.table.expired(self.now)
        assert not expired or (soonest is not None and soonest <= self.now), "something expired unannounced"
        for mapping in expired:
            assert self.may_be_let_go(mapping.destination)
            assert self.used[mapping.destination] + IDLE <= self.now, "it was used a moment ago"
            if works:
                self.give_up(mapping)
            else:
                self.table.withdraw(mapping)
                self.table.opened(mapping)

    @rule(count=st.integers(1, 3))
    def evict(self, count: int) -> None:
        for mapping in self.table.evictable(self.now, count):
            self.give_up(mapping)

    def may_be_let_go(self, destination: Destination) -> bool:
        cached = any(entry[1] == destination for entry in self.caches)
        return not self.open[destination] and destination not in self.pinned and not cached

    def give_up(self, mapping: Mapping) -> None:
        assert not self.open[mapping.destination], "a mapping with an open connection was given up"
        assert mapping.destination not in self.pinned, "a pinned mapping was given up"
        assert self.may_be_let_go(mapping.destination), "a mapping in a client's cache was given up"
        self.table.withdraw(mapping)
        del self.standing[mapping.destination]
        self.table.withdrawn(mapping)
        self.finish(mapping)

    def finish(self, mapping: Mapping) -> None:
        if mapping.phase is Phase.DRAINING and not mapping.connections:
            del self.listeners[local(mapping)]
            self.closed[local(mapping)] = self.now
            self.table.discard(mapping, self.now)

    # What must always hold.

    @invariant()
    def no_two_mappings_share_a_port(self) -> None:
        if hasattr(self, "table"):
            sockets = [local(mapping) for mapping in self.table]
            assert len(sockets) == len(set(sockets))
            assert self.listeners == {local(mapping): mapping.destination for mapping in self.table}

    @invariant()
    def no_connection_lost_its_mapping(self) -> None:
        if hasattr(self, "table"):
            counts = {mapping.destination: mapping.connections for mapping in self.table if mapping.connections}
            assert counts == dict(self.open)

    @invariant()
    def every_cached_answer_arrives_where_it_should(self) -> None:
        if hasattr(self, "table"):
            for _, destination, socket in self.caches:
                assert self.standing.get(destination) == socket
                assert self.listeners.get(socket) == destination

    @invariant()
    def there_are_no_more_than_there_may_be(self) -> None:
        if hasattr(self, "table"):
            assert len(self.table) <= self.table.capacity
            assert self.most is None or len(self.table) <= self.most

    def teardown(self) -> None:
        if not hasattr(self, "table"):
            return
        for destination in list(self.open.elements()):
            self.end_one(destination)
        for destination in self.pinned:
            mapping = self.table.get(destination)
            assert mapping is not None
            self.table.unpin(mapping)
        self.pinned.clear()
        self.time_passes(1000.0)
        self.collect(works=True)
        assert len(self.table) == 0, "something idle stayed"
        assert not self.listeners
        assert not self.standing
        assert self.table.next_expiry() is None


def local(mapping: Mapping) -> LocalSocket:
    return mapping.local_address, mapping.local_port


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
