"""What a bench prints and writes."""

from __future__ import annotations

import json
from functools import partial
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report import Figure, alternate, percentile, readable, rows

FIGURE = Figure(
    "throughput", "queries/s", {"tp2": [300.0, 100.0, 200.0], "dnsmasq": [100.0, 50.0, 400.0]}, ("dnsmasq",)
)


def test_a_row_has_the_statistics_of_all_rounds_and_the_ratio_of_medians() -> None:
    assert rows("dns", [FIGURE]) == [
        {
            "bench": "dns",
            "figure": "throughput",
            "contender": "tp2",
            "median": 200.0,
            "min": 100.0,
            "max": 300.0,
            "unit": "queries/s",
            "ratio_to": {"dnsmasq": 2.0},
        },
        {
            "bench": "dns",
            "figure": "throughput",
            "contender": "dnsmasq",
            "median": 100.0,
            "min": 50.0,
            "max": 400.0,
            "unit": "queries/s",
            "ratio_to": {"tp2": 0.5},
        },
    ]


def test_a_contender_with_nobody_beside_it_has_no_ratio() -> None:
    (row,) = rows("dns", [Figure("memory", "MB", {"tp2": [124.0]}, ())])
    assert row["ratio_to"] == {}


def test_nothing_is_divided_by_zero() -> None:
    tp2, other = rows("dns", [Figure("memory", "MB", {"tp2": [124.0], "nothing": [0.0]}, ("nothing",))])
    assert tp2["ratio_to"] == {}
    assert other["ratio_to"] == {"tp2": 0.0}


values = st.just(0.0) | st.floats(min_value=1e-6, max_value=1e12)


@given(st.dictionaries(st.text(min_size=1), st.lists(values, min_size=1), min_size=1, max_size=4))
def test_rows_are_json_whose_median_lies_between_minimum_and_maximum(found: dict[str, list[float]]) -> None:
    written = rows("dns", [Figure("throughput", "queries/s", found, ())])
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    for row in written:
        assert row["min"] <= row["median"] <= row["max"]
        assert row["median"] == pytest.approx(median(found[row["contender"]]), rel=1e-5)
        assert row["contender"] not in row["ratio_to"]


def test_contenders_run_in_turn_and_each_begins_a_round() -> None:
    order: list[str] = []

    def run(name: str) -> int:
        order.append(name)
        return len(order)

    outcomes = alternate(3, {name: partial(run, name) for name in "abc"})
    assert order == list("abc" + "bca" + "cab")
    assert outcomes == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (0.001, 1), (1.0, 100)])
def test_a_percentile_is_one_of_the_values(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


@given(st.lists(values, min_size=1), st.floats(min_value=0.01, max_value=1))
def test_a_percentile_has_its_share_below_it(found: list[float], share: float) -> None:
    at = percentile(found, share)
    assert at in found
    assert sum(value <= at for value in found) >= share * len(found) - 1e-6
    assert sum(value < at for value in found) < share * len(found) + 1e-6


@pytest.mark.parametrize(
    ("value", "text"),
    [(123456.7, "123,457"), (99.96, "100.0"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.012"), (0, "0.000")],
)
def test_numbers_are_shown_with_the_digits_that_say_something(value: float, text: str) -> None:
    assert readable(value) == text
