"""Everything that is not the cluster's: the client's query goes to the nameservers, and a reply comes back.

The query is passed on as it is, but for its ID (:mod:`tp2.dns.ask`). The servers run a race for it
(:mod:`tp2.dns.race`), in the order in which :mod:`tp2.dns.health` puts them. Clients that ask the same at the same time
share one race: that spares the servers, an attacker gains nothing from asking often (RFC 5452 section 5), and queries
that come back to us (:mod:`tp2.dns.loops`) do not multiply.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from tp2.dns.exempt import Exempt, ExemptSockets
from tp2.dns.health import Health
from tp2.dns.loops import LoopWatch, question_of
from tp2.dns.message import Ede
from tp2.dns.race import Race, Reply, UpstreamError
from tp2.dns.servers import Server, server_text

__all__ = ["Reply", "Upstream", "UpstreamError"]

logger = logging.getLogger(__name__)


class _Shared:
    """A race and those who wait for its outcome."""

    __slots__ = ("race", "task", "waiting")

    def __init__(self, race: Race, task: asyncio.Task[Reply]) -> None:
        self.race = race
        self.task = task
        self.waiting = 0


class Upstream:
    """The nameservers that take what is not the cluster's.

    :param servers: numeric addresses (an IPv6 scope included) and ports, in the order of preference.
    :param exempt: awaited once for each socket before its first use; it makes the socket's traffic pass tp2's rules.
    """

    def __init__(self, servers: Sequence[Server], *, exempt: Exempt) -> None:
        self._health = Health(servers)
        self._sockets = ExemptSockets(exempt)
        self._loops = LoopWatch()
        self._races: dict[tuple[bytes, bool], _Shared] = {}

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers in use, as configured."""
        return self._health.servers

    def set_servers(self, servers: Sequence[Server]) -> None:
        """Use these servers from now on. Queries under way are put to them too; who was asked may still answer."""
        self._health.replace(servers)
        self._wake()

    def close(self) -> None:
        """Give the sockets up. Queries under way must have been cancelled before."""
        self._sockets.close()

    async def exchange(self, query: bytes, *, tcp: bool) -> Reply:
        """Ask for the reply to *query*, which has been parsed: it holds one question.

        :param tcp: whether to ask over TCP, as the client did.
        :raises UpstreamError: no server answered.
        """
        question = question_of(query)
        loop = asyncio.get_running_loop()
        looping = self._loops.recognise(question, loop.time())
        if looping is not None:
            self._found_loop(looping, loop.time())
            raise UpstreamError(Ede.OTHER, f"{server_text(looping)} sends queries back to tp2: a loop")
        key = query[2:], tcp
        shared = self._races.get(key)
        if shared is None:
            race = Race(query, question, tcp=tcp, health=self._health, sockets=self._sockets, loops=self._loops)
            shared = self._races[key] = _Shared(race, loop.create_task(race.run()))
            shared.task.add_done_callback(lambda _: self._races.pop(key, None))
        shared.waiting += 1
        self._loops.enter(question)
        try:
            reply = await asyncio.shield(shared.task)
        finally:
            self._loops.leave(question)
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                # Nobody may join what is about to end.
                del self._races[key]
                shared.task.cancel()
                await asyncio.gather(shared.task, return_exceptions=True)
        return replace(reply, message=query[:2] + reply.message[2:])

    def _found_loop(self, server: Server, now: float) -> None:
        if server not in self._health.looping(now):
            logger.warning(
                "the nameserver %s sends queries back to tp2: a loop. Name another one with --fallback",
                server_text(server),
            )
        self._health.loops(server, now)
        self._wake()

    def _wake(self) -> None:
        for shared in self._races.values():
            shared.race.wake()
