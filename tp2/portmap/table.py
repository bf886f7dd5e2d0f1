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
                                         :meth:`Table.expired` or :meth:`Table.evictable` named
WITHDRAWING :meth:`Table.withdrawn`      DRAINING: the rule is gone, open connections may end in their own time
DRAINING    :meth:`Table.discard`        (none), once no connection is open; its port rests
WITHDRAWING :meth:`Table.lease`          OPENING on the same port: asked for again before it was gone
or DRAINING
=========== ============================ =========================================================================

What must always hold (the property tests drive exactly these): no two mappings share a port; a mapping with an open
connection is never named by ``expired`` or ``evictable``, nor is one whose last answer may still be in a client's
cache; a port is not used again before it has rested.

All times are seconds on one monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tp2.types import Destination, Wanted

#: How long a port is left alone after use, in seconds: as long as Linux keeps TIME_WAIT, so that a straggler of an
#: old connection never reaches the next owner of its port.
REST: Final = 60.0

#: One port in this many is held back from the capacity, so that an eviction finds a port that has rested.
SPARE_SHARE: Final = 8


class Exhausted(Exception):
    """Every port is mapped, or rests, and none may be taken from its owner."""


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
    """

    destination: Destination
    local_port: int
    name: str
    answered_until: float
    last_used: float
    phase: Phase = Phase.OPENING
    connections: int = 0
    total_connections: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    @property
    def state(self) -> str:
        """The word that users see: ``idle``, ``active`` or ``draining``."""
        if self.phase in (Phase.WITHDRAWING, Phase.DRAINING):
            return "draining"
        return "active" if self.connections else "idle"


class Table:
    """All mappings of one daemon.

    :param ports: the local ports to use.
    :param capacity: the most mappings at a time; fewer if there are fewer ports.
    :param idle_timeout: seconds after its last use at which a mapping may go.
    :param rest: seconds that a port rests before it is used again.
    """

    def __init__(
        self, ports: Iterable[int], *, capacity: int | None = None, idle_timeout: float, rest: float = REST
    ) -> None:
        self._free = deque(ports)
        self._resting: deque[tuple[float, int]] = deque()
        self._mappings: dict[Destination, Mapping] = {}
        self.idle_timeout = idle_timeout
        self.rest = rest
        by_ports = len(self._free) - len(self._free) // SPARE_SHARE
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
        _answered(mapping, wanted, now)
        return True

    def lease(self, wanted: Wanted, now: float) -> Mapping:
        """Return the mapping for an answer that is sent at *now*, made or revived if need be.

        :raises Exhausted: there is no room, or no rested port. :meth:`evictable` says what may make room.
        """
        mapping = self._mappings.get(wanted.destination)
        if mapping is None:
            if len(self._mappings) >= self.capacity:
                raise Exhausted(f"all {self.capacity} mappings are in use")
            mapping = Mapping(wanted.destination, self._take_port(now), wanted.name, now, now)
            self._mappings[wanted.destination] = mapping
        elif mapping.phase is not Phase.LIVE:
            mapping.phase = Phase.OPENING
        _answered(mapping, wanted, now)
        return mapping

    def another_port(self, mapping: Mapping, now: float) -> None:
        """Give an OPENING mapping a different port: another program has the one it was given, which now rests.

        :raises Exhausted: there is no other; the mapping keeps the port it has.
        """
        port = self._take_port(now)
        self._resting.append((now + self.rest, mapping.local_port))
        mapping.local_port = port

    def opened(self, mapping: Mapping) -> None:
        """Note that the listener of an OPENING mapping accepts and its rule stands."""
        mapping.phase = Phase.LIVE

    def connected(self, mapping: Mapping, now: float) -> None:
        """Note a new connection."""
        mapping.connections += 1
        mapping.total_connections += 1
        mapping.last_used = now

    def disconnected(self, mapping: Mapping, now: float, *, sent: int, received: int) -> None:
        """Note the end of a connection that carried *sent* bytes to the cluster and *received* from it."""
        mapping.connections -= 1
        mapping.bytes_sent += sent
        mapping.bytes_received += received
        mapping.last_used = now

    def expires_at(self, mapping: Mapping) -> float | None:
        """When the mapping may be collected if nothing happens until then; None while a connection is open."""
        if mapping.connections:
            return None
        return max(mapping.answered_until, mapping.last_used + self.idle_timeout)

    def expired(self, now: float) -> list[Mapping]:
        """Return the LIVE mappings that nobody has used for the idle timeout, and no client can have in a cache."""
        return [
            mapping
            for mapping in self._mappings.values()
            if mapping.phase is Phase.LIVE and (at := self.expires_at(mapping)) is not None and at <= now
        ]

    def evictable(self, now: float, count: int) -> list[Mapping]:
        """Return up to *count* LIVE mappings to give up for new ones: longest unused first, none in a cache or use."""
        candidates = [
            mapping
            for mapping in self._mappings.values()
            if mapping.phase is Phase.LIVE and not mapping.connections and mapping.answered_until <= now
        ]
        candidates.sort(key=lambda mapping: mapping.last_used)
        return candidates[:count]

    def next_expiry(self) -> float | None:
        """When the next LIVE mapping may expire if nothing happens until then, or None."""
        times = (self.expires_at(mapping) for mapping in self._mappings.values() if mapping.phase is Phase.LIVE)
        return min((at for at in times if at is not None), default=None)

    def withdraw(self, mapping: Mapping) -> None:
        """Begin to give up a LIVE mapping: its rule is about to be taken away."""
        mapping.phase = Phase.WITHDRAWING

    def withdrawn(self, mapping: Mapping) -> None:
        """Note that no rule stands for the mapping; it is DRAINING."""
        mapping.phase = Phase.DRAINING

    def discard(self, mapping: Mapping, now: float) -> None:
        """Forget a mapping whose listener is closed; its port rests from *now*."""
        del self._mappings[mapping.destination]
        self._resting.append((now + self.rest, mapping.local_port))

    def _take_port(self, now: float) -> int:
        while self._resting and self._resting[0][0] <= now:
            self._free.append(self._resting.popleft()[1])
        if not self._free:
            raise Exhausted(f"all ports are mapped or rest ({len(self._resting)} rest for up to {self.rest:.0f} s)")
        return self._free.popleft()


def _answered(mapping: Mapping, wanted: Wanted, now: float) -> None:
    mapping.name = wanted.name
    mapping.last_used = now
    # An earlier answer with a longer TTL may still be cached: the later end counts.
    mapping.answered_until = max(mapping.answered_until, now + wanted.ttl)
