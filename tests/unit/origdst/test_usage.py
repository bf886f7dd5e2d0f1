"""What is in use is shown, what was a while ago is forgotten, and there are never too many."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tp2.origdst.usage import Usage
from tp2.types import Destination

MEMORY = 60.0


def destination(number: int) -> Destination:
    return Destination(f"10.96.0.{number}", 80)


def shown(usage: Usage) -> list[str]:
    return sorted(use.destination.address for use in usage)


def test_a_destination_is_shown_while_it_is_connected_and_for_a_while_after() -> None:
    usage = Usage(MEMORY)
    use = usage.connected(destination(1), "web.shop", 0.0)
    usage.forget(1000.0)
    assert (use.state, use.connections, usage.expires_at(use)) == ("active", 1, None)
    usage.disconnected(use, 1000.0, sent=3, received=4)
    usage.forget(1000.0 + MEMORY - 0.1)
    assert (use.state, use.bytes_sent, use.bytes_received) == ("idle", 3, 4)
    assert usage.expires_at(use) == 1000.0 + MEMORY
    usage.forget(1000.0 + MEMORY)
    assert len(usage) == 0


def test_connections_to_one_destination_are_counted_together() -> None:
    usage = Usage(MEMORY)
    first, second = (usage.connected(destination(1), "web.shop", 0.0) for _ in range(2))
    assert first is second
    usage.disconnected(first, 1.0, sent=1, received=0)
    assert (first.connections, first.total_connections, first.bytes_sent) == (1, 2, 1)
    assert usage.connected(destination(1), "web.shop", 2.0) is first


def test_a_pinned_destination_stays() -> None:
    usage = Usage(MEMORY)
    usage.pin(destination(1), "web.shop", 0.0)
    usage.forget(1e9)
    assert [use.state for use in usage] == ["pinned"]
    usage.unpin(destination(1), 1e9)
    usage.forget(1e9)
    assert len(usage) == 0


def test_of_too_many_the_longest_unused_are_forgotten_and_never_a_connected_one() -> None:
    usage = Usage(MEMORY, most=2)
    connected = usage.connected(destination(1), "", 0.0)
    for number in range(2, 6):
        usage.disconnected(usage.connected(destination(number), "", number), number, sent=0, received=0)
    assert shown(usage) == ["10.96.0.1", "10.96.0.4", "10.96.0.5"]
    usage.clear()
    assert list(usage) == [connected]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["open", "close", "pin", "unpin", "wait"])), max_size=60))
@settings(max_examples=100, deadline=None)
def test_against_counting(events: list[tuple[int, str]]) -> None:
    usage, now = Usage(MEMORY, most=3), 0.0
    opened: Counter[Destination] = Counter()
    pinned: set[Destination] = set()
    for number, event in events:
        there = destination(number)
        match event:
            case "open":
                usage.connected(there, "", now)
                opened[there] += 1
            case "close" if opened[there]:
                use = usage.get(there)
                assert use is not None, "a connection was forgotten"
                usage.disconnected(use, now, sent=0, received=0)
                opened[there] -= 1
            case "pin":
                usage.pin(there, "", now)
                pinned.add(there)
            case "unpin":
                usage.unpin(there, now)
                pinned.discard(there)
            case "wait":
                now += 40.0
        for use in usage:
            assert use.connections == opened[use.destination]
            assert use.pinned == (use.destination in pinned)
        assert pinned | {there for there in opened if opened[there]} <= {use.destination for use in usage}
        assert sum(not use.kept for use in usage) <= 3
    usage.forget(now + MEMORY)
    assert all(use.kept for use in usage)
