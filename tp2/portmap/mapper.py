"""Keeps the operating system in step with the mapping table: a listener and a rule for each mapping.

``ensure`` is what the DNS server waits for before an answer leaves: it leases the mappings, opens their listeners and
commits their rules, in that order, so that a client that connects at once is accepted. Collection runs the same way
back: the rule goes first, then what is still in the listener's queue is accepted, then the listener closes (when the
last connection has ended), then the port rests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tp2.errors import ForwarderError, Tp2Error, UsageError
from tp2.portmap.commits import Commit, Commits, Forwarder
from tp2.portmap.table import Exhausted, Mapping, Phase, Table
from tp2.system.listeners import Listeners
from tp2.types import Destination, Wanted

logger = logging.getLogger(__name__)

#: How many mappings one commit lets go of at most: closing thousands of listeners at once would hold up the lookups.
AT_A_TIME: Final = 256

#: How many unused mappings one lookup gives up at most, one after the other, to get what it needs.
ATTEMPTS: Final = 3

#: Out of something that closing a listener gives back (socket(2), bind(2), listen(2)).
_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


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
class Shortage:
    """Lookups that failed because there was no room for another mapping. ``last`` is a Unix time."""

    lookups: int = 0
    last: float | None = None
    why: str | None = None


class Mapper:
    """The portmap mode: a :class:`tp2.dns.server.Capture` on top of a table, listeners and a forwarder."""

    def __init__(
        self,
        table: Table,
        forwarder: Forwarder,
        carrier: Carrier,
        *,
        spare: Callable[[Destination], str | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param spare: says why a destination is to be left alone, or None if it is not."""
        self.table = table
        self.shortage = Shortage()
        #: Accepts what waits where connections come in besides: see :meth:`accept`.
        self.accept_pending: Callable[[], None] = lambda: None
        self._carrier = carrier
        self._spare = spare
        self._clock = clock
        self._commits = Commits(forwarder, self._committed)
        self._listeners: Listeners[Mapping] = Listeners(self._accepted)
        self._flows: dict[Mapping, set[Flow]] = {}
        self._opening: dict[Destination, asyncio.Future[None]] = {}

    async def run(self) -> None:
        """Commit and collect until cancelled; then every listener is closed (the connections are the carrier's)."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._commits.run())
                group.create_task(self._collect_when_due())
        finally:
            self._listeners.close_all()

    def renew(self, wanted: Sequence[Wanted]) -> bool:
        """Extend the leases for an answer that names *wanted*; False if any of them is not captured yet."""
        now = self._clock()
        return all(self.table.renew(item, now) or self._spare(item.destination) is not None for item in wanted)

    async def ensure(self, wanted: Sequence[Wanted]) -> None:
        """Return when every destination in *wanted* has an accepting listener and a rule.

        :raises ForwarderError: no port is left, or the platform refused a rule. Nothing half-done stays.
        """
        await self._ensure([item for item in wanted if self._spare(item.destination) is None])

    async def pin(self, wanted: Sequence[Wanted]) -> None:
        """Map *wanted*, whether or not somebody has looked them up, and keep them until they are unpinned.

        :raises UsageError: one of them is to be left alone.
        :raises ForwarderError: as :meth:`ensure`; then none of them is pinned that was not before.
        """
        for item in wanted:
            if (why := self._spare(item.destination)) is not None:
                raise UsageError(
                    f"cannot map {item.destination}", why, "connect to it directly: tp2 leaves it as it is"
                )
        pinned: list[Mapping] = []
        try:
            await self._ensure(wanted, pinned)
        except BaseException:
            for mapping in pinned:
                self.table.unpin(mapping)
            raise

    async def unpin(self, destinations: Iterable[Destination]) -> None:
        """Let go of the mappings of *destinations*, pinned or not: at once if nobody uses them, else when that ends."""
        mappings = [mapping for destination in destinations if (mapping := self.table.get(destination)) is not None]
        for mapping in mappings:
            self.table.unpin(mapping)
        if idle := [mapping for mapping in mappings if self.table.may_go(mapping, self._clock())]:
            await self._give_up(idle)

    def accept(self, destination: Destination, sock: socket.socket) -> bool:
        """Carry a connection to *destination* that came in by another listener; False if it is not mapped."""
        mapping = self.table.get(destination)
        if mapping is None:
            return False
        self._accepted(mapping, sock)
        return True

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
                    "local_address": mapping.local_address,
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

    async def clear(self) -> None:
        """Let go of every mapping, in use or not: what they stand for is not there any more."""
        # Those that are being opened have to be open to be let go of.
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        with contextlib.suppress(Tp2Error):  # logged already
            await self._give_up([mapping for mapping in self.table if mapping.phase is Phase.LIVE])
        for flows in list(self._flows.values()):
            for flow in list(flows):
                flow.abort()

    async def leave_alone(self) -> None:
        """Let go of the mappings that ``spare`` names by now; connections that they have go on."""
        with contextlib.suppress(Tp2Error):  # logged already
            await self._give_up(
                [m for m in self.table if m.phase is Phase.LIVE and self._spare(m.destination) is not None]
            )

    async def collect(self) -> None:
        """Give up what has been unused for long enough; returns when its rules are gone, or were refused to go."""
        with contextlib.suppress(Tp2Error):  # logged already; they are tried again with the next round
            await self._give_up(
                self.table.expired(self._clock()), lambda mapping: self.table.may_go(mapping, self._clock())
            )

    async def _collect_when_due(self) -> None:
        while True:
            at = self.table.next_expiry()
            longest = self.table.idle_timeout
            delay = longest if at is None else min(longest, at - self._clock())
            # At least a moment: expiries that lie close together are collected, and committed, together.
            await asyncio.sleep(max(0.05, delay))
            await self.collect()

    async def _ensure(self, wanted: Sequence[Wanted], pinned: list[Mapping] | None = None) -> None:
        waits: set[asyncio.Future[None]] = set()
        for item in wanted:
            mapping = await self._obtain(item)
            if pinned is not None and not mapping.pinned:
                self.table.pin(mapping)
                pinned.append(mapping)
            if mapping.phase is Phase.OPENING:
                waits.add(self._opening[mapping.destination])
        for future in waits:
            # Shielded: others wait for the same commit, and one caller's cancellation is not theirs.
            await asyncio.shield(future)

    async def _obtain(self, item: Wanted) -> Mapping:
        """Lease and open, giving up an unused mapping for it if need be."""
        for _ in range(ATTEMPTS):
            try:
                mapping = self.table.lease(item, self._clock())
                if mapping.phase is Phase.OPENING:
                    self._open(mapping)
            except Exhausted as error:
                exhausted = error
            else:
                return mapping
            victims = self.table.evictable(self._clock(), 1, item.destination) if exhausted.by_giving_up else []
            if not victims:
                break
            (victim,) = victims
            logger.info("no room: giving up %s (%s) for %s", victim.destination, victim.name, item.name)
            await self._give_up(victims)
        raise self._exhausted(exhausted)

    def _open(self, mapping: Mapping) -> None:
        """Open the listener and put the rule into the next commit."""
        if mapping.destination in self._opening:
            return
        try:
            self._listen(mapping)
        except BaseException:
            self.table.discard(mapping, self._clock())
            raise
        commit = self._commits.next()
        commit.add[mapping.destination] = mapping
        self._opening[mapping.destination] = commit.done

    def _listen(self, mapping: Mapping) -> None:
        while mapping not in self._listeners:
            try:
                self._listeners.open(mapping, mapping.local_address, mapping.local_port)
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                if error.errno in _SCARCE:
                    raise Exhausted(f"no listener can be opened: {reason}", by_giving_up=True) from error
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise ForwarderError(
                        f"cannot listen on {mapping.local_address} port {mapping.local_port}",
                        reason,
                        "look at the loopback interface: 'ip addr show lo'",
                    ) from error
                logger.debug("%s port %d cannot be used: %s", mapping.local_address, mapping.local_port, reason)
                self.table.another_port(mapping, self._clock())

    def _committed(self, commit: Commit, error: Tp2Error | None) -> None:
        if error is not None:
            logger.warning("%s. %s", error, error.remedy)
        for mapping in commit.add.values():
            del self._opening[mapping.destination]
            # A rule that stood before stands as before, and so must the listener behind it.
            if error is None or mapping.ruled:
                self.table.opened(mapping)
            else:
                self._let_go(mapping)
        if commit.remove:
            # A connection that a rule let through just before it went is in a queue by now.
            self.accept_pending()
        for mapping in commit.remove.values():
            if mapping.phase is Phase.WITHDRAWING:
                if error is None:
                    self._let_go(mapping)
                else:
                    self.table.opened(mapping)

    async def _give_up(
        self, mappings: Sequence[Mapping], may_go: Callable[[Mapping], bool] = lambda mapping: True
    ) -> None:
        """Take the rules of *mappings* away, and let go of those that are not asked for again meanwhile.

        :param may_go: asked of each once more when it is its turn: some may be in use by then.
        """
        for first in range(0, len(mappings), AT_A_TIME):
            part = [m for m in mappings[first : first + AT_A_TIME] if m.phase is Phase.LIVE and may_go(m)]
            if not part:
                continue
            commit = self._commits.next()
            for mapping in part:
                self.table.withdraw(mapping)
                commit.remove[mapping.destination] = mapping
            await asyncio.shield(commit.done)

    def _let_go(self, mapping: Mapping) -> None:
        """No rule leads to *mapping* any more."""
        self.table.withdrawn(mapping)
        self._listeners.accept_pending(mapping)
        self._close_if_drained(mapping)

    def _close_if_drained(self, mapping: Mapping) -> None:
        if mapping.phase is Phase.DRAINING and not mapping.connections:
            self._listeners.close(mapping)
            self.table.discard(mapping, self._clock())

    def _accepted(self, mapping: Mapping, sock: socket.socket) -> None:
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

    def _exhausted(self, error: Exhausted) -> ForwarderError:
        self.shortage.lookups += 1
        self.shortage.last = time.time()
        self.shortage.why = str(error)
        return ForwarderError(
            "no local port is left for another mapping",
            str(error),
            "give tp2 more ports (--ports), raise the open-file limit (ulimit -n), or shorten --idle-timeout",
        )
