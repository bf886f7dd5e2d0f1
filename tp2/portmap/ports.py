"""Which local ports are free, which rest: one pool for each address family. Pure; time is passed in.

A port is handed out on the loopback address of its family (127.0.0.1, ::1) as long as one is free there; after that on
further addresses of 127.0.0.0/8, each of which has all ports once more. A port that was used rests before it is handed
out again, so that a straggler of an old connection never reaches its next owner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

#: How long a port is left alone after use, in seconds: as long as Linux keeps TIME_WAIT.
REST: Final = 60.0

#: One port in this many is held back from the capacity, so that an eviction finds a port that has rested.
SPARE_SHARE: Final = 8


class Local(NamedTuple):
    """A port of this machine; ``address`` is None for the loopback address of the pool's family."""

    address: str | None
    port: int


class Exhausted(Exception):
    """There is no local port for another mapping.

    :param by_giving_up: whether it helps to give up a mapping; else only time does.
    """

    def __init__(self, why: str, *, by_giving_up: bool) -> None:
        super().__init__(why)
        self.by_giving_up = by_giving_up


class Ports:
    """The ports of one family.

    :param ports: the numbers, in the order in which they are handed out.
    :param further: more addresses to have them on, in order.
    :param rest: seconds that a port rests.
    """

    def __init__(self, ports: Sequence[int], *, further: Sequence[str] = (), rest: float = REST) -> None:
        self._ports = ports
        self._rest = rest
        self._further: deque[str] = deque(further)
        self._free: deque[Local] = deque()
        self._fresh: Iterator[Local] = (Local(None, port) for port in ports)
        self._resting: deque[tuple[float, Local]] = deque()
        size = len(ports) * (1 + len(further))
        #: The most ports that are mapped at a time.
        self.capacity = size - size // SPARE_SHARE
        self.used = 0

    @property
    def full(self) -> bool:
        """Whether one has to be given up before another can be had."""
        return self.used >= self.capacity

    def take(self, now: float) -> Local:
        """Return a port that has rested, or was never used.

        :raises Exhausted: there is none.
        """
        if self.full:
            raise Exhausted(f"all {self.capacity} ports are mapped", by_giving_up=True)
        self.used += 1
        try:
            return self._rested(now)
        except Exhausted:
            self.used -= 1
            raise

    def exchange(self, local: Local, now: float) -> Local:
        """Return another port for *local*, which belongs to another program and so rests.

        :raises Exhausted: there is no other.
        """
        other = self._rested(now)
        self._resting.append((now + self._rest, local))
        return other

    def give_back(self, local: Local, now: float) -> None:
        """Let *local* rest from *now*."""
        self.used -= 1
        self._resting.append((now + self._rest, local))

    def _rested(self, now: float) -> Local:
        while self._resting and self._resting[0][0] <= now:
            self._free.append(self._resting.popleft()[1])
        # The first address is used up before another one is begun.
        if (local := next(self._fresh, None)) is not None:
            return local
        if self._free:
            return self._free.popleft()
        if self._further:
            address = self._further.popleft()
            self._fresh = (Local(address, port) for port in self._ports)
            return self._rested(now)
        soonest = self._resting[0][0] - now if self._resting else self._rest
        raise Exhausted(
            f"all ports are mapped, or rest after use (the next one for {soonest:.0f} s)", by_giving_up=False
        )
