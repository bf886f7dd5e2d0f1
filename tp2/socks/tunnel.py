"""The SSH connection into the cluster, kept up for as long as tp2 runs.

One task keeps it: it waits for the connection to end, then tries again, at once and after that by
:class:`~tp2.backoff.Backoff`, for ever. What a new channel meets depends on the state:

============= ========================================== ==============================================
state         the connection                             a new channel
============= ========================================== ==============================================
connecting    the first attempt, by :meth:`Tunnel.start` waits, bounded
connected     is up                                      is opened
reconnecting  was lost, or cannot be reached             waits, bounded in time and number
failed        a key or login is wrong: somebody has to   fails at once, with the reason
              act; it is still tried, slowly
closed        :meth:`Tunnel.close` was called            fails at once
============= ========================================== ==============================================

Channels that were open when the connection ended are told at once by asyncssh, and their relays reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, TypedDict

import asyncssh

from tp2.backoff import Backoff
from tp2.errors import EndpointError, Tp2Error
from tp2.socks import fastssh
from tp2.socks.channel import WINDOW, End
from tp2.socks.dial import SocketStream, Stream, Way, direct
from tp2.socks.login import (
    KEEPALIVE_INTERVAL,
    KEEPALIVE_MISSES,
    Access,
    Endpoint,
    is_up,
    parse_host_key,
)
from tp2.socks.opening import Opening
from tp2.socks.reasons import ChannelRefused, Refusal, channel_refused, dial_failed
from tp2.system.environment import has_address
from tp2.undisturbed import undisturbed

__all__ = ["Endpoint", "Tunnel", "TunnelStatus"]

logger = logging.getLogger(__name__)

OPEN_TIMEOUT = 30.0
"""Seconds for the endpoint to reach a destination. A lost SYN is sent again after 1, 3, 7 and 15 s, so a
destination that is slow but there gets its chance; sshd alone would wait two minutes for one that is not."""

EAGER = 0.25
"""The longest pause between attempts, in seconds, while a channel waits: whoever waits wants to know at once."""

FAILED_RETRY = 10.0
"""Seconds between attempts while the state is failed. sshd counts failed logins against an address and forgives
them within about 5 s each (PerSourcePenalties); a client that tries more often than that locks itself out."""

STALE = 1.0
"""Seconds after which an attempt is given up for a new one when the endpoint's pods have changed."""

MAX_WAITERS = 1024
"""Channels that may wait for a reconnect: each holds a local socket open."""

PROBE = (0.5, 2)
"""Seconds between the keepalives that find out whether a connection survived, and how many may go unanswered."""

State = Literal["connecting", "connected", "reconnecting", "failed", "closed"]


class TunnelStatus(TypedDict):
    """``since`` is the Unix time of the last change of ``state``; ``through`` says in words what the connection leads
    through, where that is not the endpoint's own address; ``host_key`` is a SHA256 fingerprint."""

    state: State
    remote: str
    through: str | None
    since: float
    reconnects: int
    last_error: str | None
    host_key: str | None


class _Link:
    """One SSH connection; ``lost`` is done when it has ended, with the cause where there is one."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.connection: asyncssh.SSHClientConnection
        self.stream: Stream
        self.through = ""
        self.fast: fastssh.FastLink | None = None

    def relax(self) -> None:
        """Go back to the ordinary keepalives after a probe."""
        if not self.lost.done():
            self.connection.set_keepalive(KEEPALIVE_INTERVAL, KEEPALIVE_MISSES)

    def on_lost(self, cause: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(cause)


class Tunnel:
    """A connection to *endpoint* that comes back.

    :param identity: private key file to offer, and no other; ``None`` offers those of ssh-agent and ``~/.ssh``.
    :param host_key: the one public key the endpoint may present, as an OpenSSH line; ``None`` checks *known_hosts*.
    :param known_hosts: ``None`` means ``~/.ssh/known_hosts``.
    :param dial_timeout: how many seconds a new channel waits for a lost connection to come back.
    :param connect: opens a way to the endpoint, and bounds the time for that; raises :class:`OSError` or
        :class:`Tp2Error`. A ``lasting`` one makes the state failed.
    :raises UsageError: when *host_key* is not a public key.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        identity: Path | None,
        host_key: str | None,
        known_hosts: Path | None = None,
        dial_timeout: float = 10.0,
        connect: Callable[[str, int], Awaitable[Way]] = direct,
    ) -> None:
        self._endpoint = endpoint
        self._access = Access(endpoint, identity, parse_host_key(host_key) if host_key else None, known_hosts)
        self._dial_timeout = dial_timeout
        self._connect = connect
        self._backoff = Backoff()
        self._nudged = asyncio.Event()
        self._disturbed = asyncio.Event()
        self._attempting_since: float | None = None
        # Set to have a pause look again at how long it should be.
        self._wanted = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._link: _Link | None = None
        self._waiters: set[asyncio.Future[_Link]] = set()
        self._openings: set[asyncio.Task[asyncssh.SSHTCPChannel[bytes]]] = set()
        self._state: State = "connecting"
        self._since = time.time()
        self._reconnects = 0
        self._last_error: str | None = None

    async def start(self, timeout: float) -> None:
        """Connect, in one attempt of at most *timeout* seconds.

        :raises Tp2Error: with the cause and what to do; the tunnel is then closed.
        """
        try:
            async with asyncio.timeout(timeout):
                link = await self._attempt()
        except TimeoutError:
            self._enter("closed", "timed out")
            raise EndpointError(
                f"cannot open an SSH connection to {self._endpoint}",
                f"it was not up after {timeout:g} s",
                "check that the endpoint is up and reachable; ssh to it shows where it hangs",
            ) from None
        except Tp2Error as error:
            self._enter("closed", str(error))
            raise
        self._use(link)
        self._keeper = asyncio.create_task(self._keep_up(link), name="ssh tunnel")

    async def close(self) -> None:
        """Close the connection; every channel is told. May be called at any time, also twice."""
        self._enter("closed", None)
        if self._keeper:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        if link := self._link:
            self._link = None
            link.connection.close()
            await link.connection.wait_closed()
            await _end(link.stream)
        self._refuse_waiters()
        if self._openings:
            await asyncio.wait(self._openings)

    def nudge(self) -> None:
        """The machine woke up, or its network changed: try again at once if the connection is down, even if an attempt
        is under way, and if it is up, find out within :data:`PROBE` whether it only seems so."""
        self.retry()
        self._disturbed.set()
        link = self._link
        if link is None or link.lost.done():
            return
        if not has_address(link.stream.local):
            link.connection.abort()
            return
        interval, misses = PROBE
        link.connection.set_keepalive(interval, misses)
        # Answered or not, it is known by then.
        loop = asyncio.get_running_loop()
        loop.call_later(interval * (misses + 2), link.relax)

    def retry(self) -> None:
        """The endpoint has changed: try again at once if the connection is down.

        An attempt that has been under way for more than :data:`STALE` may be at what is there no more.
        """
        if self._attempting_since is not None and time.monotonic() - self._attempting_since > STALE:
            self._disturbed.set()
        self._backoff.reset()
        self._nudged.set()
        self._wanted.set()

    @property
    def peer_addresses(self) -> tuple[tuple[str, int], ...]:
        """The address and port of the endpoint, as connected to now: traffic to them must be left alone."""
        return (self._link.stream.peer,) if self._link else ()

    def status(self) -> TunnelStatus:
        """Return what ``tp2 status`` says about the tunnel."""
        key = self._link.connection.get_server_host_key() if self._link else None
        return TunnelStatus(
            state=self._state,
            remote=str(self._endpoint),
            through=(self._link.through or None) if self._link else None,
            since=self._since,
            reconnects=self._reconnects,
            last_error=self._last_error,
            host_key=key.get_fingerprint() if key else None,
        )

    async def open(
        self, session_factory: Callable[[], asyncssh.SSHTCPSession[bytes]], host: str, port: int
    ) -> asyncssh.SSHTCPChannel[bytes]:
        """Open a channel to *host* (a name is resolved by the endpoint) and *port* and give it to a new session.

        Waits for a lost connection to come back, for the time given to the constructor, which counts from when it is
        known to be lost. An open that is cancelled
        or times out leaves no channel behind, even if the endpoint grants it later.

        :raises ChannelRefused: when it cannot be opened, with the reason.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._dial_timeout
        # A connection that comes back only to go away again is not waited for for ever.
        end = deadline + OPEN_TIMEOUT
        while True:
            link = await self._connected(deadline)
            try:
                return await self._open_channel(link, session_factory, host, port)
            except asyncssh.ChannelOpenError as error:
                if is_up(link.connection):
                    refused = channel_refused(error)
                    self._note(refused, host, port)
                    raise refused from None
            # The connection went away under the open. No byte was passed yet, so it can be tried again.
            await asyncio.shield(link.lost)
            deadline = min(clock() + self._dial_timeout, end)

    def begin(self, end: End, host: str, port: int, failed: Callable[[ChannelRefused | None], None]) -> Opening | None:
        """Open a channel as :meth:`open` does and give it to *end*, if that takes nothing to wait for but the answer.

        :param failed: called once if it does not open, with the reason; with None, :meth:`open` may still succeed.
        :returns: what can be cancelled until it is open, or None: then :meth:`open` is the way.
        """
        link = self._link
        if link is None or link.fast is None or link.lost.done():
            return None

        def refused(why: ChannelRefused | None) -> None:
            self._note(why, host, port)
            failed(why)

        with contextlib.suppress(ConnectionError):
            return Opening(link.fast, end, host, port, OPEN_TIMEOUT, refused)
        return None

    def _note(self, refused: ChannelRefused | None, host: str, port: int) -> None:
        """Have the status tell of an endpoint that forwards nothing."""
        if refused and refused.refusal is Refusal.PROHIBITED:
            self._last_error = f"the endpoint does not allow forwarding to {host}:{port}: {refused.detail}"

    async def _connected(self, deadline: float) -> _Link:
        if self._link and not self._link.lost.done():
            return self._link
        if self._state in ("failed", "closed") or len(self._waiters) >= MAX_WAITERS:
            raise self._not_connected()
        waiter: asyncio.Future[_Link] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        self._wanted.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except TimeoutError:
            raise self._not_connected() from None
        finally:
            self._waiters.discard(waiter)

    def _not_connected(self) -> ChannelRefused:
        return ChannelRefused(Refusal.NOT_CONNECTED, f"{self._state}: {self._last_error or self._endpoint}")

    def _refuse_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(self._not_connected())

    async def _open_channel(
        self, link: _Link, session_factory: Callable[[], asyncssh.SSHTCPSession[bytes]], host: str, port: int
    ) -> asyncssh.SSHTCPChannel[bytes]:
        async def opening() -> asyncssh.SSHTCPChannel[bytes]:
            channel, _ = await link.connection.create_connection(session_factory, host, port, window=WINDOW)
            return channel

        # In a task of its own: asyncssh forgets an open that is cancelled, and the endpoint's grant would then
        # leave a channel that nobody closes.
        task = asyncio.create_task(opening())
        self._openings.add(task)
        task.add_done_callback(self._openings.discard)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                return await asyncio.shield(task)
        except TimeoutError:
            if task.done():
                return task.result()
            task.add_done_callback(_abort_channel)
            raise ChannelRefused(Refusal.TIMED_OUT, f"no answer within {OPEN_TIMEOUT:g} s") from None
        except asyncio.CancelledError:
            task.add_done_callback(_abort_channel)
            raise

    async def _keep_up(self, link: _Link) -> None:
        while True:
            cause = await link.lost
            self._enter("reconnecting", f"connection lost: {cause or 'closed by the endpoint'}")
            await _end(link.stream)
            self._link = None
            delay = self._backoff.failed(time.monotonic())
            while True:
                await self._pause(delay)
                try:
                    link = await undisturbed(self._attempt, self._disturbed)
                    break
                except Tp2Error as error:
                    self._enter("failed" if error.lasting else "reconnecting", str(error))
                    if error.lasting:
                        self._refuse_waiters()
                    delay = FAILED_RETRY if error.lasting else self._backoff.failed(time.monotonic())
            self._reconnects += 1
            self._use(link)

    async def _pause(self, delay: float) -> None:
        """Wait for *delay* seconds, for :data:`EAGER` at the most while somebody waits, or until nudged."""
        began = time.monotonic()
        self._nudged.clear()
        while not self._nudged.is_set():
            self._wanted.clear()
            left = (
                began + (min(delay, EAGER) if self._waiters and self._state != "failed" else delay) - time.monotonic()
            )
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wanted.wait()

    async def _attempt(self) -> _Link:
        self._attempting_since = time.monotonic()
        try:
            return await self._open_link()
        finally:
            self._attempting_since = None

    async def _open_link(self) -> _Link:
        link = _Link()
        try:
            way = await self._connect(self._endpoint.host, self._endpoint.port)
        except OSError as error:
            raise dial_failed(str(self._endpoint), error) from None
        try:
            link.stream, link.through = way.stream, way.through
            link.connection = await self._access.log_in(way, link.on_lost)
            link.fast = fastssh.take_over(link.connection, socket_below=isinstance(way.stream, SocketStream))
        except BaseException:
            await _end(way.stream)
            raise
        return link

    def _use(self, link: _Link) -> None:
        self._backoff.succeeded(time.monotonic())
        self._link = link
        self._enter("connected", None)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(link)

    def _enter(self, state: State, error: str | None) -> None:
        if error:
            self._last_error = error
        if state != self._state:
            self._state = state
            self._since = time.time()
            # Coming up and going down is said elsewhere; what the user should hear of is a loss, and its end.
            level = logging.INFO if state == "connected" and self._reconnects else logging.DEBUG
            logger.log(
                logging.WARNING if state in ("reconnecting", "failed") else level,
                "tunnel to %s: %s%s",
                self._endpoint,
                state,
                f" ({error})" if error else "",
            )


async def _end(stream: Stream) -> None:
    stream.abort()
    await stream.wait_closed()


def _abort_channel(task: asyncio.Task[asyncssh.SSHTCPChannel[bytes]]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().abort()
