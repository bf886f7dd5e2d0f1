"""The relay's promises, whatever happens in whatever order on its two sides."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import cast

import asyncssh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tp2.socks.relay import Relay


class FakeSocket:
    """Only remembers whether closing it would be a reset."""

    def __init__(self) -> None:
        self.resets = False

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)
        self.resets = struct.unpack("ii", value) == (1, 0)


class FakeTransport:
    """A transport that takes everything and keeps asyncio's rules, as assertions."""

    def __init__(self) -> None:
        self.socket = FakeSocket()
        self.written = b""
        self.eof = False
        self.reading = True
        self.ending: str | None = None

    def get_extra_info(self, name: str) -> FakeSocket:
        assert name == "socket"
        return self.socket

    def write(self, data: bytes) -> None:
        assert not self.eof
        assert self.ending is None
        self.written += data

    def write_eof(self) -> None:
        assert self.ending is None
        self.eof = True

    def is_closing(self) -> bool:
        return self.ending is not None

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.ending = self.ending or ("reset" if self.socket.resets else "eof")

    def abort(self) -> None:
        assert self.socket.resets, "asyncio's abort alone is an EOF to the peer"
        self.ending = "reset"


class FakeChannel:
    """An SSH channel with asyncssh's rules: after its end was received, writing raises."""

    def __init__(self) -> None:
        self.written = b""
        self.eof = False
        self.ending: str | None = None
        self.peer_closed = False
        self.high: int | None = None
        self.paused = False

    def write(self, data: bytes) -> None:
        if self.eof or self.ending or self.peer_closed:
            raise BrokenPipeError
        self.written += data

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def write_eof(self) -> None:
        self.eof = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.ending = "close"

    def abort(self) -> None:
        self.ending = "abort"


class Connection:
    """A relay between two fakes, and what a test may do to it."""

    def __init__(self, welcome: bytes = b"") -> None:
        self.closes = 0
        self.relay = Relay(self._on_close, (lambda: welcome) if welcome else None)
        self.transport = FakeTransport()
        self.channel = FakeChannel()
        self.relay.connection_made(cast(asyncio.Transport, self.transport))

    def _on_close(self) -> None:
        self.closes += 1

    def open(self) -> None:
        self.relay.channel_opened(cast("asyncssh.SSHTCPChannel[bytes]", self.channel))


async def settle() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_early_bytes_and_eof_go_out_in_order_when_the_channel_opens() -> None:
    connection = Connection(welcome=b"hi")
    connection.relay.data_received(b"one")
    connection.relay.data_received(b"two")
    assert connection.relay.eof_received()
    assert connection.relay.bytes_sent == 0
    connection.open()
    assert connection.channel.written == b"onetwo"
    assert connection.channel.eof
    assert connection.transport.written == b"hi"
    assert connection.relay.bytes_sent == 6


async def test_reading_stops_while_too_much_waits_and_goes_on_with_the_channel() -> None:
    connection = Connection()
    connection.relay.data_received(bytes(70000))
    assert not connection.transport.reading
    connection.open()
    assert connection.transport.reading


async def test_each_side_is_read_only_while_the_other_takes_it() -> None:
    connection = Connection()
    connection.open()
    connection.relay.channel_full()
    assert not connection.transport.reading
    connection.relay.channel_drained()
    assert connection.transport.reading
    connection.relay.pause_writing()
    assert connection.channel.paused
    connection.relay.resume_writing()
    assert not connection.channel.paused


async def test_both_eofs_close_both_sides_once_everything_is_taken() -> None:
    connection = Connection()
    connection.open()
    connection.relay.channel_full()
    connection.relay.eof_received()
    connection.relay.channel_eof()
    assert connection.channel.high == 0
    assert connection.channel.ending is None
    connection.relay.channel_drained()
    await settle()
    assert connection.channel.ending == "close"
    assert connection.transport.ending == "eof"


async def test_a_lost_connection_resets_at_once() -> None:
    connection = Connection()
    connection.open()
    connection.relay.channel_closed(in_order=False)
    assert connection.transport.ending == "reset"


async def test_a_close_without_eof_is_an_orderly_end() -> None:
    connection = Connection()
    connection.open()
    connection.relay.channel_data(b"bye")
    connection.relay.channel_closed(in_order=True)
    assert connection.transport.written == b"bye"
    assert connection.transport.ending == "eof"


@pytest.mark.parametrize("untaken", ["refused", "full", "after eof"])
async def test_a_close_with_bytes_untaken_is_a_reset(untaken: str) -> None:
    connection = Connection()
    connection.open()
    match untaken:
        case "refused":
            connection.channel.peer_closed = True
            connection.relay.data_received(b"lost")
            assert not connection.transport.reading
            assert connection.relay.bytes_sent == 0
        case "full":
            connection.relay.channel_full()
        case "after eof":
            connection.relay.channel_eof()
    connection.relay.channel_closed(in_order=True)
    assert connection.transport.ending == "reset"


async def test_a_client_that_is_gone_aborts_the_channel_even_if_it_opens_later() -> None:
    joined, waiting = Connection(), Connection()
    joined.open()
    for connection in (joined, waiting):
        connection.relay.connection_lost(ConnectionResetError())
        assert connection.relay.closed
    waiting.open()
    assert joined.channel.ending == waiting.channel.ending == "abort"
    assert joined.closes == waiting.closes == 1


async def test_a_refused_open_is_a_farewell_or_a_reset() -> None:
    polite, rude = Connection(), Connection()
    polite.relay.refuse(b"sorry")
    rude.relay.refuse(b"")
    assert (polite.transport.written, polite.transport.ending) == (b"sorry", "eof")
    assert (rude.transport.written, rude.transport.ending) == (b"", "reset")


GOES_ON = ["client data", "channel data", "peer closes", "full", "drained", "pause", "resume", "turn", "open"]
ENDS_A_DIRECTION = ["client eof", "channel eof"]
ENDS_IT = ["client lost", "channel closed", "connection lost", "abort"]

# Most lives are long enough to get somewhere before they end.
STEPS = st.lists(st.sampled_from(GOES_ON * 4 + ENDS_A_DIRECTION * 2 + ENDS_IT), min_size=30, max_size=40)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_bytes_arrive_in_order_or_the_client_sees_a_reset(steps: list[str]) -> None:
    asyncio.run(act(steps))


async def act(steps: list[str]) -> None:
    """Do what can happen of *steps*, then let the client go, and look at what each side has seen."""
    connection = Connection()
    relay, transport, channel = connection.relay, connection.transport, connection.channel
    said, sent = b"", b""
    opened = ended = client_eof = remote_eof = peer_closed = full = lost = False
    for number, step in enumerate(steps):
        data = bytes([number])
        client_reads = transport.ending is None and not client_eof and not lost
        channel_lives = opened and not ended
        match step:
            case "client data" if client_reads and transport.reading:
                said += data
                relay.data_received(data)
            case "client eof" if client_reads and transport.reading:
                client_eof = relay.eof_received()
                assert client_eof
            case "client lost" if not lost:
                lost = True
                relay.connection_lost(ConnectionResetError())
            case "open" if not opened:
                opened = True
                connection.open()
            case "channel data" if channel_lives and not remote_eof and not peer_closed and not channel.ending:
                sent += data
                relay.channel_data(data)
            case "channel eof" if channel_lives and not remote_eof and not peer_closed:
                remote_eof = True
                relay.channel_eof()
            case "peer closes" if channel_lives:
                channel.peer_closed = peer_closed = True
            case "channel closed" if peer_closed and not ended:
                ended = True
                relay.channel_closed(in_order=True)
            case "connection lost" if channel_lives:
                ended = True
                before = transport.ending
                relay.channel_closed(in_order=False)
                assert lost or before or transport.ending == "reset"
            case "full" if channel_lives and not full:
                full = True
                relay.channel_full()
                assert lost or client_eof or transport.ending or not transport.reading
            case "drained" if channel_lives and full:
                full = False
                relay.channel_drained()
            case "pause" if not lost:
                relay.pause_writing()
            case "resume" if not lost:
                relay.resume_writing()
            case "abort":
                relay.abort()
                assert lost or transport.ending == "reset"
            case "turn":
                await settle()
    await settle()
    assert said.startswith(channel.written)
    assert len(channel.written) == relay.bytes_sent
    assert sent.startswith(transport.written)
    assert len(transport.written) == relay.bytes_received
    if transport.ending == "eof":
        # An orderly end: the client has all that was sent, and all that it said was taken.
        assert transport.written == sent
        assert channel.written == said
    if ended and not lost:
        assert transport.ending
    if not lost:
        assert connection.closes == 0
        relay.connection_lost(None)
    relay.connection_lost(None)
    assert connection.closes == 1
    assert relay.closed
    if opened and not ended:
        assert channel.ending
