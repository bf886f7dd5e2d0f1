"""When the next attempt is made."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tp2.backoff import Backoff


def test_the_first_retry_is_immediate() -> None:
    assert Backoff().failed(100.0) == 0.0


def test_delays_double_up_to_the_ceiling() -> None:
    backoff = Backoff(first=0.1, ceiling=5.0)
    bounds = [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    for bound in bounds:
        assert bound / 2 <= backoff.failed(0.0) <= bound


def test_a_connection_that_lasted_starts_the_delays_over() -> None:
    backoff = Backoff(settled=5.0)
    for _ in range(10):
        backoff.failed(0.0)
    backoff.succeeded(100.0)
    assert backoff.failed(105.0) == 0.0


def test_a_server_that_accepts_and_drops_is_not_hammered() -> None:
    backoff = Backoff(first=0.1, ceiling=5.0, settled=5.0)
    now, attempts = 0.0, 0
    while now < 60.0:
        backoff.succeeded(now)
        now += backoff.failed(now)
        attempts += 1
    assert attempts <= 35


def test_a_failure_that_settles_nothing_does_not_count_the_time_before_it() -> None:
    backoff = Backoff(settled=5.0)
    backoff.succeeded(0.0)
    backoff.failed(1.0)
    assert backoff.failed(10.0) > 0.0


def test_a_change_of_the_environment_makes_the_next_retry_immediate() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.failed(0.0)
    backoff.reset()
    assert backoff.failed(0.0) == 0.0


def test_the_same_chance_gives_the_same_delays() -> None:
    one, other = (Backoff(random=random.Random(7)) for _ in range(2))
    assert [one.failed(0.0) for _ in range(20)] == [other.failed(0.0) for _ in range(20)]


def test_many_clients_do_not_return_in_step() -> None:
    delays = set()
    for _ in range(50):
        backoff = Backoff()
        backoff.failed(0.0)
        delays.add(backoff.failed(0.0))
    assert len(delays) > 40


def test_a_weekend_offline_does_not_overflow() -> None:
    backoff = Backoff()
    delay = 0.0
    for _ in range(100_000):
        delay = backoff.failed(0.0)
    assert delay == pytest.approx(3.75, abs=1.25)


@given(
    st.lists(st.tuples(st.sampled_from(["failed", "succeeded", "reset"]), st.floats(0, 1e6)), max_size=50),
    st.floats(0.01, 10),
    st.floats(0.01, 100),
)
def test_no_delay_is_negative_or_above_the_ceiling(
    events: list[tuple[str, float]], first: float, ceiling: float
) -> None:
    backoff = Backoff(first=first, ceiling=ceiling)
    now = 0.0
    for event, passed in events:
        now += passed
        match event:
            case "failed":
                assert 0.0 <= backoff.failed(now) <= ceiling
            case "succeeded":
                backoff.succeeded(now)
            case "reset":
                backoff.reset()
