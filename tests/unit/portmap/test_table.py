"""The mapping table's promises, by example. Against a model: :mod:`tests.unit.portmap.test_table_model`."""

from __future__ import annotations

import pytest

from tp2.portmap.table import Exhausted, Mapping, Phase, Table
from tp2.types import Destination, Wanted

IDLE = 60.0
REST = 30.0


def wanted(number: int = 1, ttl: int = 5) -> Wanted:
    return Wanted(f"svc-{number}.ns", Destination(f"10.96.0.{number}", 80), ttl)


def wanted6(number: int = 1, ttl: int = 5) -> Wanted:
    return Wanted(f"svc-{number}.ns", Destination(f"fd00:10:96::{number}", 80), ttl)


def table(ports: int = 10, capacity: int | None = None, further: tuple[str, ...] = ()) -> Table:
    return Table(range(20000, 20000 + ports), further=further, capacity=capacity, idle_timeout=IDLE, rest=REST)


def live(of: Table, item: Wanted, now: float = 0.0) -> Mapping:
    mapping = of.lease(item, now)
    of.opened(mapping)
    return mapping


def let_go(of: Table, mapping: Mapping, now: float) -> None:
    of.withdraw(mapping)
    of.withdrawn(mapping)
    of.discard(mapping, now)


def test_the_same_destination_keeps_its_port() -> None:
    mappings = table()
    first = live(mappings, wanted())
    assert mappings.lease(wanted(), 10.0) is first
    assert len(mappings) == 1


def test_two_services_on_the_same_port_have_a_local_port_each() -> None:
    mappings = table()
    assert live(mappings, wanted(1)).local_port != live(mappings, wanted(2)).local_port


def test_a_mapping_is_collected_after_the_idle_timeout() -> None:
    mappings = table()
    mapping = live(mappings, wanted())
    assert mappings.expired(IDLE - 0.1) == []
    assert mappings.expired(IDLE) == [mapping]


def test_what_was_not_collected_is_named_again() -> None:
    mappings = table()
    mapping = live(mappings, wanted())
    assert mappings.expired(IDLE) == [mapping]
    assert mappings.expired(IDLE) == [mapping]


def test_a_mapping_whose_rule_could_not_be_taken_away_expires_again() -> None:
    mappings = table()
    mapping = live(mappings, wanted())
    assert mappings.expired(IDLE) == [mapping]
    mappings.withdraw(mapping)
    assert mappings.expired(IDLE) == []
    mappings.opened(mapping)
    assert mappings.expired(IDLE) == [mapping]


def test_an_answer_renews_the_lease() -> None:
    mappings = table()
    mapping = live(mappings, wanted())
    assert mappings.renew(wanted(), 50.0)
    assert mappings.expired(IDLE) == []
    assert mappings.expired(50.0 + IDLE) == [mapping]


def test_nothing_expires_before_the_table_says_so() -> None:
    mappings = table()
    assert mappings.next_expiry() is None
    live(mappings, wanted(1))
    live(mappings, wanted(2, ttl=1000))
    assert mappings.next_expiry() == IDLE
    let_go(mappings, mappings.expired(IDLE)[0], IDLE)
    assert mappings.next_expiry() == 1000.0


def test_a_mapping_with_an_open_connection_is_never_collected() -> None:
    mappings = table()
    mapping = live(mappings, wanted())
    mappings.connected(mapping, 1.0)
    assert mappings.expired(1e9) == []
    assert mappings.evictable(1e9, 1) == []
    assert not mappings.may_go(mapping, 1e9)
    mappings.disconnected(mapping, 1e9, sent=3, received=4)
    assert mappings.expired(1e9) == []
    assert mappings.expired(1e9 + IDLE) == [mapping]
    assert (mapping.bytes_sent, mapping.bytes_received, mapping.total_connections) == (3, 4, 1)


def test_a_mapping_that_may_be_in_a_clients_cache_is_never_collected() -> None:
    mappings = table()
    mapping = live(mappings, wanted(ttl=1000))
    assert mappings.expired(999.0) == []
    assert mappings.evictable(999.0, 1) == []
    assert mappings.expired(1000.0) == [mapping]


def test_a_pinned_mapping_stays_until_it_is_unpinned() -> None:
    mappings = table(capacity=1)
    mapping = live(mappings, wanted(ttl=0))
    mappings.pin(mapping)
    assert mapping.state == "pinned"
    assert mappings.expires_at(mapping) is None
    assert mappings.expired(1e9) == []
    assert mappings.evictable(1e9, 1) == []
    mappings.unpin(mapping)
    assert mapping.state == "idle"
    assert mappings.expired(1e9) == [mapping]


def test_a_shorter_answer_does_not_cut_the_lease_of_a_longer_one() -> None:
    mappings = table()
    mapping = live(mappings, wanted(ttl=1000))
    mappings.renew(wanted(ttl=1), 1.0)
    assert mapping.answered_until == 1000.0


def test_a_port_rests_before_it_is_used_again() -> None:
    mappings = table(ports=1)
    mapping = live(mappings, wanted(1))
    let_go(mappings, mapping, 100.0)
    with pytest.raises(Exhausted, match="rest") as caught:
        mappings.lease(wanted(2), 100.0 + REST - 0.1)
    assert not caught.value.by_giving_up
    assert mappings.lease(wanted(2), 100.0 + REST).local_port == mapping.local_port


def test_the_port_that_rested_longest_is_used_first() -> None:
    mappings = table(ports=8)
    assert [live(mappings, wanted(number)).local_port for number in (1, 2, 3)] == [20000, 20001, 20002]
    for number, at in ((2, 10.0), (1, 20.0)):
        mapping = mappings.get(wanted(number).destination)
        assert mapping is not None
        let_go(mappings, mapping, at)
    assert [live(mappings, wanted(number), 1e3).local_port for number in range(4, 11) if number != 9] == [
        *(20003, 20004, 20005, 20006, 20007),
        20001,
    ]


def test_each_family_has_all_ports_and_the_numbers_meet_last() -> None:
    mappings = table(ports=8)
    assert [live(mappings, wanted6(number)).local_port for number in (1, 2)] == [20007, 20006]
    assert live(mappings, wanted(1)).local_port == 20000
    assert {mapping.local_address for mapping in mappings} == {"127.0.0.1", "::1"}


def test_when_the_loopback_addresss_ports_run_short_further_addresses_serve() -> None:
    mappings = table(ports=2, further=("127.0.0.2", "127.0.0.3"))
    locals_ = [(m.local_address, m.local_port) for m in (live(mappings, wanted(number)) for number in range(1, 7))]
    assert locals_ == [(f"127.0.0.{host}", port) for host in (1, 2, 3) for port in (20000, 20001)]
    assert len(set(locals_)) == 6


def test_the_further_addresses_are_for_ipv4_only() -> None:
    mappings = table(ports=1, further=("127.0.0.2",))
    live(mappings, wanted6(1))
    with pytest.raises(Exhausted, match="all 1 ports are mapped"):
        mappings.lease(wanted6(2), 0.0)


def test_a_rested_port_is_used_before_a_further_address_is_begun() -> None:
    mappings = table(ports=1, further=("127.0.0.2",))
    let_go(mappings, live(mappings, wanted(1)), 0.0)
    assert live(mappings, wanted(2), REST).local_address == "127.0.0.1"
    assert live(mappings, wanted(3), REST).local_address == "127.0.0.2"


def test_a_draining_mapping_that_is_asked_for_again_keeps_its_port_but_needs_its_rule() -> None:
    mappings = table()
    mapping = live(mappings, wanted())
    mappings.withdraw(mapping)
    mappings.withdrawn(mapping)
    assert mapping.state == "draining"
    assert not mappings.renew(wanted(), 1.0)
    assert mappings.lease(wanted(), 1.0) is mapping
    assert mapping.phase is Phase.OPENING


def test_a_full_table_gives_up_the_longest_unused_mapping_first() -> None:
    mappings = table(capacity=2)
    older, newer = live(mappings, wanted(1), now=0.0), live(mappings, wanted(2), now=1.0)
    with pytest.raises(Exhausted) as caught:
        mappings.lease(wanted(3), 10.0)
    assert caught.value.by_giving_up
    assert mappings.evictable(10.0, 5) == [older, newer]
    mappings.renew(wanted(1, ttl=0), 11.0)
    assert mappings.evictable(12.0, 1) == [newer]
    mappings.connected(newer, 13.0)
    mappings.disconnected(newer, 14.0, sent=0, received=0)
    assert mappings.evictable(14.0, 1) == [older]


def test_when_a_familys_ports_are_mapped_only_its_own_make_room() -> None:
    mappings = table(ports=1)
    other, same = live(mappings, wanted(1, ttl=0)), live(mappings, wanted6(1, ttl=0))
    with pytest.raises(Exhausted) as caught:
        mappings.lease(wanted6(2), 10.0)
    assert caught.value.by_giving_up
    assert mappings.evictable(10.0, 5, wanted6(2).destination) == [same]
    assert mappings.evictable(10.0, 5) == [other, same]


def test_some_ports_are_held_back_so_that_an_eviction_finds_a_rested_one() -> None:
    mappings = table(ports=80)
    for number in range(1, 71):
        live(mappings, wanted(number))
    with pytest.raises(Exhausted) as caught:
        mappings.lease(wanted(71), 10.0)
    assert caught.value.by_giving_up
    let_go(mappings, mappings.evictable(10.0, 1)[0], 10.0)
    assert mappings.lease(wanted(71), 10.0).local_port == 20070
    assert table(ports=1).capacity == 2  # one a family


def test_a_port_that_belongs_to_another_program_is_replaced_and_tried_later() -> None:
    mappings = table(ports=2)
    mapping = mappings.lease(wanted(), 0.0)
    assert mapping.local_port == 20000
    mappings.another_port(mapping, 0.0)
    assert mapping.local_port == 20001
    with pytest.raises(Exhausted):
        mappings.another_port(mapping, 1.0)
    assert mapping.local_port == 20001
    assert mappings.lease(wanted(2), REST).local_port == 20000


def test_what_is_remembered_of_mappings_that_are_gone_is_bounded() -> None:
    mappings = table(ports=500)
    kept = live(mappings, wanted(1, ttl=0))
    for turn in range(2000):
        # Given up for another long before it would have expired.
        let_go(mappings, live(mappings, wanted(2, ttl=0), turn * 1e-3), turn * 1e-3 - REST)
    assert len(mappings._queue) < 200
    assert kept in mappings.expired(1e6)
