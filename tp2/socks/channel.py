"""One connection through SSH: our side of a direct-tcpip channel (RFC 4254 sections 5 and 7.2).

What can happen to a channel, and what follows:

============================== =====================================================================================
OPEN_CONFIRMATION              the end is told, and may write from then on
OPEN_FAILURE                   the end is told why, and nothing else ever
DATA                           goes to the end, or waits while the end has paused it. The window is given back as the
                               end takes it, so that at most a window waits
EOF                            goes to the end after all data; the end may go on writing
CLOSE                          is answered at once. What is not sent by then is dropped, what has come is delivered,
                               then the end is told
the end's EOF, and its close   go out after all that it wrote
the end's abort                goes out at once
the connection is lost         the end is told at once; what has come is dropped
============================== =====================================================================================

What is written goes out at once if the other side's window and the connection have room. Else it waits, and channels
that wait for the connection take turns of one packet each: a bulk transfer does not starve the others.

How packets are made, and what else is on the connection, is the link's business.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from tp2.socks.inflight import InFlight

#: Message numbers (RFC 4254 section 9).
MSG_CHANNEL_OPEN: Final = 90
MSG_CHANNEL_OPEN_CONFIRMATION: Final = 91
MSG_CHANNEL_WINDOW_ADJUST: Final = 93
MSG_CHANNEL_DATA: Final = 94
MSG_CHANNEL_EOF: Final = 96
MSG_CHANNEL_CLOSE: Final = 97
MSG_CHANNEL_REQUEST: Final = 98
MSG_CHANNEL_FAILURE: Final = 100

WINDOW: Final = 2 * 1024 * 1024
"""Bytes a channel may have in flight towards us at first, also the most that a slow local reader costs in memory. It
bounds the speed of one connection to WINDOW per round trip: 160 Mbit/s at 100 ms."""

LARGEST_WINDOW: Final = 16 * 1024 * 1024
"""What the window of a channel grows to that is held back by it."""

LARGEST_PACKET: Final = 128 * 1024
"""Bytes of data that we take in one packet. sshd sends what it has read, which can be more than the usual 32 KiB."""

HIGH_WATER: Final = 64 * 1024
"""Bytes that may wait to be sent before the end is asked to pause; at a quarter of it, it may go on."""

_OPEN: Final = struct.Struct(">BI12sIIII")
_ADJUST: Final = struct.Struct(">BII")
_MESSAGE: Final = struct.Struct(">BI")


class Opener(Protocol):
    """Who waits for a channel to open: told once how that went. Nothing here may raise."""

    def opened(self) -> End:
        """It is open; return whom it belongs to."""

    def refused(self, code: int, reason: str) -> None:
        """It was not opened, with a code of RFC 4254 section 5.1."""

    def lost(self) -> None:
        """The connection went away before there was an answer."""


class End(Protocol):
    """Whom an open channel belongs to. Nothing here may raise."""

    def channel_opened(self, channel: Channel) -> None:
        """Bytes may be written from now on."""

    def channel_data(self, data: bytes | memoryview) -> None:
        """Bytes have come."""

    def channel_eof(self) -> None:
        """No more bytes will come."""

    def channel_full(self) -> None:
        """More bytes wait to be sent than should."""

    def channel_drained(self) -> None:
        """Few enough are left."""

    def channel_closed(self, in_order: bool) -> None:
        """It has ended: by CLOSE if *in_order*, else with its connection."""


class Link(Protocol):
    """What a channel needs of its connection.

    ``free`` says whether the connection takes more data now; ``first`` is what :func:`tp2.socks.inflight.first` says of
    the server, and ``nearest`` the shortest round trip that was seen, in seconds.
    """

    free: bool
    first: int | None
    nearest: float

    def answered(self, seconds: float) -> None:
        """A channel was opened *seconds* after it was asked for: that is a round trip, and a connect in the cluster."""

    def register(self, channel: Channel) -> int:
        """Return our number for a new channel, which is given all messages for that number from now on.

        :raises ConnectionError: the connection is gone.
        """

    def forget(self, number: int) -> None:
        """Nothing comes for this number of ours any more."""

    def send(self, message: bytes) -> None:
        """Send a message, which begins with its number."""

    def send_data(self, peer: int, data: bytes | memoryview) -> None:
        """Send DATA to the channel with this number of theirs."""

    def wait_turn(self, channel: Channel) -> None:
        """Call :meth:`Channel.take_turn` when the connection is free."""

    def lend(self, size: int) -> bool:
        """Let a window grow by *size* bytes, if all windows together leave room for that."""

    def give_back(self, size: int) -> None:
        """A window that grew by *size* bytes is no more."""

    def time(self) -> float:
        """Return monotonic seconds."""


class ProtocolViolation(Exception):
    """The other side did what RFC 4254 does not allow it."""


class Channel:
    """A channel on *link* for *opener*; nothing happens before :meth:`open`.

    :raises ConnectionError: the connection is gone.
    """

    def __init__(self, link: Link, opener: Opener) -> None:
        self._link = link
        # Each is None when nobody wants to know any more.
        self._opener: Opener | None = opener
        self._end: End | None = None
        self._number = link.register(self)
        self._peer: int | None = None
        # To be sent.
        self._writable = False
        self._eof_wanted = False
        self._close_sent = False
        self._send_window = 0
        self._in_flight = InFlight(None, 0, 0.0)
        self._packet_size = 0
        self._unsent: list[bytes | memoryview] = []
        self._unsent_size = 0
        self._full = False
        self._waits_turn = False
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4
        # Received.
        self._window_size = self._window = WINDOW
        # Seconds from our question to the answer; when the present round began, and bytes taken since then.
        self._round_trip = 0.0
        self._since = 0.0
        self._taken = 0
        self._lent = 0
        self._paused = False
        self._undelivered: list[memoryview] = []
        self._eof_received = False
        self._eof_told = False
        self._close_received = False

    def open(self, host: str, port: int) -> None:
        """Ask for a connection to *host*, which the other side resolves, and *port*."""
        self._since = self._link.time()
        name = host.encode()
        head = _OPEN.pack(MSG_CHANNEL_OPEN, 12, b"direct-tcpip", self._number, WINDOW, LARGEST_PACKET, len(name))
        # Where the connection comes from: a program of this machine.
        self._link.send(head + name + struct.pack(">II9sI", port, 9, b"127.0.0.1", 0))

    def cancel(self) -> None:
        """Leave a channel that is not open yet: nobody is told any more, and it is closed if it opens."""
        self._opener = None

    # For the end. This is the contract of asyncssh's channels, so that an end need not know which it has.

    def write(self, data: bytes | memoryview) -> None:
        """Send *data*, which must not change any more.

        :raises BrokenPipeError: the channel is not open for sending, or not any more.
        """
        if not self._writable:
            raise BrokenPipeError("the channel is not open for sending")
        size = len(data)
        if self._link.free and not self._unsent and size <= self._send_window and size <= self._packet_size:
            self._send_window -= size
            assert self._peer is not None
            self._link.send_data(self._peer, data)
            return
        self._unsent.append(data)
        self._unsent_size += size
        self._send_unsent()

    def write_eof(self) -> None:
        """Send EOF after what was written."""
        if self._writable:
            self._writable = False
            self._eof_wanted = True
            self._send_unsent()

    def close(self) -> None:
        """Close after what was written; nothing more is delivered."""
        self._leave()
        self._send_unsent()

    def abort(self) -> None:
        """Close at once: what was not sent is dropped, and nothing more is delivered."""
        self._leave()
        self._send_close()

    def pause_reading(self) -> None:
        """Deliver nothing until :meth:`resume_reading`; at most a window comes meanwhile."""
        self._paused = True

    def resume_reading(self) -> None:
        """Deliver what has come meanwhile."""
        self._paused = False
        while self._undelivered and not self._paused:
            self._deliver(self._undelivered.pop(0))
        self._tell_the_rest()

    def set_write_buffer_limits(self, high: int) -> None:
        """Ask the end to pause when more than *high* bytes wait, and let it go on at a quarter of that."""
        self._high, self._low = high, high // 4
        self._tell_how_full()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be sent."""
        return self._unsent_size

    # For the link.

    def opened(self, peer: int, window: int, packet_size: int) -> None:
        """OPEN_CONFIRMATION: their number, and what they take at first and in one packet."""
        if self._peer is not None or not packet_size:
            raise ProtocolViolation("a channel was opened that cannot be")
        now = self._link.time()
        self._in_flight = InFlight(self._link.first, window, now)
        self._peer, self._send_window, self._packet_size = peer, self._in_flight.limit, packet_size
        self._round_trip, self._since = now - self._since, now
        self._link.answered(self._round_trip)
        opener, self._opener = self._opener, None
        if opener is None:
            self._send_close()
            return
        self._writable = True
        self._end = opener.opened()
        self._end.channel_opened(self)

    def refused(self, code: int, reason: str) -> None:
        """OPEN_FAILURE."""
        if self._peer is not None:
            raise ProtocolViolation("a channel was refused that is open")
        self._link.forget(self._number)
        opener, self._opener = self._opener, None
        if opener is not None:
            opener.refused(code, reason)

    def data(self, data: memoryview) -> None:
        """DATA."""
        if len(data) > self._window or self._eof_received or self._peer is None:
            raise ProtocolViolation("there was more data on a channel than may be")
        self._window -= len(data)
        if self._paused:
            self._undelivered.append(data)
        else:
            self._deliver(data)

    def eof(self) -> None:
        """EOF."""
        if self._eof_received or self._peer is None:
            raise ProtocolViolation("the data of a channel ended twice")
        self._eof_received = True
        self._tell_the_rest()

    def closed(self) -> None:
        """CLOSE."""
        if self._close_received or self._peer is None:
            raise ProtocolViolation("a channel ended twice")
        self._close_received = True
        self._send_close()
        self._link.forget(self._number)
        self._give_back()
        self._tell_the_rest()

    def adjusted(self, size: int) -> None:
        """WINDOW_ADJUST."""
        self._send_window += size + self._in_flight.taken(size, self._link.time(), self._link.nearest)
        self._send_unsent()

    def requested(self, wants_reply: bool) -> None:
        """A request: we know none that a TCP connection would have."""
        if wants_reply and self._peer is not None and not self._close_sent:
            self._link.send(_MESSAGE.pack(MSG_CHANNEL_FAILURE, self._peer))

    def lost(self) -> None:
        """The connection is gone."""
        self._link.forget(self._number)
        self._writable, self._close_sent = False, True
        self._unsent.clear()
        self._undelivered.clear()
        opener, self._opener = self._opener, None
        if opener is not None:
            opener.lost()
        end, self._end = self._end, None
        if end is not None:
            end.channel_closed(in_order=False)

    def take_turn(self) -> bool:
        """Send one packet of what waits; return whether another one could follow."""
        if self._unsent and self._send_window:
            self._send_packet()
        self._waits_turn = bool(self._unsent and self._send_window)
        self._after_sending()
        return self._waits_turn

    # Sending.

    def _send_unsent(self) -> None:
        while self._unsent and self._send_window and not self._waits_turn:
            if self._link.free:
                self._send_packet()
            else:
                self._waits_turn = True
                self._link.wait_turn(self)
        self._after_sending()

    def _send_packet(self) -> None:
        assert self._peer is not None
        data = self._unsent[0]
        most = min(self._send_window, self._packet_size)
        if len(data) > most:
            # A view: what is left of a large write is cut again and again.
            whole = memoryview(data)
            data, self._unsent[0] = whole[:most], whole[most:]
        else:
            del self._unsent[0]
        self._send_window -= len(data)
        self._unsent_size -= len(data)
        self._link.send_data(self._peer, data)

    def _after_sending(self) -> None:
        self._tell_how_full()
        if self._unsent or self._close_sent:
            return
        if self._eof_wanted:
            self._eof_wanted = False
            self._link.send(_MESSAGE.pack(MSG_CHANNEL_EOF, self._peer))
        if self._end is None:
            self._send_close()

    def _send_close(self) -> None:
        self._writable = self._eof_wanted = False
        self._unsent.clear()
        self._unsent_size = 0
        if self._peer is not None and not self._close_sent:
            self._close_sent = True
            self._link.send(_MESSAGE.pack(MSG_CHANNEL_CLOSE, self._peer))

    def _tell_how_full(self) -> None:
        full = self._unsent_size > (self._low if self._full else self._high)
        if full is self._full:
            return
        self._full = full
        if self._end is None:
            return
        if full:
            self._end.channel_full()
        else:
            self._end.channel_drained()

    # Receiving.

    def _deliver(self, data: memoryview) -> None:
        # In eighths: with halves, the other side would wait for the one while it may not send the other yet.
        if self._window_size - self._window > self._window_size >> 3:
            self._grant()
        if self._end is not None:
            self._end.channel_data(data)

    def _grant(self) -> None:
        """Give the window back; a channel that is held back by its window gets a larger one."""
        taken = self._window_size - self._window
        self._taken += taken
        now = self._link.time()
        passed = now - self._since
        if passed >= self._round_trip:
            # Whoever is held back takes one window in a round trip.
            held_back = self._taken * self._round_trip > 0.7 * self._window_size * passed
            if held_back and self._window_size < LARGEST_WINDOW and self._link.lend(self._window_size):
                self._lent += self._window_size
                self._window_size *= 2
            self._since, self._taken = now, 0
        if not self._close_sent:
            grant = self._window_size - self._window
            self._link.send(_ADJUST.pack(MSG_CHANNEL_WINDOW_ADJUST, self._peer, grant))
            self._window = self._window_size

    def _tell_the_rest(self) -> None:
        """Tell of the ends that have come, once all data before them were delivered."""
        if self._undelivered or self._end is None:
            return
        if self._eof_received and not self._eof_told:
            self._eof_told = True
            self._end.channel_eof()
        if self._close_received:
            # Told of EOF, the end may have left.
            end, self._end = self._end, None
            if end is not None:
                end.channel_closed(in_order=True)

    def _leave(self) -> None:
        self._end = None
        self._writable = False
        self._undelivered.clear()
        self._give_back()

    def _give_back(self) -> None:
        if self._lent:
            self._link.give_back(self._lent)
            self._lent = 0
