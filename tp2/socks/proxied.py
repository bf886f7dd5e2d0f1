"""A connection that a SOCKS proxy carries: what a :class:`~tp2.socks.relay.Relay` is for a channel, for two sockets.

It holds the client's socket, unread, until there is one to the destination; then a :class:`~tp2.socks.splice.Splice`
moves the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from tp2.socks.reasons import ChannelRefused
from tp2.socks.relay import reset_on_close
from tp2.socks.splice import Splice
from tp2.types import Destination


class Proxied:
    """One connection on its way to *destination*, if that is known by an address.

    ``bytes_sent`` counts from the client into the cluster, ``bytes_received`` the other way.

    :param client: connected and non-blocking; belongs to it from here on.
    :param on_close: called once, later, when *client* is closed.
    :param quiet: see :meth:`tp2.socks.connector.Connector.carry`.
    """

    def __init__(
        self,
        client: socket.socket,
        on_close: Callable[[], None],
        *,
        destination: Destination | None = None,
        quiet: bool = False,
    ) -> None:
        self.destination = destination
        self.quiet = quiet
        self.refusal: ChannelRefused | None = None
        self.bytes_sent = 0
        self.bytes_received = 0
        self._client = client
        self._on_close: Callable[[], None] | None = on_close
        self._splice: Splice | None = None

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self._on_close is None

    def join(self, server: socket.socket, *, early: bytes, welcome: bytes, said: bytes) -> None:
        """Connect the client with *server*.

        :param early: bytes of the client's that were read before.
        :param welcome: what is said to the client first.
        :param said: bytes of the server's that were read before.
        """
        self._say(welcome)
        self._splice = Splice(self._client, server, self, to_server=early, to_client=said)

    def abort(self) -> None:
        """Reset the connection; :attr:`closed` follows soon."""
        if self._splice:
            self._splice.abort()
        else:
            reset_on_close(self._client)
            self._close()

    def refuse(self, farewell: bytes) -> None:
        """End the connection because there is no way: with *farewell* and EOF, or with a reset if it is empty."""
        if not farewell:
            self.abort()
            return
        self._say(farewell)
        self._close()

    # tp2.socks.splice.Owner

    def sent(self, size: int) -> None:
        self.bytes_sent += size

    def received(self, size: int) -> None:
        self.bytes_received += size

    def _say(self, words: bytes) -> None:
        """Say a few words, which always fit into the socket's buffer, unless the client is gone: it has had as few."""
        with contextlib.suppress(OSError):
            self._client.send(words)

    def _close(self) -> None:
        self._client.close()
        asyncio.get_running_loop().call_soon(self.ended)

    def ended(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close:
            on_close()


class _Drain(asyncio.Protocol):
    """``done`` is set while nothing waits to be written; with a mark at zero the transport says so."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.done.set()

    def pause_writing(self) -> None:
        self.done.clear()

    def resume_writing(self) -> None:
        self.done.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set()


async def socket_of(transport: asyncio.Transport) -> socket.socket:
    """Take the connection from *transport*, which ends, and return it as a socket; what was written goes out first.

    Bytes that come from now on are the socket's to read.

    :raises OSError: the connection is gone.
    """
    drain = _Drain()
    transport.pause_reading()
    transport.set_protocol(drain)
    transport.set_write_buffer_limits(high=0)
    await drain.done.wait()
    # The transport closes its own descriptor, and says nothing to the peer as long as there is another one.
    sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    sock.setblocking(False)
    transport.abort()
    return sock
