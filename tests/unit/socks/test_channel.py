"""A channel's promises: every byte in order, never more than the other side takes, and one end."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tp2.socks.channel import (
    HIGH_WATER,
    LARGEST_WINDOW,
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_WINDOW_ADJUST,
    WINDOW,
    Channel,
    ProtocolViolation,
)

THEIRS = 7


class Link:
    """A connection that keeps what is sent, and is as busy as a test wants."""

    def __init__(self) -> None:
        self.free = True
        self.first: int | None = None
        self.nearest = 0.0
        self.messages: list[tuple[int, bytes]] = []
        self.packets: list[bytes] = []
        self.channels: dict[int, Channel] = {}
        self.turns: list[Channel] = []
        self.now = 0.0
        self.spare = LARGEST_WINDOW

    def register(self, channel: Channel) -> int:
        self.channels[len(self.channels)] = channel
        return len(self.channels) - 1

    def forget(self, number: int) -> None:
        del self.channels[number]

    def answered(self, seconds: float) -> None:
        pass

    def send(self, message: bytes) -> None:
        self.messages.append((message[0], message[1:]))

    def send_data(self, peer: int, data: bytes | memoryview) -> None:
        assert peer == THEIRS
        assert self.free
        assert MSG_CHANNEL_EOF not in self.kinds
        assert MSG_CHANNEL_CLOSE not in self.kinds
        self.packets.append(bytes(data))

    def wait_turn(self, channel: Channel) -> None:
        assert channel not in self.turns
        self.turns.append(channel)

    def take_turns(self) -> None:
        while self.free and self.turns:
            channel = self.turns.pop(0)
            if channel.take_turn():
                self.turns.append(channel)

    def lend(self, size: int) -> bool:
        if size > self.spare:
            return False
        self.spare -= size
        return True

    def give_back(self, size: int) -> None:
        self.spare += size

    def time(self) -> float:
        return self.now

    @property
    def kinds(self) -> list[int]:
        return [kind for kind, _ in self.messages]

    @property
    def sent(self) -> bytes:
        return b"".join(self.packets)

    @property
    def granted(self) -> list[int]:
        return [struct.unpack(">II", rest)[1] for kind, rest in self.messages if kind == MSG_CHANNEL_WINDOW_ADJUST]


class End:
    """Remembers what it is told; pauses reading after each delivery if *shy*."""

    def __init__(self) -> None:
        self.shy = False
        self.channel: Channel | None = None
        self.taken = bytearray()
        self.eof = False
        self.full = False
        self.ending: str | None = None
        self.refusal: tuple[int, str] | None = None

    @property
    def received(self) -> bytes:
        return bytes(self.taken)

    def opened(self) -> End:
        return self

    def refused(self, code: int, reason: str) -> None:
        assert self.channel is None
        assert self.refusal is None
        self.refusal = (code, reason)

    def lost(self) -> None:
        self.refused(0, "lost")

    def channel_opened(self, channel: Channel) -> None:
        self.channel = channel

    def channel_data(self, data: bytes | memoryview) -> None:
        assert not self.eof
        assert self.ending is None
        self.taken += data
        if self.shy and self.channel:
            self.channel.pause_reading()

    def channel_eof(self) -> None:
        assert not self.eof
        assert self.ending is None
        self.eof = True

    def channel_full(self) -> None:
        assert not self.full
        self.full = True

    def channel_drained(self) -> None:
        assert self.full
        self.full = False

    def channel_closed(self, in_order: bool) -> None:
        assert self.ending is None
        self.ending = "order" if in_order else "lost"


def opened(window: int = 1000, packet_size: int = 100, round_trip: float = 0.0) -> tuple[Link, End, Channel]:
    link, end = Link(), End()
    channel = Channel(link, end)
    channel.open("db.shop", 5432)
    link.now = round_trip
    channel.opened(THEIRS, window, packet_size)
    assert end.channel is channel
    return link, end, channel


def test_opening_names_the_destination_as_rfc_4254_has_it() -> None:
    link = Link()
    Channel(link, End()).open("db.shop", 5432)
    ((kind, rest),) = link.messages
    assert kind == MSG_CHANNEL_OPEN
    assert rest.startswith(b"\0\0\0\x0cdirect-tcpip" + struct.pack(">II", 0, WINDOW))
    assert rest[28:] == b"\0\0\0\x07db.shop" + struct.pack(">I", 5432) + b"\0\0\0\x09127.0.0.1" + bytes(4)


def test_a_refused_channel_says_why_and_is_forgotten() -> None:
    link, end = Link(), End()
    channel = Channel(link, end)
    channel.refused(2, "Connection refused")
    assert end.refusal == (2, "Connection refused")
    assert not link.channels


def test_a_channel_that_is_left_before_it_opens_is_closed_when_it_does() -> None:
    link, end = Link(), End()
    channel = Channel(link, end)
    channel.open("db.shop", 5432)
    channel.cancel()
    channel.opened(THEIRS, 1000, 100)
    assert link.kinds == [MSG_CHANNEL_OPEN, MSG_CHANNEL_CLOSE]
    channel.data(memoryview(b"too late"))
    channel.closed()
    assert end.channel is None
    assert end.received == b""
    assert not link.channels


def test_a_channel_whose_connection_is_lost_while_it_opens_can_be_tried_again() -> None:
    link, end = Link(), End()
    Channel(link, end).lost()
    assert end.refusal == (0, "lost")


def test_writes_are_cut_to_what_the_other_side_takes_in_a_packet() -> None:
    link, _, channel = opened(window=250, packet_size=100)
    channel.write(bytes(range(256)) + b"more")
    assert list(map(len, link.packets)) == [100, 100, 50]
    channel.adjusted(1000)
    assert link.sent == bytes(range(256)) + b"more"


def test_an_end_pauses_when_too_much_waits_and_goes_on_when_little_is_left() -> None:
    _, end, channel = opened(window=0)
    channel.write(bytes(HIGH_WATER))
    assert not end.full
    channel.write(b"x")
    assert end.full
    channel.adjusted(HIGH_WATER // 4 * 3)
    assert end.full
    channel.adjusted(1)
    assert not end.full


def test_channels_that_wait_take_turns_of_one_packet_each() -> None:
    link, _, bulk = opened(window=10_000, packet_size=100)
    small = Channel(link, End())
    small.opened(THEIRS, 10_000, 100)
    link.free = False
    bulk.write(b"B" * 1000)
    small.write(b"s" * 150)
    assert not link.packets
    link.free = True
    link.take_turns()
    assert [packet[:1] for packet in link.packets] == [b"B", b"s", b"B", b"s", *[b"B"] * 8]


def test_eof_follows_the_last_byte_and_close_follows_eof() -> None:
    link, _, channel = opened(window=10)
    channel.write(bytes(20))
    channel.write_eof()
    channel.close()
    assert link.kinds == [MSG_CHANNEL_OPEN]
    channel.adjusted(10)
    assert link.kinds == [MSG_CHANNEL_OPEN, MSG_CHANNEL_EOF, MSG_CHANNEL_CLOSE]
    with pytest.raises(BrokenPipeError):
        channel.write(b"x")


def test_abort_drops_what_is_not_sent() -> None:
    link, end, channel = opened(window=10)
    channel.write(bytes(20))
    channel.abort()
    channel.adjusted(10)
    channel.closed()
    assert len(link.sent) == 10
    assert link.kinds == [MSG_CHANNEL_OPEN, MSG_CHANNEL_CLOSE]
    assert end.ending is None


def test_what_came_before_a_close_is_delivered_before_the_end_is_told() -> None:
    link, end, channel = opened()
    end.shy = True
    channel.data(memoryview(b"one"))
    channel.data(memoryview(b"two"))
    channel.eof()
    channel.closed()
    assert link.kinds == [MSG_CHANNEL_OPEN, MSG_CHANNEL_CLOSE]
    assert (end.received, end.eof, end.ending) == (b"one", False, None)
    channel.resume_reading()
    assert (end.received, end.eof, end.ending) == (b"onetwo", True, "order")


def test_a_lost_connection_is_told_at_once_whatever_waits() -> None:
    _, end, channel = opened()
    channel.pause_reading()
    channel.data(memoryview(b"never seen"))
    channel.lost()
    assert (end.received, end.ending) == (b"", "lost")


def test_of_a_large_window_no_more_is_used_than_a_near_link_needs() -> None:
    link, end = Link(), End()
    link.first, link.nearest = 300, 0.001
    channel = Channel(link, end)
    channel.open("db.shop", 5432)
    channel.opened(THEIRS, 1000, 100)
    channel.write(bytes(500))
    assert sum(map(len, link.packets)) == 300
    channel.adjusted(100)
    assert sum(map(len, link.packets)) == 400


def test_a_window_is_given_back_only_as_it_is_taken() -> None:
    link, end, channel = opened()
    end.shy = True
    for _ in range(8):
        channel.data(memoryview(bytes(WINDOW // 8)))
    assert link.granted == []
    with pytest.raises(ProtocolViolation):
        channel.data(memoryview(b"x"))
    end.shy = False
    channel.resume_reading()
    assert sum(link.granted) == WINDOW


def test_a_channel_that_its_window_holds_back_gets_a_larger_one_until_it_is_not() -> None:
    link, _, channel = opened(round_trip=0.1)
    # A service that could send 60 MB/s, on a link of 100 ms: a window each round trip, but not more than it could.
    in_flight = WINDOW
    for _ in range(20):
        before = sum(link.granted)
        for _ in range(20):
            link.now += 0.1 / 20
            channel.data(memoryview(bytes(min(in_flight, 6_000_000) // 20)))
        in_flight += sum(link.granted) - before - min(in_flight, 6_000_000) // 20 * 20
    assert 6_000_000 <= channel._window_size <= LARGEST_WINDOW
    lent = LARGEST_WINDOW - link.spare
    assert lent == channel._window_size - WINDOW
    channel.abort()
    assert link.spare == LARGEST_WINDOW


def test_a_slow_or_near_channel_keeps_its_window() -> None:
    for round_trip, seconds in ((0.1, 1.0), (0.0005, 0.005)):
        link, _, channel = opened(round_trip=round_trip)
        for _ in range(100):
            link.now += seconds / 8
            channel.data(memoryview(bytes(WINDOW // 8)))
        assert channel._window_size == WINDOW


def test_windows_grow_only_as_far_as_there_is_room_for_all() -> None:
    link, _, channel = opened(round_trip=0.1)
    link.spare = WINDOW
    for _ in range(400):
        link.now += 0.001
        channel.data(memoryview(bytes(WINDOW // 8)))
    assert channel._window_size == 2 * WINDOW


def test_a_request_is_answered_with_failure_if_an_answer_is_wanted() -> None:
    link, _, channel = opened()
    channel.requested(wants_reply=False)
    channel.requested(wants_reply=True)
    assert link.messages[1:] == [(MSG_CHANNEL_FAILURE, struct.pack(">I", THEIRS))]


@pytest.mark.parametrize("mistake", ["data after eof", "eof twice", "closed twice", "opened twice", "refused"])
def test_what_the_rfc_does_not_allow_is_a_violation(mistake: str) -> None:
    _, _, channel = opened()
    with pytest.raises(ProtocolViolation):
        match mistake:
            case "data after eof":
                channel.eof()
                channel.data(memoryview(b"x"))
            case "eof twice":
                channel.eof()
                channel.eof()
            case "closed twice":
                channel.closed()
                channel.closed()
            case "opened twice":
                channel.opened(THEIRS, 1, 1)
            case _:
                channel.refused(2, "no")


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 300)),
        st.tuples(st.just("data"), st.integers(1, 300)),
        st.tuples(st.just("adjusted"), st.integers(0, 200)),
        st.tuples(
            st.sampled_from(
                ["busy", "free", "pause", "resume", "write_eof", "close", "abort", "eof", "closed", "lost"]
            ),
            st.just(0),
        ),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(steps)
def test_in_whatever_order_bytes_keep_theirs_and_every_end_comes_once(steps: list[tuple[str, int]]) -> None:
    link, end, channel = opened(window=150, packet_size=60)
    written, arrived, window = b"", b"", 150
    left = their_eof = their_close = lost = False
    for step, size in steps:
        content = bytes(index % 251 for index in range(len(written) + len(arrived), len(written) + len(arrived) + size))
        match step:
            case "write" if not left:
                try:
                    channel.write(content)
                    written += content
                except BrokenPipeError:
                    pass
            case "data" if not their_eof and not their_close:
                channel.data(memoryview(content))
                if not left:
                    arrived += content
            case "adjusted" if not their_close:
                window += size
                channel.adjusted(size)
            case "busy":
                link.free = False
            case "free":
                link.free = True
                link.take_turns()
            case "pause" if not left:
                channel.pause_reading()
            case "resume" if not left:
                channel.resume_reading()
            case "write_eof" if not left:
                channel.write_eof()
            case "close" | "abort" if not left:
                left = True
                (channel.close if step == "close" else channel.abort)()
            case "eof" if not their_eof and not their_close:
                their_eof = True
                channel.eof()
            case "closed" if not their_close:
                their_close = True
                channel.closed()
            case "lost" if not their_close:
                lost = True
                channel.lost()
                assert end.ending == (None if left else "lost")
                break
        assert written.startswith(link.sent)
        assert len(link.sent) <= window
        assert all(len(packet) <= 60 for packet in link.packets)
        assert link.kinds.count(MSG_CHANNEL_EOF) <= 1
        assert link.kinds.count(MSG_CHANNEL_CLOSE) <= 1
        assert arrived.startswith(end.received)
        if MSG_CHANNEL_EOF in link.kinds:
            assert link.sent == written
        if end.eof or end.ending == "order":
            assert end.received == arrived
    assert bool(link.channels) is not (their_close or lost)
