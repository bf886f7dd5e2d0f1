"""What the soak lets pass, and the bytes that it sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.exchange import RECEIPT_SIZE, REQUEST_SIZE, Plan, Receipt, Request, payload, plan
from bench.soak import ROOM, SHARE, Level, NotLevel, check_level, growth


def levels(memory: list[float], descriptors: list[int] | None = None) -> list[Level]:
    return [Level(value, count) for value, count in zip(memory, descriptors or [30] * len(memory), strict=True)]


def test_what_stays_as_it_is_passes() -> None:
    check_level("a daemon", levels([60.0, 60.3, 59.9, 60.1]))
    # A connection to somewhere may be open at one of the rests.
    check_level("a daemon", levels([60.0, 60.0, 60.0], [30, 31, 30]))


def test_memory_that_grows_in_every_round_is_reported() -> None:
    with pytest.raises(NotLevel, match=r"the memory in MB \(a daemon\) is not level: .*: 60, 62, 64, 66"):
        check_level("a daemon", levels([60.0, 62.0, 64.0, 66.0]))


def test_a_single_odd_value_is_no_growth() -> None:
    check_level("a daemon", levels([60.0, 60.1, 75.0, 60.2, 60.0]))


def test_one_descriptor_that_is_left_is_reported() -> None:
    with pytest.raises(NotLevel, match=r"descriptors \(a helper\) is not level: .*: 9, 9, 10"):
        check_level("a helper", levels([20.0, 20.0, 20.0], [9, 9, 10]))


@given(
    st.floats(1, 1000),
    st.floats(-10, 10),
    st.integers(2, 10),
)
def test_growth_is_that_of_a_line(first: float, step: float, count: int) -> None:
    values = [first + step * number for number in range(count)]
    assert growth(values) == pytest.approx(step * (count - 1), abs=1e-6)


@given(st.floats(0.1, 1000), st.integers(3, 8))
def test_a_leak_of_more_than_there_is_room_for_never_passes(first: float, rounds: int) -> None:
    leak = (max(ROOM, SHARE * first) + 0.1) / (rounds - 1)
    with pytest.raises(NotLevel):
        check_level("a daemon", levels([first + leak * number for number in range(rounds)]))


@given(st.integers(0, 2**40), st.integers(0, 300_000), st.integers(0, 300_000))
def test_bytes_that_are_sent_in_two_goes_are_those_of_one(number: int, size: int, more: int) -> None:
    once = b"".join(payload(number, size + more))
    assert once == b"".join(payload(number, size)) + b"".join(payload(number, more, size))
    assert len(once) == size + more


def test_each_connection_has_bytes_of_its_own() -> None:
    assert len({b"".join(payload(number, 100)) for number in range(2000)}) == 2000


def test_the_same_number_has_the_same_plan_and_all_sorts_of_plans_occur() -> None:
    plans = [plan(number) for number in range(5000)]
    assert plans == [plan(number) for number in range(5000)]
    assert any(todo.broken for todo in plans)
    assert max(todo.down for todo in plans) > 4_000_000
    assert max(todo.up for todo in plans) > 4_000_000
    assert sum(todo.up + todo.down < 5000 for todo in plans) > 3000
    assert all(isinstance(todo, Plan) for todo in plans)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.booleans())
def test_a_request_is_read_as_it_was_written(number: int, down: int, whole: bool) -> None:
    request = Request(number, down, whole)
    assert Request.unpack(request.pack()) == request
    assert len(request.pack()) == REQUEST_SIZE


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1), st.ip_addresses(v=4), st.integers(0, 65535))
def test_a_receipt_is_read_as_it_was_written(digest: bytes, count: int, address: object, port: int) -> None:
    receipt = Receipt(digest, count, digest[::-1], str(address), port)
    assert Receipt.unpack(receipt.pack()) == receipt
    assert len(receipt.pack()) == RECEIPT_SIZE
