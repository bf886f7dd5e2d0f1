"""A bulk transfer fills the link, and not the buffers before it: others come through beside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tp2.socks.inflight import FIRST, NEAR, InFlight, first

WINDOW = 2 * 1024 * 1024
OPENSSH = "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u7"


def transfer(limit: InFlight, round_trip: float, rate: float, rounds: int) -> None:
    """As much as may be, in round trips of which each brings the word of what was taken in the last one."""
    now = 0.0
    for _ in range(rounds):
        now += round_trip
        limit.taken(int(min(limit.limit, rate * round_trip)), now, round_trip)


def test_a_near_link_is_filled_with_little_on_its_way() -> None:
    limit = InFlight(FIRST, WINDOW, 0.0)
    transfer(limit, NEAR / 2, 1e9, 1000)
    assert limit.limit == FIRST


def test_a_far_link_is_filled_within_a_few_round_trips() -> None:
    limit = InFlight(FIRST, WINDOW, 0.0)
    transfer(limit, 0.08, 1e9, 4)
    assert limit.limit == WINDOW


def test_who_says_half_of_it_in_each_round_trip_is_held_back_too() -> None:
    limit = InFlight(FIRST, WINDOW, 0.0)
    for n in range(1, 9):
        limit.taken(limit.limit // 2, n * 0.08, 0.08)
    assert limit.limit == WINDOW


def test_a_slow_transfer_needs_no_more() -> None:
    limit = InFlight(FIRST, WINDOW, 0.0)
    transfer(limit, 0.08, 1e6, 100)
    assert limit.limit == FIRST


@pytest.mark.parametrize("server", ["SSH-2.0-dropbear_2022.83", "SSH-2.0-Go", "SSH-2.0-AsyncSSH_2.24.0", "None", ""])
def test_a_server_that_may_wait_for_more_gets_all_that_it_takes(server: str) -> None:
    assert first(server) is None
    assert InFlight(first(server), WINDOW, 0.0).limit == WINDOW
    assert first(OPENSSH) == FIRST


@given(
    window=st.integers(0, 1 << 32),
    taken=st.lists(st.tuples(st.integers(0, 1 << 24), st.floats(0, 1), st.floats(0, 1)), max_size=50),
)
def test_it_is_never_more_than_the_window_and_never_less_than_before(
    window: int, taken: list[tuple[int, float, float]]
) -> None:
    limit, now = InFlight(FIRST, window, 0.0), 0.0
    known = limit.limit
    assert known == min(window, FIRST)
    for size, passed, round_trip in taken:
        now += passed
        known += limit.taken(size, now, round_trip)
        assert known == limit.limit <= window
