"""The mapping table: which local port stands for which cluster ip:port, and for how long. Pure; time is passed in.

A mapping's life, and every rule about it, is this table:

=========== ============================ =========================================================================
phase       event                        next
=========== ============================ =========================================================================
(none)      :meth:`Table.lease`          OPENING on a port that has rested; :class:`Exhausted` if there is none
OPENING     :meth:`Table.opened`         LIVE: its listener accepts and its rule stands
OPENING     :meth:`Table.discard`        (none): it could not be opened; its port rests
LIVE        :meth:`Table.lease`          LIVE, kept for the new answer's TTL and for the idle timeout from now
LIVE        :meth:`Table.withdraw`       WITHDRAWING: its rule is being taken away; only for mappings that
                                         :meth:`Table.expired`, :meth:`Table.evictable` or :meth:`Table.may_go` named
WITHDRAWING :meth:`Table.withdrawn`      DRAINING: the rule is gone, open connections may end in their own time
DRAINING    :meth:`Table.discard`        (none), once no connection is open; its port rests
WITHDRAWING :meth:`Table.lease`          OPENING on the same port: asked for again before it was gone
or DRAINING
=========== ============================ =========================================================================

What must always hold (the property tests drive exactly these): no two mappings share a local port; a mapping with an
open connection, a pinned one, and one whose last answer may still be in a client's cache are never let go of; a port
is not used again before it has rested.

Nothing here looks at all mappings to decide about one: they stand in the order of their last use, for making room, and
in a queue by when they might expire, where each is looked at again at most once in an idle timeout.

All times are seconds on one monotonic clock.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tp2.portmap.ports import REST, Exhausted, Local, Ports
from tp2.types import Destination, Wanted

__all__ = ["REST", "Exhausted", "Mapping", "Phase", "Table"]


class Phase(StrEnum):
    """Where in its life a mapping is; see the table above."""

    OPENING = "opening"
    LIVE = "live"
    WITHDRAWING = "withdrawing"
    DRAINING = "draining"


@dataclass(slots=True, eq=False)
class Mapping:
    """One local port that stands for one destination. Only :class:`Table` changes it.

    ``answered_until``: until then a client may have an answer that names the destination in its cache.
    ``last_used``: when it was last answered for, connected to, or let go of.
    ``pinned``: somebody said that it is to stay. ``ruled``: a rule leads to it.
    """

    destination: Destination
    local: Local
    name: str
    answered_until: float
    last_used: float
    phase: Phase = Phase.OPENING
    pinned: bool = False
    ruled: bool = False
    queued: bool = False
    connections: int = 0
    total_connections: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    @property
    def local_port(self) -> int:
        """The local port."""
        return self.local.port

    @property
    def local_address(self) -> str:
        """The loopback address that the port is on."""
        return self.local.address or ("::1" if self.destination.is_ipv6 else "127.0.0.1")

    @property
    def state(self) -> str:
        """The word that users see: ``idle``, ``active``, ``draining`` or ``pinned``."""
        if self.phase in (Phase.WITHDRAWING, Phase.DRAINING):
            return "draining"
        return "pinned" if self.pinned else "active" if self.connections else "idle"


class Table:
    """All mappings of one daemon.

    :param ports: the local ports to use.
    :param further: addresses of 127.0.0.0/8 besides 127.0.0.1 that have them once more.
    :param capacity: the most mappings at a time; fewer if there are fewer ports.
    :param idle_timeout: seconds after its last use at which a mapping may go.
    :param rest: seconds that a port rests before it is used again.
    """

    def __init__(
        self,
        ports: Sequence[int],
        *,
        further: Sequence[str] = (),
        capacity: int | None = None,
        idle_timeout: float,
        rest: float = REST,
    ) -> None:
        # From the other end, so that while there are few of both, a port's number says which one it is.
        self._ports = {False: Ports(ports, further=further, rest=rest), True: Ports(ports[::-1], rest=rest)}
        # In the order of their last use, the longest unused one first.
        self._mappings: OrderedDict[Destination, Mapping] = OrderedDict()
        # Who may expire when, at the earliest. A use does not touch it: whoever is found too early is queued again.
        self._queue: list[tuple[float, int, Mapping]] = []
        self._queued = 0
        self.idle_timeout = idle_timeout
        self.rest = rest
        #: How many mappings there have been.
        self.made = 0
        by_ports = sum(pool.capacity for pool in self._ports.values())
        self.capacity = by_ports if capacity is None else min(by_ports, capacity)

    def __len__(self) -> int:
        return len(self._mappings)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._mappings.values())

    def get(self, destination: Destination) -> Mapping | None:
        """Return the mapping of *destination*, in whatever phase, or None."""
        return self._mappings.get(destination)

    def renew(self, wanted: Wanted, now: float) -> bool:
        """Extend the lease of a LIVE mapping for an answer sent at *now*; False if there is none (nothing changes)."""
        mapping = self._mappings.get(wanted.destination)
        if mapping is None or mapping.phase is not Phase.LIVE:
            return False
        self._answered(mapping, wanted, now)
        return True

    def lease(self, wanted: Wanted, now: float) -> Mapping:
        """Return the mapping for an answer that is sent at *now*, made or revived if need be.

        :raises Exhausted: there is no room, or no rested port. :meth:`evictable` says what may make room.
        """
        mapping = self._mappings.get(wanted.destination)
        if mapping is None:
            if len(self._mappings) >= self.capacity:
                raise Exhausted(f"all {self.capacity} mappings are in use", by_giving_up=True)
            local = self._ports[wanted.destination.is_ipv6].take(now)
            mapping = Mapping(wanted.destination, local, wanted.name, now, now)
            self._mappings[wanted.destination] = mapping
            self.made += 1
        elif mapping.phase is not Phase.LIVE:
            mapping.phase = Phase.OPENING
        self._answered(mapping, wanted, now)
        return mapping

    def another_port(self, mapping: Mapping, now: float) -> None:
        """Give an OPENING mapping a different port: another program has the one it was given, which now rests.

        :raises Exhausted: there is no other; the mapping keeps the port it has.
        """
        mapping.local = self._ports[mapping.destination.is_ipv6].exchange(mapping.local, now)

    def opened(self, mapping: Mapping) -> None:
        """Note that the listener of an OPENING mapping accepts and its rule stands."""
        mapping.phase = Phase.LIVE
        mapping.ruled = True
        self._enqueue(mapping)

    def connected(self, mapping: Mapping, now: float) -> None:
        """Note a new connection."""
        mapping.connections += 1
        mapping.total_connections += 1
        self._used(mapping, now)

    def disconnected(self, mapping: Mapping, now: float, *, sent: int, received: int) -> None:
        """Note the end of a connection that carried *sent* bytes to the cluster and *received* from it."""
        mapping.connections -= 1
        mapping.bytes_sent += sent
        mapping.bytes_received += received
        self._used(mapping, now)
        self._enqueue(mapping)

    def pin(self, mapping: Mapping) -> None:
        """Keep the mapping until it is unpinned."""
        mapping.pinned = True

    def unpin(self, mapping: Mapping) -> None:
        """Let the mapping go when its time has come, as any other."""
        mapping.pinned = False
        self._enqueue(mapping)

    def may_go(self, mapping: Mapping, now: float) -> bool:
        """Whether the mapping is LIVE, and nobody has a connection, an answer in a cache, or a pin on it."""
        return (
            mapping.phase is Phase.LIVE
            and not mapping.connections
            and not mapping.pinned
            and mapping.answered_until <= now
        )

    def expires_at(self, mapping: Mapping) -> float | None:
        """When the mapping may be collected if nothing happens until then; None while it is connected or pinned."""
        if mapping.connections or mapping.pinned:
            return None
        return max(mapping.answered_until, mapping.last_used + self.idle_timeout)

    def expired(self, now: float) -> list[Mapping]:
        """Return the LIVE mappings that nobody has used for the idle timeout, and no client can have in a cache."""
        due = []
        while self._queue and self._queue[0][0] <= now:
            mapping = heapq.heappop(self._queue)[2]
            mapping.queued = False
            if mapping.phase is Phase.LIVE and (at := self.expires_at(mapping)) is not None:
                if at <= now:
                    due.append(mapping)
                else:
                    self._enqueue(mapping)
        # For whoever asks again without having let go of them.
        for mapping in due:
            self._enqueue(mapping)
        return due

    def evictable(self, now: float, count: int, room_for: Destination | None = None) -> list[Mapping]:
        """Return up to *count* LIVE mappings to give up for new ones: longest unused first, none in a cache or use.

        :param room_for: what needs the room. If its family has no port left, only others of it make room.
        """
        family = room_for.is_ipv6 if room_for is not None and self._ports[room_for.is_ipv6].full else None
        found: list[Mapping] = []
        for mapping in self._mappings.values():
            if len(found) >= count:
                break
            if self.may_go(mapping, now) and family in (None, mapping.destination.is_ipv6):
                found.append(mapping)
        return found

    def next_expiry(self) -> float | None:
        """Return a time before which no LIVE mapping expires, or None if there is none that could."""
        while self._queue and self._queue[0][2].phase is not Phase.LIVE:
            heapq.heappop(self._queue)[2].queued = False
        return self._queue[0][0] if self._queue else None

    def withdraw(self, mapping: Mapping) -> None:
        """Begin to give up a LIVE mapping: its rule is about to be taken away."""
        mapping.phase = Phase.WITHDRAWING

    def withdrawn(self, mapping: Mapping) -> None:
        """Note that no rule stands for the mapping; it is DRAINING."""
        mapping.phase = Phase.DRAINING
        mapping.ruled = False

    def discard(self, mapping: Mapping, now: float) -> None:
        """Forget a mapping whose listener is closed; its port rests from *now*."""
        mapping.phase = Phase.DRAINING
        del self._mappings[mapping.destination]
        self._ports[mapping.destination.is_ipv6].give_back(mapping.local, now)

    def _answered(self, mapping: Mapping, wanted: Wanted, now: float) -> None:
        mapping.name = wanted.name
        # An earlier answer with a longer TTL may still be cached: the later end counts.
        mapping.answered_until = max(mapping.answered_until, now + wanted.ttl)
        self._used(mapping, now)

    def _used(self, mapping: Mapping, now: float) -> None:
        mapping.last_used = now
        self._mappings.move_to_end(mapping.destination)

    def _enqueue(self, mapping: Mapping) -> None:
        """Have the mapping looked at when it may expire, unless it is to be looked at earlier already."""
        if mapping.queued or mapping.phase is not Phase.LIVE:
            return
        at = self.expires_at(mapping)
        if at is None:
            return
        if len(self._queue) > 2 * len(self._mappings) + 64:
            self._clear_queue()
        mapping.queued = True
        self._queued += 1
        heapq.heappush(self._queue, (at, self._queued, mapping))

    def _clear_queue(self) -> None:
        """Drop the entries of mappings that are gone already, but would not be due for long."""
        for _, _, mapping in self._queue:
            mapping.queued = mapping.phase is Phase.LIVE
        self._queue = [entry for entry in self._queue if entry[2].queued]
        heapq.heapify(self._queue)
