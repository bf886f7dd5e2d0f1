"""The origdst mode: one listener a family takes all captured connections, and the kernel says where each was going.

Here an address that somebody pasted works without a lookup, whatever the port: what is captured is the addresses of the
cluster's services and pods. A DNS answer waits until its addresses are among them.

Nobody gets anywhere that is not the cluster's. A connection is carried only if the kernel says that it was going to one
of its addresses, as the catalog has them now, or to a destination that was pinned; this machine's own addresses are
never among them. Whoever connects to the listener itself is reset, and so is a connection to an address that the
cluster has not any more; both are counted.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from tp2.errors import AddressInUse, UsageError
from tp2.origdst.usage import Usage, Use
from tp2.system.listeners import Listeners, reset
from tp2.types import Destination, Redirect, Wanted

logger = logging.getLogger(__name__)

#: Destinations whose refused connections are counted one by one.
MOST_COUNTED: Final = 1000


class Captured(Protocol):
    """The addresses that are captured, whatever the port."""

    def __contains__(self, address: str) -> bool:
        """Whether *address* is captured, and still the cluster's."""

    def has(self, addresses: Iterable[str]) -> bool:
        """Whether each is captured, or left alone."""

    async def ensure(self, addresses: Iterable[str]) -> None:
        """Return when each is; raises Tp2Error."""

    def why(self, address: str) -> str | None:
        """Say why *address* is left alone; None if it is not."""


class Forwarder(Protocol):
    """What else this room needs of the operating system."""

    async def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        """Take redirects away, then set others, in one transaction; raises Tp2Error."""


class Flow(Protocol):
    """A connection on its way to the cluster; the counts are bytes so far."""

    bytes_sent: int
    bytes_received: int

    def abort(self) -> None:
        """Reset the connection; its end is told as any other's."""


class Carrier(Protocol):
    """What takes an accepted connection to the cluster."""

    def carry(self, sock: socket.socket, destination: Destination, on_close: Callable[[Any], None]) -> Flow:
        """Take over *sock*; call *on_close* with the returned flow once, when it has ended."""


class Interceptor:
    """A :class:`tp2.dns.server.Capture` on top of a captured set and the kernel's memory.

    :param origin: says where an accepted connection was going; None if it was to the listener itself.
    :param name: says what people call a destination; ``""`` if they have no name for it.
    :param memory: seconds for which a destination is shown after its last use.
    """

    def __init__(
        self,
        captured: Captured,
        forwarder: Forwarder,
        carrier: Carrier,
        *,
        origin: Callable[[socket.socket], Destination | None],
        name: Callable[[Destination], str] = lambda destination: "",
        memory: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.port = 0
        #: Connections that were reset, by destination, since they were last taken; and those without one.
        self.refused: Counter[Destination] = Counter()
        self.direct = 0
        self.usage = Usage(memory)
        self._captured = captured
        self._forwarder = forwarder
        self._carrier = carrier
        self._origin = origin
        self._name = name
        self._clock = clock
        self._listeners: Listeners[str] = Listeners(self._accepted)
        self._flows: dict[Use, set[Flow]] = {}

    def listen(self, addresses: Sequence[str], ports: Iterable[int]) -> int:
        """Listen on all *addresses* (127.0.0.1, ::1), on the first of *ports* that is free on each; return it.

        :raises AddressInUse: none is.
        """
        for port in ports:
            try:
                for address in addresses:
                    self._listeners.open(address, address, port)
            except OSError as error:
                logger.debug("port %d cannot be used: %s", port, error)
                self._listeners.close_all()
            else:
                self.port = port
                return port
        raise AddressInUse(
            f"cannot listen on {' and '.join(addresses)}",
            "none of the local ports is free",
            "choose others with --ports LOW-HIGH",
        )

    async def run(self) -> None:
        """Serve until cancelled; then nothing is listened to (the connections are the carrier's)."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._listeners.close_all()

    def renew(self, wanted: Sequence[Wanted]) -> bool:
        """Say whether everything that an answer names is captured."""
        return self._captured.has(item.destination.address for item in wanted)

    async def ensure(self, wanted: Sequence[Wanted]) -> None:
        """Return when every destination in *wanted* is captured.

        :raises Tp2Error: the platform refused.
        """
        await self._captured.ensure(item.destination.address for item in wanted)

    async def pin(self, wanted: Sequence[Wanted]) -> None:
        """Capture *wanted* whether or not the cluster has their addresses, until they are unpinned.

        :raises UsageError: one of them is to be left alone.
        :raises Tp2Error: the platform refused.
        """
        for item in wanted:
            if (why := self._captured.why(item.destination.address)) is not None:
                raise UsageError(
                    f"cannot map {item.destination}", why, "connect to it directly: tp2 leaves it as it is"
                )
        await self._forwarder.update([Redirect(item.destination, self.port) for item in wanted], ())
        for item in wanted:
            self.usage.pin(item.destination, item.name, self._clock())

    async def unpin(self, destinations: Iterable[Destination]) -> None:
        """Let go of pinned destinations. Connections to them go on.

        :raises Tp2Error: the platform refused.
        """
        pinned = [there for there in destinations if (use := self.usage.get(there)) is not None and use.pinned]
        if not pinned:
            return
        await self._forwarder.update((), pinned)
        for destination in pinned:
            self.usage.unpin(destination, self._clock())

    async def leave_alone(self) -> None:
        """Let go of pinned destinations that are to be left alone by now.

        :raises Tp2Error: the platform refused.
        """
        await self.unpin([u.destination for u in self.usage if self._captured.why(u.destination.address) is not None])

    def accept(self, destination: Destination, sock: socket.socket) -> bool:
        """Carry a connection to *destination*; False if that is not the cluster's."""
        use = self.usage.get(destination)
        if destination.address not in self._captured and not (use is not None and use.pinned):
            return False
        name = use.name if use is not None and use.pinned else self._name(destination)
        use = self.usage.connected(destination, name, self._clock())
        flow = self._carrier.carry(sock, destination, lambda flow: self._ended(use, flow))
        self._flows.setdefault(use, set()).add(flow)
        return True

    def live(self) -> int:
        """Return how many destinations are in use, or were a while ago."""
        self.usage.forget(self._clock())
        return len(self.usage)

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the destinations in use, and those of a while ago, as ``tp2 mappings --json`` prints them."""
        now, wall = self._clock(), time.time()
        self.usage.forget(now)
        rows = []
        for use in self.usage:
            flows = self._flows.get(use, ())
            expires_at = self.usage.expires_at(use)
            rows.append(
                {
                    "name": use.name,
                    "address": use.destination.address,
                    "port": use.destination.port,
                    "local_address": "::1" if use.destination.is_ipv6 else "127.0.0.1",
                    "local_port": self.port,
                    "state": use.state,
                    "connections": use.connections,
                    "total_connections": use.total_connections,
                    "bytes_sent": use.bytes_sent + sum(flow.bytes_sent for flow in flows),
                    "bytes_received": use.bytes_received + sum(flow.bytes_received for flow in flows),
                    "last_used": wall - (now - use.last_used),
                    "expires_in": None if expires_at is None else round(max(0.0, expires_at - now), 1),
                }
            )
        return rows

    def take_refused(self) -> Counter[Destination]:
        """Return the connections that were reset since this was last asked, by destination."""
        taken, self.refused = self.refused, Counter()
        return taken

    async def clear(self) -> None:
        """Let go of everything, in use or not: it was another cluster's.

        :raises Tp2Error: the platform refused.
        """
        await self.unpin([use.destination for use in self.usage if use.pinned])
        self.usage.clear()
        for flows in list(self._flows.values()):
            for flow in list(flows):
                flow.abort()

    def _accepted(self, _: str, sock: socket.socket) -> None:
        destination = self._origin(sock)
        if destination is None:
            self.direct += 1
            logger.debug("reset a connection that was made to this very port")
            reset(sock)
        elif not self.accept(destination, sock):
            self.refuse(destination, sock)

    def refuse(self, destination: Destination, sock: socket.socket) -> None:
        """Reset a connection whose destination is not the cluster's."""
        if destination in self.refused or len(self.refused) < MOST_COUNTED:
            self.refused[destination] += 1
        reset(sock)

    def _ended(self, use: Use, flow: Flow) -> None:
        flows = self._flows.get(use)
        if flows is not None:
            flows.discard(flow)
            if not flows:
                del self._flows[use]
        self.usage.disconnected(use, self._clock(), sent=flow.bytes_sent, received=flow.bytes_received)
