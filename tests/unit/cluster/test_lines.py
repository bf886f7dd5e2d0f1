from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.cluster.recordings import DIRECTORY
from tp2.cluster.lines import LineSplitter, LineTooLong


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=8)), st.lists(st.integers(0, 100), max_size=8))
def test_lines_do_not_depend_on_where_the_network_cut_them(parts: list[bytes], cuts: list[int]) -> None:
    data = b"\n".join(parts)
    splitter = LineSplitter(100)
    found = [line for chunk in cut(data, cuts) for line in splitter.feed(chunk)]
    assert found == [line for line in data.split(b"\n")[:-1] if line.strip()]


def test_a_line_that_was_cut_off_is_never_returned() -> None:
    splitter = LineSplitter(100)
    assert splitter.feed(b'{"a": 1}\n{"b":') == [b'{"a": 1}']
    assert splitter.feed(b" 2") == []


def test_a_line_of_a_quarter_megabyte_passes() -> None:
    data = (DIRECTORY / "large-endpointslice.watch.jsonl").read_bytes()
    splitter = LineSplitter(1_000_000)
    chunks = [data[place : place + 16384] for place in range(0, len(data), 16384)]
    assert [line for chunk in chunks for line in splitter.feed(chunk)] == [data.rstrip(b"\n")]


@pytest.mark.parametrize("chunks", [[b"x" * 101], [b"x" * 60, b"x" * 60], [b"x" * 101 + b"\n"], [b"a\n" + b"x" * 101]])
def test_a_line_beyond_the_limit_ends_the_stream(chunks: list[bytes]) -> None:
    splitter = LineSplitter(100)
    with pytest.raises(LineTooLong):
        for chunk in chunks:
            splitter.feed(chunk)


def test_a_line_as_long_as_the_limit_passes() -> None:
    assert LineSplitter(100).feed(b"x" * 100 + b"\n") == [b"x" * 100]
