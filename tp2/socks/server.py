"""The SOCKS5 server for programs that are told to use one (curl --socks5-hostname, browsers).

The listener is independent of the tunnel: it stays up while the tunnel reconnects, and requests then wait in
:meth:`~tp2.socks.tunnel.Tunnel.open` as all others do. A client is this module's only during its handshake, which
is bounded in time, in size (:mod:`tp2.socks.messages`) and in number; after it the connection is handed to the
:class:`~tp2.socks.connector.Connector` and ends with it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import cast

from tp2.errors import AddressInUse, PrivilegeError, Tp2Error, UsageError
from tp2.socks.connector import Connector
from tp2.socks.holder import holder_of
from tp2.socks.messages import Close, Connect, Credentials, Reply, Send, Server
from tp2.socks.reasons import Refusal
from tp2.socks.relay import reset_on_close

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for a client to get as far as its request: it is a local program, and says all of it at once."""

MAX_HANDSHAKES = 256
"""Clients in their handshake at a time; one more is reset. Those that talk SOCKS pass in milliseconds."""

BACKLOG = 512

REPLIES = {
    Refusal.REFUSED: Reply.CONNECTION_REFUSED,
    Refusal.HOST_UNREACHABLE: Reply.HOST_UNREACHABLE,
    Refusal.NETWORK_UNREACHABLE: Reply.NETWORK_UNREACHABLE,
    Refusal.TIMED_OUT: Reply.TTL_EXPIRED,
    Refusal.PROHIBITED: Reply.NOT_ALLOWED,
    Refusal.NOT_CONNECTED: Reply.NETWORK_UNREACHABLE,
    Refusal.FAILED: Reply.GENERAL_FAILURE,
}
"""What a client is told (RFC 1928 section 6): without a tunnel it is the cluster's network that is unreachable."""


class SocksServer:
    """A SOCKS5 server on *host* (an IP address of this machine) and *port* (0: any free one).

    :param credentials: what clients must present, or ``None`` to serve every program that can reach the address.
    :param resolve: gives the address of a name that is known on this side; with ``None`` the endpoint resolves it.
    """

    def __init__(
        self,
        connector: Connector,
        host: str,
        port: int,
        *,
        credentials: Credentials | None = None,
        resolve: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._connector = connector
        self._resolve = resolve
        self._host = host
        self._port = port
        self._credentials = credentials
        self._listener: asyncio.Server | None = None
        self._handshakes: set[_Handshake] = set()
        self._all_gone = asyncio.Event()

    @property
    def address(self) -> tuple[str, int]:
        """The address and port that are listened on."""
        return self._host, self._port

    async def start(self) -> None:
        """Listen.

        :raises AddressInUse: when another program has the port.
        :raises PrivilegeError: when the port may not be used without privilege.
        :raises UsageError: when the address is none of this machine's.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            sock = socket.create_server((self._host, self._port), family=family, backlog=BACKLOG)
        except OSError as error:
            holder = await asyncio.to_thread(holder_of, self._port) if error.errno == errno.EADDRINUSE else None
            raise self._cannot_listen(error, holder) from None
        sock.setblocking(False)
        self._port = sock.getsockname()[1]
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: _Handshake(
                self._connector, Server(self._credentials), self._resolve, self._handshakes, self._all_gone
            ),
            sock=sock,
            backlog=BACKLOG,
        )

    async def close(self) -> None:
        """Stop listening and reset the clients that are still in their handshake."""
        if self._listener:
            # Not wait_closed(): from Python 3.12 on it waits for the connections too, which are the connector's.
            self._listener.close()
            self._listener = None
        for handshake in list(self._handshakes):
            handshake.abort()
        while self._handshakes:
            self._all_gone.clear()
            await self._all_gone.wait()

    def _cannot_listen(self, error: OSError, holder: str | None) -> Tp2Error:
        what = f"cannot listen for SOCKS on {self._host} port {self._port}"
        if error.errno == errno.EADDRINUSE:
            return AddressInUse(
                what,
                f"the port is in use by {holder or 'another program'}",
                "stop that program, or choose another address with --socks ADDR:PORT",
            )
        if error.errno == errno.EACCES:
            return PrivilegeError(what, "ports below 1024 need privilege", "choose a higher port with --socks")
        return UsageError(what, error.strerror or str(error), "--socks takes an IP address of this machine and a port")


class _Handshake(asyncio.Protocol):
    """One client, from its first byte to its request."""

    def __init__(
        self,
        connector: Connector,
        machine: Server,
        resolve: Callable[[str], str | None],
        handshakes: set[_Handshake],
        all_gone: asyncio.Event,
    ) -> None:
        self._connector = connector
        self._machine = machine
        self._resolve = resolve
        self._handshakes = handshakes
        self._all_gone = all_gone
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle

    def abort(self) -> None:
        """Reset the client."""
        reset_on_close(self._transport.get_extra_info("socket"))
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        full = len(self._handshakes) >= MAX_HANDSHAKES
        self._handshakes.add(self)
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT, self._too_slow)
        if full:
            logger.warning("more than %d SOCKS clients in their handshake: one is turned away", MAX_HANDSHAKES)
            self.abort()

    def data_received(self, data: bytes) -> None:
        for event in self._machine.receive(data):
            match event:
                case Send(data):
                    self._transport.write(data)
                case Connect():
                    self._hand_over(event)
                case Close(reason):
                    logger.debug("SOCKS client turned away: %s", reason)
                    self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()

    def _hand_over(self, target: Connect) -> None:
        self._done()
        self._connector.join(
            self._transport,
            self._machine.early,
            self._resolve(target.host) or target.host,
            target.port,
            lambda refused: self._machine.reply(REPLIES[refused.refusal] if refused else Reply.SUCCEEDED),
        )

    def _too_slow(self) -> None:
        logger.debug("SOCKS client turned away: no request within %g s", HANDSHAKE_TIMEOUT)
        self.abort()

    def _done(self) -> None:
        self._timer.cancel()
        self._handshakes.discard(self)
        if not self._handshakes:
            self._all_gone.set()
