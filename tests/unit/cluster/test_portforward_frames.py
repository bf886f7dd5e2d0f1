"""What a port-forward's WebSocket carries comes out as the pod's bytes, or as the server's words."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cluster.recordings import lines
from tp2.cluster.portforward_frames import NotPortForward, Reader, StreamFailed, frame

PORTS = st.integers(1, 65535)


def binary(name: str, direction: str) -> list[bytes]:
    """The binary messages of a recording, as far as they were recorded whole."""
    frames: list[Any] = lines(f"portforward-{name}.jsonl")[1:]
    return [bytes.fromhex(f["hex"]) for f in frames if f.get("dir") == direction and f["opcode"] == 2 and "hex" in f]


def test_the_bytes_of_a_recorded_stream_are_those_of_the_pod() -> None:
    reader = Reader(9000)
    assert b"".join(map(reader.read, binary("echo", "server>client"))) == b"hello\n"
    reader = Reader(8080)
    answer = b"".join(map(reader.read, binary("http-remote-close", "server>client")))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"host=db-1 remote=127.0.0.1:49134 reqhost=x path=/\n")


def test_what_is_sent_looks_as_recorded() -> None:
    assert [frame(b"hello\n")] == binary("echo", "client>server")


@pytest.mark.parametrize(
    ("name", "port", "before", "words"),
    [
        ("nothing-listens", 9999, b"", "dial tcp4 127.0.0.1:9999: connect: connection refused"),
        ("pod-deleted", 9000, b"line 0\nline 1\nline 2\nline 3\n", "write: broken pipe"),
    ],
)
def test_a_recorded_failure_is_reported_in_the_servers_words(name: str, port: int, before: bytes, words: str) -> None:
    reader, received = Reader(port), b""
    with pytest.raises(StreamFailed) as caught:
        for message in binary(name, "server>client"):
            received += reader.read(message)
    assert received == before
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"error forwarding port {port} to pod ")


@given(PORTS, st.binary(), st.data())
def test_a_stream_survives_any_way_of_cutting_it(port: int, data: bytes, draw: st.DataObject) -> None:
    stream = port.to_bytes(2, "little") + data
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    reader = Reader(port)
    assert b"".join(reader.read(b"\0" + piece) for piece in pieces) == data


@given(PORTS, PORTS, st.sampled_from([b"\0", b"\1"]))
def test_the_number_of_another_port_is_not_accepted(port: int, other: int, channel: bytes) -> None:
    reader = Reader(port)
    message = channel + other.to_bytes(2, "little")
    if port == other:
        assert reader.read(message) == b""
    else:
        with pytest.raises(NotPortForward):
            reader.read(message)


@given(PORTS, st.lists(st.binary(max_size=8)))
def test_garbage_raises_nothing_else(port: int, messages: list[bytes]) -> None:
    reader = Reader(port)
    for message in messages:
        with contextlib.suppress(NotPortForward, StreamFailed):
            reader.read(message)


@pytest.mark.parametrize("message", [b"", b"\2", b"\xff\x28\x23"])
def test_a_channel_that_was_not_asked_for_is_named(message: bytes) -> None:
    with pytest.raises(NotPortForward, match=r"unknown channel|empty message"):
        Reader(9000).read(message)


def test_the_servers_words_are_one_line_of_bounded_length() -> None:
    reader = Reader(1)
    reader.read(b"\1\1\0")
    with pytest.raises(StreamFailed) as caught:
        reader.read(b"\1" + b"no \xff\n way " * 1000)
    assert str(caught.value).startswith("no \ufffd way no \ufffd way")
    assert len(str(caught.value)) == 500
