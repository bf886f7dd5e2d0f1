"""Turns an accepted local connection into a connection to its destination in the cluster.

A flow starts at once and on its own: its channel is opened in the background while the client may already talk.
When the channel cannot be opened the client is reset, which is what it would see of a service that goes away; the
reason is counted in :attr:`Connector.refused` and logged.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from tp2.socks.opening import Opening
from tp2.socks.proxied import Proxied, socket_of
from tp2.socks.proxy import SocksProxy
from tp2.socks.reasons import ChannelRefused, Refusal
from tp2.socks.relay import Relay, reset_on_close
from tp2.socks.tunnel import Tunnel
from tp2.types import Destination

__all__ = ["Connector", "Flow"]

logger = logging.getLogger(__name__)

LOG_INTERVAL = 10.0
"""Seconds between two warnings about the same kind of refusal; those in between are logged for debugging only."""


class Flow(Relay):
    """One connection on its way to *destination*; see :class:`~tp2.socks.relay.Relay` for its counters and end.

    ``refusal`` is why it got no channel, if it got none; nobody is told of that if it is ``quiet``.
    """

    def __init__(self, destination: Destination, on_close: Callable[[], None], *, quiet: bool = False) -> None:
        super().__init__(on_close)
        self.destination = destination
        self.quiet = quiet
        self.refusal: ChannelRefused | None = None


@dataclass(slots=True)
class Carried:
    """Connections so far, those included that got no channel, and the bytes of both directions."""

    connections: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def add(self, flow: Relay | Proxied) -> None:
        """Count the bytes of *flow* as of now."""
        self.bytes_sent += flow.bytes_sent
        self.bytes_received += flow.bytes_received


class Connector:
    """Carries connections through *tunnel*, or through the proxy that stands in its place.

    ``refused`` counts the connections whose channel could not be opened, by reason.
    """

    def __init__(self, tunnel: Tunnel | SocksProxy) -> None:
        self.refused: Counter[Refusal] = Counter()
        self._tunnel = tunnel
        # With what still works on a connection: it is cancelled when that ends.
        self._flows: dict[Relay | Proxied, asyncio.Task[None] | Opening] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._all_gone = asyncio.Event()
        self._warned: dict[Refusal, float] = {}
        # Of those that have ended.
        self._ended = Carried()

    def status(self) -> dict[str, object]:
        """Return the ``connections`` part of ``tp2 status``."""
        carried = Carried(self._ended.connections, self._ended.bytes_sent, self._ended.bytes_received)
        flows = [flow for flow in self._flows if not _is_quiet(flow)]
        for flow in flows:
            carried.add(flow)
        return {
            "open": len(flows),
            "total": carried.connections + len(flows),
            "bytes_sent": carried.bytes_sent,
            "bytes_received": carried.bytes_received,
            "failed": {refusal.value: count for refusal, count in self.refused.items()},
        }

    def use(self, tunnel: Tunnel | SocksProxy) -> None:
        """Use *tunnel*, which is of the same kind, from now on; what is open stays with the one it has."""
        self._tunnel = tunnel

    def carry(
        self,
        sock: socket.socket,
        destination: Destination,
        on_close: Callable[[Flow | Proxied], None],
        *,
        quiet: bool = False,
    ) -> Flow | Proxied:
        """Connect *sock*, an accepted TCP socket, to *destination*; returns at once and never raises.

        :param sock: connected and non-blocking; belongs to the flow from here on.
        :param on_close: called once, later, when *sock* is closed.
        :param quiet: neither count nor log that it gets no channel: whoever made it asks for its ``refusal``.
        """
        flow: Flow | Proxied

        def closed() -> None:
            self._closed(flow, lambda: on_close(flow))

        if isinstance(self._tunnel, SocksProxy):
            flow = Proxied(sock, closed, destination=destination, quiet=quiet)
            self._start(flow, self._dial(self._tunnel, flow, destination.address, destination.port))
        else:
            flow = Flow(destination, closed, quiet=quiet)
            self._start(flow, self._accept(flow, sock, destination))
        if self._closing:
            flow.abort()
        return flow

    def join(
        self,
        transport: asyncio.Transport,
        early: bytes,
        host: str,
        port: int,
        answer: Callable[[ChannelRefused | None], bytes],
    ) -> None:
        """Connect a transport that some protocol has used so far to *host* and *port*.

        :param early: bytes read from the transport that belong to the destination.
        :param answer: gives what to tell the client, called once: with ``None`` when the channel is open, else with
            the reason why it is not, after which the transport is closed.
        """
        if isinstance(self._tunnel, SocksProxy):
            self._work(self._join_proxied(self._tunnel, transport, early, host, port, answer))
            return
        relay = Relay(lambda: self._closed(relay, None), lambda: answer(None))
        transport.set_protocol(relay)
        relay.connection_made(transport)
        if early:
            relay.data_received(early)
        self._begin(relay, host, port, answer)
        if self._closing:
            relay.abort()

    async def close(self) -> None:
        """Reset all connections and return when they are gone; what is carried from now on is reset too."""
        self._closing = True
        for flow in list(self._flows):
            flow.abort()
        while self._flows or self._tasks:
            self._all_gone.clear()
            await self._all_gone.wait()

    def _start(self, flow: Relay | Proxied, work: Coroutine[object, object, None]) -> None:
        self._flows[flow] = self._work(work)

    def _work(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def _join_proxied(
        self,
        proxy: SocksProxy,
        transport: asyncio.Transport,
        early: bytes,
        host: str,
        port: int,
        answer: Callable[[ChannelRefused | None], bytes],
    ) -> None:
        try:
            client = await socket_of(transport)
        except OSError as error:
            logger.debug("a connection to %s was gone before it was carried: %s", host, error)
            return
        flow = Proxied(client, lambda: self._closed(flow, None))
        self._start(flow, self._dial(proxy, flow, host, port, early, answer))
        if self._closing:
            flow.abort()

    async def _dial(
        self,
        proxy: SocksProxy,
        flow: Proxied,
        host: str,
        port: int,
        early: bytes = b"",
        answer: Callable[[ChannelRefused | None], bytes] = lambda _: b"",
    ) -> None:
        try:
            server, said = await proxy.dial(host, port)
        except ChannelRefused as refused:
            self._refuse(flow, refused, host, port, answer)
        else:
            flow.join(server, early=early, welcome=answer(None), said=said)

    async def _accept(self, flow: Flow, sock: socket.socket, destination: Destination) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: flow, sock)
        except OSError as error:
            logger.debug("a connection to %s was gone before it was carried: %s", destination, error)
            reset_on_close(sock)
            sock.close()
            flow.connection_lost(error)
            return
        if not flow.closed:
            self._begin(flow, destination.address, destination.port, lambda _: b"")

    def _begin(self, relay: Relay, host: str, port: int, answer: Callable[[ChannelRefused | None], bytes]) -> None:
        """Open a channel for *relay*, in a task only if there is something to wait for."""

        def failed(refused: ChannelRefused | None) -> None:
            if refused is None:
                self._start(relay, self._open(relay, host, port, answer))
            else:
                self._refuse(relay, refused, host, port, answer)

        assert isinstance(self._tunnel, Tunnel)
        opening = self._tunnel.begin(relay, host, port, failed)
        if opening is None:
            failed(None)
        else:
            self._flows[relay] = opening

    async def _open(self, relay: Relay, host: str, port: int, answer: Callable[[ChannelRefused | None], bytes]) -> None:
        assert isinstance(self._tunnel, Tunnel)
        try:
            await self._tunnel.open(relay.session, host, port)
        except ChannelRefused as refused:
            self._refuse(relay, refused, host, port, answer)

    def _refuse(
        self,
        relay: Relay | Proxied,
        refused: ChannelRefused,
        host: str,
        port: int,
        answer: Callable[[ChannelRefused | None], bytes],
    ) -> None:
        if isinstance(relay, Flow | Proxied):
            relay.refusal = refused
        if not _is_quiet(relay):
            self._count(refused, host, port)
        relay.refuse(answer(refused))

    def _count(self, refused: ChannelRefused, host: str, port: int) -> None:
        self.refused[refused.refusal] += 1
        now = asyncio.get_running_loop().time()
        last = self._warned.get(refused.refusal)
        warn = last is None or now - last >= LOG_INTERVAL
        if warn:
            self._warned[refused.refusal] = now
        logger.log(logging.WARNING if warn else logging.DEBUG, "no connection to %s port %d: %s", host, port, refused)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake()

    def _closed(self, flow: Relay | Proxied, on_close: Callable[[], None] | None) -> None:
        work = self._flows.pop(flow, None)
        if not _is_quiet(flow):
            self._ended.connections += 1
            self._ended.add(flow)
        if work:
            work.cancel()
        self._wake()
        if on_close:
            on_close()

    def _wake(self) -> None:
        if not self._flows and not self._tasks:
            self._all_gone.set()


def _is_quiet(flow: Relay | Proxied) -> bool:
    return isinstance(flow, Flow | Proxied) and flow.quiet
