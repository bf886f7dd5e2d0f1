"""One query, several nameservers: the first good reply wins.

========================================= =========================================================================
what happens                              what follows
========================================= =========================================================================
the race starts                           the first server is asked; beside it one that is due for a look, if any
a server has used up its patience         the next one is asked too; after the last, all once more: datagrams get lost
a server cannot be reached                the next one is asked at once, and this one again every :data:`RETRY`
                                          seconds for :data:`GRACE`: it may be starting, the network may be changing
a reply says that the server cannot       the next one is asked at once, and this one no more; the reply is given to the
answer (SERVFAIL, NOTIMP, REFUSED)        client if nobody does better
the servers are replaced                  the new ones get their turn at once; who has been asked may still answer
the race lasts suspiciously long          a probe for a loop goes to those that are silent
a good reply                              it wins; from a server that was only looked at, once another turn is due
:data:`DEADLINE`                          the best of what has come, or a failure that names every server
========================================= =========================================================================

A query that is not of opcode QUERY may change something, and so is never with two servers at a time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from tp2.dns.ask import ask_tcp, ask_udp, tell
from tp2.dns.exempt import ExemptSockets
from tp2.dns.health import Health
from tp2.dns.loops import LoopWatch
from tp2.dns.message import Ede, Rcode
from tp2.dns.servers import Server, error_text, server_text
from tp2.errors import Tp2Error

# Seconds. Less than the 5 after which most clients give up or ask again, so that they hear why.
DEADLINE = 4.5
GRACE = 1.2
RETRY = 0.2
_SUSPICION = 1.0
_TRIES = 2
_LOOP = "sends queries back to tp2: a loop"
_CANNOT_ANSWER = frozenset((Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED))


class UpstreamError(Exception):
    """No server gave an answer. ``words`` say why, for the client's extended error; ``code`` is its code."""

    def __init__(self, code: Ede, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.words = words


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply, under the ID and with the question of the client.

    ``failures`` says in words, of every server that was asked, why there is no better reply than this; it is empty if
    this one is good.
    """

    message: bytes
    server: Server
    failures: str = ""


@dataclass(slots=True)
class _Attempt:
    """One query on its way to one server. A *spare* one was not yet that server's turn."""

    server: Server
    started: float
    spare: bool


class Race:
    """The race for one client's *query*, whose question section is *question*."""

    def __init__(
        self, query: bytes, question: bytes, *, tcp: bool, health: Health, sockets: ExemptSockets, loops: LoopWatch
    ) -> None:
        self._query = query
        self._question = question
        self._ask = ask_tcp if tcp else ask_udp
        self._changes_nothing = not query[2] & 0x78
        self._health = health
        self._sockets = sockets
        self._loops = loops
        self._running: dict[asyncio.Task[bytes], _Attempt] = {}
        # Whose outcome is of no interest, but whose end is.
        self._aside: list[asyncio.Task[Any]] = []
        self._tries: dict[Server, int] = {}
        self._failures: dict[Server, str] = {}
        self._retries: dict[Server, float] = {}
        self._heard: set[Server] = set()
        self._spare: Reply | None = None
        self._poor: Reply | None = None
        self._turn = 0.0
        self._grace_ends = 0.0
        self._woken: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """The servers, or what is known of them, have changed."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def run(self) -> Reply:
        """Ask until there is a reply.

        :raises UpstreamError: there is none.
        """
        try:
            reply = await self._run()
            self._settle()
        except UpstreamError:
            self._settle()
            raise
        finally:
            tasks = [*self._running, *self._aside]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return reply

    async def _run(self) -> Reply:
        loop = asyncio.get_running_loop()
        self._turn = started = loop.time()
        self._grace_ends = started + GRACE
        suspicion = started + _SUSPICION
        deadline = started + DEADLINE
        self._look(started)
        while (now := loop.time()) < deadline:
            if now >= suspicion:
                suspicion = deadline
                self._probe(now)
            if now >= self._turn:
                if self._spare is not None and self._tries:
                    return self._spare
                self._take_turn(now, deadline)
            if not self._running and (self._poor is not None or self._turn >= deadline):
                break
            await self._next_event(min(self._turn, suspicion, deadline) - now)
            reply = self._collect(loop.time())
            if reply is not None:
                return reply
        if self._spare is not None:
            return self._spare
        words = self._words(deadline - started)
        if self._poor is None:
            raise UpstreamError(Ede.NO_REACHABLE_AUTHORITY, words)
        return replace(self._poor, failures=words)

    def _look(self, now: float) -> None:
        """Ask a server that is due for it, beside the one that will be asked anyway."""
        order = self._health.order(now)
        if self._changes_nothing and order:
            server = self._health.due(now)
            if server is not None and server != order[0]:
                self._start(server, now, spare=True)

    def _take_turn(self, now: float, deadline: float) -> None:
        """Ask the server whose turn it is, and say when the next turn is."""
        candidates = [server for server in self._health.order(now) if self._may_be_asked(server, now)]
        if not candidates:
            self._turn = min([at for at in self._retries.values() if at > now], default=deadline)
            return
        server = min(candidates, key=lambda candidate: self._tries.get(candidate, 0))
        self._tries[server] = self._tries.get(server, 0) + 1
        self._retries.pop(server, None)
        self._turn = now + self._health.patience(server) if self._changes_nothing else deadline
        for attempt in self._running.values():
            if attempt.server == server and attempt.spare:
                attempt.spare = False
                return
        self._start(server, now, spare=False)

    def _may_be_asked(self, server: Server, now: float) -> bool:
        if server in self._failures:
            return self._retries.get(server, now + 1) <= now
        return self._tries.get(server, 0) < _TRIES

    def _start(self, server: Server, now: float, *, spare: bool) -> None:
        task = asyncio.get_running_loop().create_task(self._ask(self._sockets, server, self._query, self._question))
        self._running[task] = _Attempt(server, now, spare)

    def _probe(self, now: float) -> None:
        if not self._loops.suspicious(self._question):
            return
        for server in {attempt.server for attempt in self._running.values()}:
            message = self._loops.probe(self._question, server, now)
            if message is not None:
                self._aside.append(asyncio.get_running_loop().create_task(tell(self._sockets, server, message)))

    async def _next_event(self, timeout: float) -> None:
        self._woken = asyncio.get_running_loop().create_future()
        events: list[asyncio.Future[Any]] = [*self._running, self._woken]
        await asyncio.wait(events, timeout=max(timeout, 0), return_when=asyncio.FIRST_COMPLETED)

    def _collect(self, now: float) -> Reply | None:
        """Take in what has come. Return the reply that wins, if it is among it."""
        if self._woken is not None and self._woken.done():
            self._turn = now
            self._drop_looping(now)
        winner = None
        for task in [task for task in self._running if task.done()]:
            attempt = self._running.pop(task)
            reply = self._outcome(task, attempt, now)
            if reply is None:
                continue
            rcode = reply.message[3] & 15
            if rcode in _CANNOT_ANSWER:
                self._poor = self._poor or reply
                self._failures[attempt.server] = f"answered {Rcode(rcode).name}"
                self._retries.pop(attempt.server, None)
                self._fall_back(attempt, now)
            elif attempt.spare:
                self._spare = self._spare or reply
            else:
                winner = winner or reply
        return winner

    def _outcome(self, task: asyncio.Task[bytes], attempt: _Attempt, now: float) -> Reply | None:
        try:
            message = task.result()
        except (OSError, EOFError) as error:
            self._failures[attempt.server] = error_text(error)
            self._health.failed(attempt.server, now)
            if now + RETRY < self._grace_ends:
                self._retries[attempt.server] = now + RETRY
            else:
                self._retries.pop(attempt.server, None)
            self._fall_back(attempt, now)
            return None
        except Tp2Error as error:
            raise UpstreamError(Ede.OTHER, str(error)) from error
        self._health.replied(attempt.server, now - attempt.started)
        self._heard.add(attempt.server)
        return Reply(message, attempt.server)

    def _fall_back(self, attempt: _Attempt, now: float) -> None:
        """Let the next server have its turn, unless *attempt* was nobody's turn."""
        if not attempt.spare:
            self._turn = now

    def _drop_looping(self, now: float) -> None:
        for server in self._health.looping(now):
            self._failures[server] = _LOOP
            self._retries.pop(server, None)
        for task in [task for task, attempt in self._running.items() if self._failures.get(attempt.server) == _LOOP]:
            task.cancel()
            del self._running[task]
            self._aside.append(task)

    def _settle(self) -> None:
        """Note who kept silent."""
        now = asyncio.get_running_loop().time()
        silent = {
            attempt.server
            for attempt in self._running.values()
            if not attempt.spare and now - attempt.started > self._health.patience(attempt.server)
        }
        for server in silent - self._heard:
            self._health.failed(server, now)

    def _words(self, waited: float) -> str:
        """Why no server gave an answer."""
        now = asyncio.get_running_loop().time()
        reasons = [f"{server_text(server)} gave no answer in {waited:g} s" for server in self._silent()]
        reasons += [f"{server_text(server)}: {why}" for server, why in self._failures.items()]
        for server in self._health.looping(now):
            if server not in self._failures:
                reasons.append(f"{server_text(server)}: {_LOOP}")
        return "; ".join(reasons) or "there is no upstream nameserver"

    def _silent(self) -> list[Server]:
        return [server for server in self._tries if server not in self._failures]
