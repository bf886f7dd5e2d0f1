"""Keeps the operating system in step with the mapping table: a listener and a rule for each mapping.

``ensure`` is what the DNS server waits for before an answer leaves: it leases the mappings, opens their listeners and
commits their rules, in that order, so that a client that connects at once is accepted. All changes that come up while
one commit is under way go into the next one together: a burst of lookups costs a few commits, not one each.

Collection runs the same way back: the rule goes first, then what is still in the listener's queue is accepted, then
the listener closes (when the last connection has ended), then the port rests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tp2.errors import ForwarderError, Tp2Error
from tp2.portmap.listeners import Listeners
from tp2.portmap.table import Exhausted, Mapping, Phase, Table
from tp2.types import Destination, Redirect, Wanted

logger = logging.getLogger(__name__)


class Forwarder(Protocol):
    """What this room needs of the operating system."""

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


@dataclass(slots=True)
class _Batch:
    """Changes that will be committed together, and the future of everybody who waits for that."""

    done: asyncio.Future[None]
    add: dict[Destination, Mapping] = field(default_factory=dict)
    remove: dict[Destination, Mapping] = field(default_factory=dict)


class Mapper:
    """The portmap mode: a :class:`tp2.dns.server.Capture` on top of a table, listeners and a forwarder."""

    def __init__(
        self,
        table: Table,
        forwarder: Forwarder,
        carrier: Carrier,
        *,
        spare: Callable[[Destination], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param spare: says of a destination that it is to be left alone (tp2's own way to the cluster)."""
        self.table = table
        self._forwarder = forwarder
        self._carrier = carrier
        self._spare = spare
        self._clock = clock
        self._listeners = Listeners(self._accepted)
        self._flows: dict[Mapping, set[Flow]] = {}
        self._by_port: dict[int, Mapping] = {}
        self._batch: _Batch | None = None
        self._opening: dict[Destination, asyncio.Future[None]] = {}
        self._wanted = asyncio.Event()

    async def run(self) -> None:
        """Commit and collect until cancelled; then every listener is closed (the connections are the carrier's)."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._commit_batches())
                group.create_task(self._collect_when_due())
        finally:
            if self._batch is not None:
                self._batch.done.cancel()
            self._listeners.close_all()

    def renew(self, wanted: Sequence[Wanted]) -> bool:
        """Extend the leases for an answer that names *wanted*; False if any of them is not captured yet."""
        now = self._clock()
        return all(self.table.renew(item, now) or self._spare(item.destination) for item in wanted)

    async def ensure(self, wanted: Sequence[Wanted]) -> None:
        """Return when every destination in *wanted* has an accepting listener and a rule.

        :raises ForwarderError: no port is left, or the platform refused a rule. Nothing half-done stays.
        """
        waits: set[asyncio.Future[None]] = set()
        now = self._clock()
        for item in wanted:
            if self._spare(item.destination) or self.table.renew(item, now):
                continue
            mapping = await self._lease(item)
            if mapping.phase is Phase.OPENING:
                waits.add(self._open(mapping))
        for future in waits:
            # Shielded: others wait for the same commit, and one caller's cancellation is not theirs.
            await asyncio.shield(future)

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the live table as ``tp2 mappings --json`` prints it."""
        now, wall = self._clock(), time.time()
        rows = []
        for mapping in self.table:
            flows = self._flows.get(mapping, ())
            expires_at = self.table.expires_at(mapping)
            rows.append(
                {
                    "name": mapping.name,
                    "address": mapping.destination.address,
                    "port": mapping.destination.port,
                    "local_address": loopback(mapping.destination),
                    "local_port": mapping.local_port,
                    "state": mapping.state,
                    "connections": mapping.connections,
                    "total_connections": mapping.total_connections,
                    "bytes_sent": mapping.bytes_sent + sum(flow.bytes_sent for flow in flows),
                    "bytes_received": mapping.bytes_received + sum(flow.bytes_received for flow in flows),
                    "last_used": wall - (now - mapping.last_used),
                    "expires_in": None if expires_at is None else round(max(0.0, expires_at - now), 1),
                }
            )
        return rows

    async def _lease(self, item: Wanted) -> Mapping:
        """Lease, giving up an unused mapping for it if the table is full."""
        while True:
            try:
                return self.table.lease(item, self._clock())
            except Exhausted as error:
                victims = self.table.evictable(self._clock(), 1)
                if not victims:
                    raise _exhausted(error) from error
            victim = victims[0]
            logger.info("the table is full: giving up %s (%s) for %s", victim.destination, victim.name, item.name)
            await self._give_up(victims)

    def _open(self, mapping: Mapping) -> asyncio.Future[None]:
        """Open the listener and put the rule into the next commit; return the future of that commit."""
        under_way = self._opening.get(mapping.destination)
        if under_way is not None:
            return under_way
        while mapping.local_port not in self._by_port:
            try:
                self._listeners.open(loopback(mapping.destination), mapping.local_port)
            except OSError as error:
                logger.debug("port %d cannot be used: %s", mapping.local_port, error)
                try:
                    self.table.another_port(mapping, self._clock())
                except Exhausted as exhausted:
                    self.table.discard(mapping, self._clock())
                    raise _exhausted(exhausted) from error
            else:
                self._by_port[mapping.local_port] = mapping
        batch = self._next_batch()
        batch.add[mapping.destination] = mapping
        self._opening[mapping.destination] = batch.done
        return batch.done

    def _next_batch(self) -> _Batch:
        if self._batch is None:
            self._batch = _Batch(asyncio.get_running_loop().create_future())
            self._wanted.set()
        return self._batch

    async def _commit_batches(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            batch, self._batch = self._batch, None
            if batch is not None:
                await self._commit(batch)

    async def _commit(self, batch: _Batch) -> None:
        # Asked for again before its rule was taken away: then the rule simply stays.
        remove = [destination for destination in batch.remove if destination not in batch.add]
        add = [Redirect(destination, mapping.local_port) for destination, mapping in batch.add.items()]
        try:
            await self._forwarder.update(add, remove)
        except Tp2Error as error:
            logger.warning("%s. %s", error, error.remedy)
            for mapping in batch.add.values():
                del self._opening[mapping.destination]
                if mapping.destination in batch.remove:
                    # Its rule was to go and then to stay: nothing was changed, so it stands.
                    self.table.opened(mapping)
                else:
                    self.table.withdrawn(mapping)
                    self._close_if_drained(mapping)
            batch.done.set_exception(error)
            batch.done.exception()  # marks it as seen: whoever waited may have been cancelled
            return
        for mapping in batch.add.values():
            del self._opening[mapping.destination]
            self.table.opened(mapping)
        for mapping in batch.remove.values():
            if mapping.phase is Phase.WITHDRAWING:
                self.table.withdrawn(mapping)
                # A connection that the rule let through just before it went is in the queue by now.
                self._listeners.accept_pending(mapping.local_port)
                self._close_if_drained(mapping)
        batch.done.set_result(None)

    async def clear(self) -> None:
        """Let go of every mapping, in use or not: what they stand for is not there any more."""
        # Those that are being opened have to be open to be let go of.
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        everything = [mapping for mapping in self.table if mapping.phase is Phase.LIVE]
        if everything:
            with contextlib.suppress(Tp2Error):  # logged already
                await self._give_up(everything)
        for flows in list(self._flows.values()):
            for flow in list(flows):
                flow.abort()

    async def collect(self) -> None:
        """Give up what has been unused for long enough; returns when its rules are gone, or were refused to go."""
        if expired := self.table.expired(self._clock()):
            with contextlib.suppress(Tp2Error):  # logged already; they are tried again with the next round
                await self._give_up(expired)

    async def _collect_when_due(self) -> None:
        while True:
            at = self.table.next_expiry()
            longest = self.table.idle_timeout
            delay = longest if at is None else min(longest, at - self._clock())
            # At least a moment: expiries that lie close together are collected, and committed, together.
            await asyncio.sleep(max(0.05, delay))
            await self.collect()

    async def _give_up(self, mappings: Iterable[Mapping]) -> None:
        """Take the rules of *mappings* away, and let go of those that are not asked for again meanwhile."""
        batch = self._next_batch()
        given_up = list(mappings)
        for mapping in given_up:
            self.table.withdraw(mapping)
            batch.remove[mapping.destination] = mapping
        try:
            await asyncio.shield(batch.done)
        except Tp2Error:
            # The rules still stand, and so must the listeners behind them.
            for mapping in given_up:
                if mapping.phase is Phase.WITHDRAWING:
                    self.table.opened(mapping)
            raise

    def _close_if_drained(self, mapping: Mapping) -> None:
        if mapping.phase is Phase.DRAINING and not mapping.connections:
            self._listeners.close(mapping.local_port)
            del self._by_port[mapping.local_port]
            self.table.discard(mapping, self._clock())

    def _accepted(self, port: int, sock: socket.socket) -> None:
        mapping = self._by_port[port]
        self.table.connected(mapping, self._clock())
        flow = self._carrier.carry(sock, mapping.destination, lambda flow: self._ended(mapping, flow))
        self._flows.setdefault(mapping, set()).add(flow)

    def _ended(self, mapping: Mapping, flow: Flow) -> None:
        flows = self._flows.get(mapping)
        if flows is not None:
            flows.discard(flow)
            if not flows:
                del self._flows[mapping]
        self.table.disconnected(mapping, self._clock(), sent=flow.bytes_sent, received=flow.bytes_received)
        self._close_if_drained(mapping)


def loopback(destination: Destination) -> str:
    """Return the loopback address on which connections for *destination* arrive: that of its own family."""
    return "::1" if destination.is_ipv6 else "127.0.0.1"


def _exhausted(error: Exhausted) -> ForwarderError:
    return ForwarderError(
        "no local port is left for another mapping",
        str(error),
        "give tp2 more ports (--ports), raise the open-file limit (ulimit -n), or shorten --idle-timeout",
    )
