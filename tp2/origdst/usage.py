"""Which destinations are in use, or were a while ago: ``tp2 mappings`` of mode origdst. Pure; time is passed in.

Nothing is decided by it. It is bounded by the number of connections and pins, and by :data:`MOST`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from tp2.types import Destination

#: How many destinations without a connection are remembered: the longest unused ones go.
MOST: Final = 10_000


@dataclass(slots=True, eq=False)
class Use:
    """What is known of a destination. ``pinned``: somebody asked for it by ``tp2 map``."""

    destination: Destination
    name: str
    last_used: float
    pinned: bool = False
    connections: int = 0
    total_connections: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    @property
    def state(self) -> str:
        """The word that users see: ``idle``, ``active`` or ``pinned``."""
        return "pinned" if self.pinned else "active" if self.connections else "idle"

    @property
    def kept(self) -> bool:
        """Whether it is remembered however long ago it was used."""
        return self.pinned or self.connections > 0


class Usage:
    """All of them.

    :param memory: seconds after its last use for which a destination is remembered.
    """

    def __init__(self, memory: float, most: int = MOST) -> None:
        self.memory = memory
        self._most = most
        self._kept: dict[Destination, Use] = {}
        # The longest unused one first.
        self._idle: OrderedDict[Destination, Use] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept) + len(self._idle)

    def __iter__(self) -> Iterator[Use]:
        return chain(self._idle.values(), self._kept.values())

    def get(self, destination: Destination) -> Use | None:
        """Return what is known of *destination*."""
        return self._kept.get(destination) or self._idle.get(destination)

    def connected(self, destination: Destination, name: str, now: float) -> Use:
        """Note a new connection."""
        use = self._taken(destination, name, now)
        use.connections += 1
        use.total_connections += 1
        self._put(use, now)
        return use

    def disconnected(self, use: Use, now: float, *, sent: int, received: int) -> None:
        """Note the end of a connection that carried *sent* bytes to the cluster and *received* from it."""
        self._taken(use.destination, use.name, now)
        use.connections -= 1
        use.bytes_sent += sent
        use.bytes_received += received
        self._put(use, now)

    def pin(self, destination: Destination, name: str, now: float) -> None:
        """Keep *destination* until it is unpinned."""
        use = self._taken(destination, name, now)
        use.pinned = True
        self._put(use, now)

    def unpin(self, destination: Destination, now: float) -> None:
        """Forget it when its time has come, as any other."""
        if (use := self._kept.pop(destination, None)) is not None:
            use.pinned = False
            self._put(use, now)

    def expires_at(self, use: Use) -> float | None:
        """When it is forgotten if nothing happens until then; None while it is connected or pinned."""
        return None if use.kept else use.last_used + self.memory

    def forget(self, now: float) -> None:
        """Forget what has not been used for long, and the longest unused of too many."""
        while self._idle:
            use = next(iter(self._idle.values()))
            if use.last_used + self.memory > now and len(self._idle) <= self._most:
                break
            del self._idle[use.destination]

    def clear(self) -> None:
        """Forget everything but what is connected."""
        self._idle.clear()
        for use in [use for use in self._kept.values() if not use.connections]:
            del self._kept[use.destination]

    def _taken(self, destination: Destination, name: str, now: float) -> Use:
        use = self._kept.pop(destination, None) or self._idle.pop(destination, None)
        if use is None:
            return Use(destination, name, now)
        use.name, use.last_used = name, now
        return use

    def _put(self, use: Use, now: float) -> None:
        (self._kept if use.kept else self._idle)[use.destination] = use
        self.forget(now)
