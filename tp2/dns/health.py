"""Which nameserver to ask first. Pure; time is passed in.

=========== ============================== =====================================================================
a server is after                          and then
=========== ============================== =====================================================================
well        nothing known, or a reply      stands in the row by its speed; servers about as fast as each other
                                           keep the order in which they were configured
failing     silence, or an error           stands behind all that are well
looping     its queries coming back to us  is not asked at all for :data:`LOOP_REST` seconds
=========== ============================== =====================================================================

A server that is not asked cannot show that it has become faster, or well again. So each is *due* for a look every
so often: it is asked beside the one whose turn it is, and its reply is only a spare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tp2.dns.servers import Server

# All in seconds.
# Servers whose replies take less are equally good; beyond it, twice as slow is a place further back.
_FAST = 0.02
_LOOK_EVERY = 10.0
_FIRST_LOOK_AT_FAILING = 1.0
_LOOK_AT_FAILING_EVERY = 15.0
LOOP_REST = 30.0
# How long a server may take before another one is asked as well.
_SHORTEST_PATIENCE = 0.15
_PATIENCE_WITH_STRANGERS = 0.5
_LONGEST_PATIENCE = 1.0
# RFC 6298's weight for a new measurement.
_WEIGHT = 1 / 8


@dataclass(slots=True)
class _State:
    round_trip: float | None = None
    failures: int = 0
    due_at: float = 0.0
    looping_until: float = -math.inf


class Health:
    """What is known of the servers. Forgotten when they are replaced, except for those that stay."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._states: dict[Server, _State] = {server: _State() for server in servers}

    def replace(self, servers: Sequence[Server]) -> None:
        """Know these servers from now on. One that stays is given a new chance if it looped: the others changed."""
        self._states = {server: self._states.get(server, _State()) for server in servers}
        for state in self._states.values():
            state.looping_until = -math.inf

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers as configured."""
        return tuple(self._states)

    def order(self, now: float) -> list[Server]:
        """Whom to ask, the first one first."""
        usable = [server for server, state in self._states.items() if state.looping_until <= now]
        return sorted(usable, key=self._rank)

    def _rank(self, server: Server) -> tuple[int, float]:
        state = self._states[server]
        if state.failures:
            return state.failures, 0.0
        round_trip = state.round_trip or 0.0
        return 0, 0 if round_trip <= _FAST else math.floor(math.log2(round_trip / _FAST)) + 1

    def patience(self, server: Server) -> float:
        """Seconds after which a server that has not replied gets company."""
        state = self._states.get(server)
        if state is None or state.round_trip is None:
            return _PATIENCE_WITH_STRANGERS
        return min(max(4 * state.round_trip, _SHORTEST_PATIENCE), _LONGEST_PATIENCE)

    def due(self, now: float) -> Server | None:
        """A server that deserves a look at *now*, which this call takes."""
        for server, state in self._states.items():
            if state.due_at <= now and state.looping_until <= now:
                state.due_at = now + self._interval(state)
                return server
        return None

    def _interval(self, state: _State) -> float:
        if not state.failures:
            return _LOOK_EVERY
        return min(_FIRST_LOOK_AT_FAILING * 2.0 ** min(state.failures - 1, 10), _LOOK_AT_FAILING_EVERY)

    def replied(self, server: Server, round_trip: float) -> None:
        """*server* replied after so many seconds. Whether it could answer says something of the name, not of it."""
        state = self._states.get(server)
        if state is None:
            return
        known = state.round_trip
        # A server that comes back is somebody new.
        fresh = known is None or state.failures > 0
        state.round_trip = round_trip if fresh or known is None else known + (round_trip - known) * _WEIGHT
        state.failures = 0

    def failed(self, server: Server, now: float) -> None:
        """*server* was silent, or cannot be reached."""
        state = self._states.get(server)
        if state is not None:
            state.failures += 1
            state.due_at = now + self._interval(state)

    def loops(self, server: Server, now: float) -> None:
        """What is sent to *server* comes back to us."""
        state = self._states.get(server)
        if state is not None:
            state.looping_until = now + LOOP_REST

    def looping(self, now: float) -> list[Server]:
        """The servers that are left alone because of that."""
        return [server for server, state in self._states.items() if state.looping_until > now]
