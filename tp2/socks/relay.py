"""The byte path of one connection: an accepted local socket on one side, an SSH channel on the other.

A :class:`Relay` lives as long as its local socket. It is made before the channel exists, so that a client may talk
first (its bytes wait, bounded) or the server may (nothing is waited for). From then on bytes go straight from one
side's callback into the other side's buffer; no task and no copy of ours is in between.

Back-pressure: each side reads only while the other side's buffer is below its high water mark. A connection thus
costs at most the channel's window, the two marks and one read of memory, however slow its reader is.

The end. Every byte is delivered, or the client sees a reset:

========================================== =====================================================================
what happens                               what follows
========================================== =====================================================================
the client sends EOF                       EOF on the channel, once it has taken all bytes; the other way goes on
EOF on the channel                         EOF to the client after all bytes; the other way goes on
both of them                               both sides are closed
the client resets                          the channel is aborted
the SSH connection is lost                 the client is reset at once
the channel is closed, and the client's    the rest is delivered, then EOF: the endpoint ended the connection in
bytes were all taken                       order (RFC 4254 section 5.3; several servers send no EOF before)
the channel is closed, but bytes of the    the rest is delivered, then a reset: nobody read what was left. It is
client were not taken, or may not have     known when the channel refuses bytes, and taken for granted when EOF
been                                       came before: sshd closes early only if it cannot write to the service
========================================== =====================================================================

What SSH cannot say is lost: it has no reset, so a reset in the cluster reaches us as EOF, and a client's reset
reaches the service as EOF.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Protocol, cast

import asyncssh

from tp2.socks.login import is_up

logger = logging.getLogger(__name__)

EARLY_LIMIT = 64 * 1024
"""Bytes of a client's that wait for its channel before reading from it stops (one read may go over it)."""

LARGE_READ = 256 * 1024
"""Bytes that an event loop reads at the most in one go: after as many there may be more."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER on, for 0 s: closing the socket then sends RST and not FIN (socket(7))."""


class Channel(Protocol):
    """What a relay needs of a channel: asyncssh's own have it, and :class:`tp2.socks.channel.Channel`."""

    def write(self, data: bytes) -> None:
        """Send *data*; raises :class:`OSError` if the channel is not open for sending (any more)."""

    def write_eof(self) -> None:
        """Send EOF after all data."""

    def close(self) -> None:
        """Close after all data; nothing more is delivered."""

    def abort(self) -> None:
        """Close at once; nothing more is delivered."""

    def pause_reading(self) -> None:
        """Deliver nothing for a while."""

    def resume_reading(self) -> None:
        """Deliver again."""

    def set_write_buffer_limits(self, high: int) -> None:
        """Call ``channel_full`` when more than *high* bytes wait, ``channel_drained`` at a quarter of that."""


def reset_on_close(sock: socket.socket) -> None:
    """Make closing *sock* a reset that its peer sees as ECONNRESET."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError as error:
        logger.debug("no SO_LINGER on a socket that is gone already: %s", error)


class Relay(asyncio.Protocol):
    """One connection, seen from the client: the protocol of the accepted socket.

    :param on_close: called once, when the local socket is gone.
    :param welcome: gives what is sent to the client when the channel is open, before any of the channel's bytes.

    ``bytes_sent`` counts from the client into the cluster, ``bytes_received`` the other way.
    """

    def __init__(self, on_close: Callable[[], None], welcome: Callable[[], bytes] | None = None) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self._on_close: Callable[[], None] | None = on_close
        self._welcome = welcome
        self._transport: asyncio.Transport | None = None
        self._channel: Channel | None = None
        self._early: list[bytes] = []
        self._early_size = 0
        self._aborted = False
        self._local_eof = False
        self._remote_eof = False
        self._channel_full = False
        self._bytes_refused = False

    @property
    def closed(self) -> bool:
        """Whether the local socket is gone."""
        return self._on_close is None

    def session(self) -> asyncssh.SSHTCPSession[bytes]:
        """Return the session for this connection's channel; opening it joins the two sides."""
        return _ChannelEnd(self)

    def abort(self) -> None:
        """Reset the local socket and abort the channel; :attr:`closed` follows soon."""
        self._aborted = True
        self._let_go_of_channel()
        if self._transport:
            reset_on_close(self._transport.get_extra_info("socket"))
            self._transport.abort()

    def refuse(self, farewell: bytes) -> None:
        """End the connection because no channel came up: with *farewell* and EOF, or with a reset if it is empty."""
        if farewell and self._transport:
            self._transport.write(farewell)
            self._transport.close()
        else:
            self.abort()

    # The local socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._aborted:
            self.abort()

    def data_received(self, data: bytes) -> None:
        if not self._channel:
            self._early.append(data)
            self._early_size += len(data)
            if self._early_size > EARLY_LIMIT:
                self._pause_client()
            return
        try:
            self._channel.write(data)
        except OSError:
            # The endpoint has closed the channel, but its bytes for the client are not all delivered yet.
            self._bytes_refused = True
            self._pause_client()
        else:
            self.bytes_sent += len(data)
            if len(data) >= LARGE_READ:
                # uvloop would go on reading as long as there is more: others have their turn first.
                self._pause_client()
                asyncio.get_running_loop().call_soon(self._next_turn)

    def eof_received(self) -> bool:
        self._local_eof = True
        if self._channel:
            self._send_eof(self._channel)
        return True

    def pause_writing(self) -> None:
        if self._channel:
            self._channel.pause_reading()

    def resume_writing(self) -> None:
        if self._channel:
            self._channel.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._on_close is None:
            return
        self._transport = None
        self._let_go_of_channel()
        self._early.clear()
        on_close, self._on_close = self._on_close, None
        on_close()

    # The channel (tp2.socks.channel.End), or asyncssh's by way of _ChannelEnd. One that was let go of may still call;
    # that no longer matters.

    def channel_opened(self, channel: Channel) -> None:
        """Join the two sides: what the client has sent so far goes out."""
        if not self._transport or self._aborted:
            channel.abort()
            return
        self._channel = channel
        if self._welcome:
            self._transport.write(self._welcome())
        early, self._early = self._early, []
        for data in early:
            self.data_received(data)
        if self._local_eof:
            self._send_eof(channel)
        elif not self._channel_full:
            self._resume_client()

    def channel_data(self, data: bytes | memoryview) -> None:
        # A transport that has failed says so later; until then it would log every write.
        if self._channel and self._transport and not self._transport.is_closing():
            self.bytes_received += len(data)
            self._transport.write(data)

    def channel_eof(self) -> None:
        if not self._channel or not self._transport:
            return
        self._remote_eof = True
        try:
            self._transport.write_eof()
        except OSError:
            # The client is gone, but its transport has not noticed yet.
            self.abort()
        else:
            self._close_if_finished()

    def channel_full(self) -> None:
        self._channel_full = True
        self._pause_client()

    def channel_drained(self) -> None:
        self._channel_full = False
        if self._local_eof:
            # asyncssh calls this before it sends the EOF that waits behind the last bytes.
            asyncio.get_running_loop().call_soon(self._close_if_finished)
        else:
            self._resume_client()

    def channel_closed(self, in_order: bool) -> None:
        """The channel has ended: by CHANNEL_CLOSE if *in_order*, else with its SSH connection."""
        if not self._channel or not self._transport:
            return
        self._channel = None
        if not in_order:
            self.abort()
            return
        untaken = self._bytes_refused or self._channel_full or (self._remote_eof and not self._local_eof)
        if untaken:
            reset_on_close(self._transport.get_extra_info("socket"))
        self._transport.close()

    def _send_eof(self, channel: Channel) -> None:
        # With the mark at zero, "full" means that bytes are left, and channel_drained tells when none are.
        channel.set_write_buffer_limits(high=0)
        channel.write_eof()
        self._close_if_finished()

    def _close_if_finished(self) -> None:
        if self._local_eof and self._remote_eof and not self._channel_full and self._channel and self._transport:
            channel, self._channel = self._channel, None
            channel.close()
            self._transport.close()

    def _next_turn(self) -> None:
        if self._channel and not self._channel_full:
            self._resume_client()

    def _let_go_of_channel(self) -> None:
        if self._channel:
            channel, self._channel = self._channel, None
            channel.abort()

    def _pause_client(self) -> None:
        if self._transport and not self._local_eof:
            self._transport.pause_reading()

    def _resume_client(self) -> None:
        # A transport that has read EOF must not be resumed: asyncio would read the EOF again.
        if self._transport and not self._local_eof and not self._bytes_refused:
            self._transport.resume_reading()


class _ChannelEnd(asyncssh.SSHTCPSession[bytes]):
    """asyncssh's side of a relay. Nothing here may raise: asyncssh would end the whole SSH connection for it."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._channel: asyncssh.SSHTCPChannel[bytes]

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan
        self._relay.channel_opened(chan)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._relay.channel_data(data)

    def eof_received(self) -> bool:
        self._relay.channel_eof()
        return True

    def pause_writing(self) -> None:
        self._relay.channel_full()

    def resume_writing(self) -> None:
        self._relay.channel_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.channel_closed(in_order=exc is None and is_up(self._channel.get_connection()))
