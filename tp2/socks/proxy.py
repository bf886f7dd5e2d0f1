"""Somebody's own SOCKS5 proxy in place of the tunnel, such as an ``ssh -D`` that runs anyway.

It has the tunnel's surface, so that what starts, stops and reports one need not know which it has; and :meth:`dial`,
which gives a socket where the tunnel gives a channel. There is no connection to keep: each destination is a connection
to the proxy. A proxy that does not answer is ``reconnecting``, and new connections wait for it as they do for the
tunnel. What the proxy says of a destination is all that is known: ``ssh -D`` says of each that it is connected, and
hangs up if it is not.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import Final

from tp2.errors import EndpointError
from tp2.socks.dial import dial
from tp2.socks.messages import Reply
from tp2.socks.reasons import ChannelRefused, Refusal
from tp2.socks.request import Client, NotSocks
from tp2.socks.tunnel import EAGER, MAX_WAITERS, OPEN_TIMEOUT, State, TunnelStatus

logger = logging.getLogger(__name__)

_REFUSALS: Final = {
    Reply.CONNECTION_REFUSED: Refusal.REFUSED,
    Reply.HOST_UNREACHABLE: Refusal.HOST_UNREACHABLE,
    Reply.NETWORK_UNREACHABLE: Refusal.NETWORK_UNREACHABLE,
    Reply.TTL_EXPIRED: Refusal.TIMED_OUT,
    Reply.NOT_ALLOWED: Refusal.PROHIBITED,
}


class SocksProxy:
    """The proxy at *host* (a name or an address) and *port*.

    :param dial_timeout: how many seconds a new connection waits for a proxy that cannot be reached.
    """

    def __init__(self, host: str, port: int, *, dial_timeout: float = 10.0) -> None:
        self._host = host
        self._port = port
        self._dial_timeout = dial_timeout
        self._state: State = "connecting"
        self._since = time.time()
        self._reconnects = 0
        self._last_error: str | None = None
        self._peer: tuple[str, int] | None = None
        self._waiting = 0
        self._nudged = asyncio.Event()

    async def start(self, timeout: float) -> None:
        """See that it is there, and that it speaks SOCKS5.

        :raises EndpointError: it is not, or does not.
        """
        try:
            async with asyncio.timeout(timeout):
                sock = await self._connect()
                with sock:
                    # As far as the answer to the greeting; 0.0.0.0 is not asked for.
                    await _exchange(sock, Client("0.0.0.0", 1), greeting_only=True)  # noqa: S104 - nobody listens
        except (OSError, NotSocks) as error:
            why = f"nothing answered within {timeout:g} s" if isinstance(error, TimeoutError) else _words(error)
            self._enter("closed", why)
            raise EndpointError(
                f"cannot use the SOCKS proxy {self}", why, "start it, or see that --socks-upstream names it"
            ) from None
        self._enter("connected", None)

    async def close(self) -> None:
        """Dial no more."""
        self._enter("closed", None)
        self._nudged.set()

    def nudge(self) -> None:
        """Something has changed: whoever waits for the proxy tries again at once."""
        self._nudged.set()

    def retry(self) -> None:
        """The same."""
        self._nudged.set()

    @property
    def peer_addresses(self) -> tuple[tuple[str, int], ...]:
        """The address and port of the proxy, as connected to last: traffic to them must be left alone."""
        return (self._peer,) if self._peer else ()

    def status(self) -> TunnelStatus:
        """Return what ``tp2 status`` says about the way into the cluster."""
        return TunnelStatus(
            state=self._state,
            remote=str(self),
            through=None,
            since=self._since,
            reconnects=self._reconnects,
            last_error=self._last_error,
            host_key=None,
        )

    def __str__(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"socks5://{host}:{self._port}"

    async def dial(self, host: str, port: int) -> tuple[socket.socket, bytes]:
        """Return a socket that is connected to *host* and *port*, and what the destination has said already.

        :raises ChannelRefused: there is none, with the reason.
        """
        sock = await self._reach()
        try:
            return sock, await self._ask(sock, host, port)
        except BaseException:
            sock.close()
            raise

    async def _ask(self, sock: socket.socket, host: str, port: int) -> bytes:
        """Have the proxy connect *sock*; return what the destination has said already.

        :raises ChannelRefused: it does not.
        """
        client = Client(host, port)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                reply = await _exchange(sock, client)
        except TimeoutError:
            raise ChannelRefused(Refusal.TIMED_OUT, f"no answer within {OPEN_TIMEOUT:g} s") from None
        except OSError as error:
            raise ChannelRefused(Refusal.FAILED, _words(error)) from None
        except NotSocks as error:
            self._last_error = f"{self}: {error}"
            raise ChannelRefused(Refusal.NOT_CONNECTED, self._last_error) from None
        if reply is not Reply.SUCCEEDED:
            raise ChannelRefused(_REFUSALS.get(reply, Refusal.FAILED), f"the proxy says {reply.name.lower()}")
        return client.early

    async def _reach(self) -> socket.socket:
        """Return a connection to the proxy; waits, bounded, for one that cannot be reached."""
        deadline = time.monotonic() + self._dial_timeout
        while True:
            if self._state == "closed" or self._waiting >= MAX_WAITERS:
                raise self._not_connected()
            try:
                sock = await self._connect()
            except OSError as error:
                self._enter("reconnecting", _words(error))
                if time.monotonic() + EAGER > deadline:
                    raise self._not_connected() from None
            else:
                if self._state == "reconnecting":
                    self._reconnects += 1
                self._enter("connected", None)
                return sock
            self._waiting += 1
            try:
                await self._pause()
            finally:
                self._waiting -= 1

    async def _pause(self) -> None:
        self._nudged.clear()
        try:
            async with asyncio.timeout(EAGER):
                await self._nudged.wait()
        except TimeoutError:
            pass

    async def _connect(self) -> socket.socket:
        sock = await dial(self._host, self._port)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = sock.getpeername()[:2]
        return sock

    def _not_connected(self) -> ChannelRefused:
        return ChannelRefused(Refusal.NOT_CONNECTED, f"{self._state}: {self._last_error or self}")

    def _enter(self, state: State, error: str | None) -> None:
        if self._state == "closed":
            return
        if error:
            self._last_error = error
        if state != self._state:
            self._state, self._since = state, time.time()
            level = logging.WARNING if state == "reconnecting" else logging.DEBUG
            logger.log(level, "%s: %s%s", self, state, f" ({error})" if error else "")


def _words(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return f"its name does not resolve ({error.strerror})"
    # Event loops put words of their own into strerror.
    return os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)


async def _exchange(sock: socket.socket, client: Client, *, greeting_only: bool = False) -> Reply:
    """Talk until it is decided; with *greeting_only*, until the proxy has agreed to be asked.

    :raises NotSocks: it is none.
    :raises OSError: it hung up.
    """
    loop = asyncio.get_running_loop()
    said: bytes | Reply | None = client.start()
    while not isinstance(said, Reply):
        if said:
            await loop.sock_sendall(sock, said)
        data = await loop.sock_recv(sock, 4096)
        if not data:
            raise ConnectionResetError("the proxy hung up")
        said = client.receive(data)
        if greeting_only and said:
            return Reply.SUCCEEDED
    return said
