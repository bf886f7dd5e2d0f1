"""When an answer may leave: the bytes of a request in, the bytes of its reply out, whatever the transport.

A request passes these gates in order; the first that applies decides.

1. not a request                             FORMERR, or nothing at all
2. another opcode than QUERY                 forwarded, unless it is about the cluster
3. a zone transfer; the cluster's name in    refused
   another class than IN
4. the cluster's name, but not listed yet    waited for if another cluster is being turned to; SERVFAIL, "not ready"
5. the zone knows it                         its destinations are captured, then the answer leaves (law 1); a CNAME
                                             out of the cluster is followed first (EDNS of an unknown version:
                                             BADVERS)
6. everything else                           forwarded; what then does not exist may be a short name to which the
                                             client has added an entry of its search list, which is 5 again

What can be answered on the spot is, without a task. For the rest :meth:`Responder.respond` returns what to call and
await; how many wait is bounded for each kind of waiting, so that a dead upstream does not take the cluster's names
with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol

from tp2.cluster.catalog import Catalog
from tp2.dns.cache import AnswerCache, leases
from tp2.dns.chain import BadReply, code_to_explain, read_chain
from tp2.dns.message import (
    LARGEST_UDP_SIZE,
    MAX_SIZE,
    OPCODE_QUERY,
    BadQuery,
    Ede,
    ExtendedError,
    Query,
    Rcode,
    build_query,
    build_reply,
    parse_query,
    truncate,
)
from tp2.dns.names import BadName
from tp2.dns.recent import Asked, Recent
from tp2.dns.records import CLASS_IN, Record, Type, address_record
from tp2.dns.servers import server_text
from tp2.dns.upstream import Reply, Upstream, UpstreamError
from tp2.dns.zone import Answer, ZoneConfig, could_be_short, is_cluster_name, resolve, resolve_expanded
from tp2.errors import Tp2Error
from tp2.types import Wanted

logger = logging.getLogger(__name__)

P = ParamSpec("P")
# Called and awaited, it gives the reply. Not a coroutine: one that a closing server never starts would complain.
Deferred = Callable[[], Coroutine[Any, Any, bytes]]

# How many queries may wait at a time for an upstream, and for a capture. Each costs a few kilobytes.
_MOST_WAITING = 1000
_MOST_REPORTS = 100

TURN_TIMEOUT = 3.0
"""Seconds for which a question waits while another cluster is turned to: resolvers ask again after five
(resolv.conf(5))."""

# What a nameserver says of a name that it has nothing of. Many that know the local network only refuse all others.
_NOT_THERE = frozenset((Rcode.NXDOMAIN, Rcode.REFUSED))


class Capture(Protocol):
    """Makes destinations reachable. Implemented by the daemon."""

    def renew(self, wanted: Sequence[Wanted]) -> bool:
        """Renew the leases of destinations that are all captured already; False, and nothing done, if one is not."""

    async def ensure(self, wanted: Sequence[Wanted]) -> None:
        """Return when every destination is captured.

        :raises Tp2Error: one cannot be.
        """


@dataclass(slots=True)
class Counters:
    """Since the start: requests, those answered from the cluster, those forwarded, and those of either that failed."""

    queries: int = 0
    cluster_answers: int = 0
    forwarded: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A request on its way to its reply."""

    query: Query
    data: bytes
    tcp: bool
    started: float
    # The name was asked upstream first, and has to be each time.
    expanded: bool = False

    @property
    def limit(self) -> int:
        """The most octets that the reply may have."""
        return MAX_SIZE if self.tcp else min(self.query.udp_size, LARGEST_UDP_SIZE)


class Responder:
    """Answers requests. :class:`tp2.dns.server.DnsServer` explains the parameters."""

    def __init__(
        self,
        *,
        catalog: Callable[[], Catalog],
        synced: Callable[[], bool],
        capture: Capture,
        upstream: Upstream,
        config: ZoneConfig,
        why_unsynced: Callable[[], str],
        hear: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._catalog = catalog
        self._synced = synced
        self._why_unsynced = why_unsynced
        self._hear = hear
        self._capture = capture
        self._upstream = upstream
        self._config = config
        self._capturing = 0
        self._forwarding = 0
        self._turning = 0
        self._reported: set[str] = set()
        self._former: Catalog | None = None
        self._turned = asyncio.Event()
        self._turning_until = 0.0
        self._cache = AnswerCache(catalog, capture.renew, time.monotonic)
        self.counters = Counters()
        self.recent = Recent()

    def set_config(self, config: ZoneConfig) -> None:
        """Look names up like this from now on."""
        self._config = config
        self._cache.clear()

    def turn(self, former: Catalog) -> None:
        """Another cluster is being turned to. Until :meth:`turned`, for :data:`TURN_TIMEOUT` at the most, questions for
        what *former* knows wait for what the other one knows of it."""
        self._former = former
        self._turned.clear()
        self._turning_until = time.monotonic() + TURN_TIMEOUT

    def turned(self) -> None:
        """The other cluster is there."""
        self._former = None
        self._turned.set()

    def respond(self, data: bytes, *, tcp: bool) -> bytes | Deferred:
        """The reply to *data*, empty if there must be none; or what to call and await for it. Neither raises."""
        counters = self.counters
        counters.queries += 1
        try:
            if not tcp:
                reply = self._cache.reply(data)
                if reply is not None:
                    counters.cluster_answers += 1
                    return reply
            exchange = _Exchange(parse_query(data), data, tcp, time.perf_counter())
            return self._decide(exchange)
        except BadQuery as bad:
            counters.failures += 1
            logger.debug("malformed query: %s", bad)
            return bad.reply
        except Exception as error:  # noqa: BLE001 - a query must not end the server
            return self._unforeseen(data, tcp, error)

    def _decide(self, exchange: _Exchange) -> bytes | Deferred:
        query = exchange.query
        if query.opcode != OPCODE_QUERY:
            if is_cluster_name(query.name, self._config):
                return self._refuse(exchange, "the cluster's names can only be asked for", Rcode.NOTIMP)
            return self._forward(exchange)
        if query.type in (Type.AXFR, Type.IXFR):
            return self._refuse(exchange, "zone transfers are not passed on")
        if query.klass != CLASS_IN:
            if is_cluster_name(query.name, self._config):
                return self._refuse(exchange, "the cluster's names are of class IN")
            return self._forward(exchange)
        if (address := self._hear(query.name)) is not None:
            return self._answer_canary(exchange, address)
        if not self._synced():
            if self._is_waited_for(query):
                return partial(self._guard, exchange, self._when_turned)
            if is_cluster_name(query.name, self._config):
                return self._fail(exchange, ExtendedError(Ede.NOT_READY, self._why_unsynced()))
        catalog = self._catalog()
        answer = resolve(query.name, query.type, catalog, self._config)
        if answer is None:
            return self._forward(exchange)
        if query.edns_version:
            return self._refuse(exchange, f"EDNS version {query.edns_version} is not known here", Rcode.BADVERS)
        return self._lead_to(exchange, answer, catalog)

    def _answer_canary(self, exchange: _Exchange, address: str) -> bytes:
        # Nobody's question, so it does not count.
        self.counters.queries -= 1
        query = exchange.query
        answers = [address_record(query.name, address, 0)] if query.type == Type.A else []
        return build_reply(query, Rcode.NOERROR, answers=answers, authoritative=True, limit=exchange.limit)

    def _is_waited_for(self, query: Query) -> bool:
        if self._former is None or time.monotonic() >= self._turning_until or self._turning >= _MOST_WAITING:
            return False
        return (
            is_cluster_name(query.name, self._config)
            or resolve(query.name, query.type, self._former, self._config) is not None
        )

    async def _when_turned(self, exchange: _Exchange) -> bytes:
        self._turning += 1
        try:
            async with asyncio.timeout(self._turning_until - time.monotonic()):
                await self._turned.wait()
        except TimeoutError:
            if not self._synced():
                return self._fail(exchange, ExtendedError(Ede.NOT_READY, self._why_unsynced()))
        finally:
            self._turning -= 1
        outcome = self._decide(exchange)
        return outcome if isinstance(outcome, bytes) else await outcome()

    def _lead_to(self, exchange: _Exchange, answer: Answer, catalog: Catalog) -> bytes | Deferred:
        """Reply with *answer* once everything that it names can be reached."""
        if answer.chase is not None:
            return partial(self._guard, exchange, self._chase, answer, answer.chase)
        wanted = leases(answer.wanted)
        if not wanted or self._capture.renew(wanted):
            return self._answer(exchange, answer, wanted, catalog)
        return partial(self._guard, exchange, self._capture_first, answer, wanted, catalog)

    def _answer(self, exchange: _Exchange, answer: Answer, wanted: tuple[Wanted, ...], catalog: Catalog) -> bytes:
        if answer.rcode == Rcode.SERVFAIL:
            return self._fail(exchange, ExtendedError(Ede.OTHER, answer.reason), answers=answer.answers)
        try:
            reply = build_reply(
                exchange.query,
                answer.rcode,
                answers=answer.answers,
                authority=answer.authority,
                additional=answer.additional,
                authoritative=True,
                limit=exchange.limit,
            )
        except BadName as error:
            return self._fail(exchange, ExtendedError(Ede.OTHER, f"{answer.reason}: {error}"))
        self.counters.cluster_answers += 1
        # A client that sends options, such as a cookie (RFC 7873), rarely sends the same ones again. Answers from the
        # cache are not logged.
        repeatable = not exchange.expanded and not exchange.tcp and not exchange.query.options
        if repeatable and not logger.isEnabledFor(logging.DEBUG):
            self._cache.remember(exchange.data, reply, wanted, catalog)
        self._note(exchange, "cluster", answer.reason)
        return reply

    async def _capture_first(
        self, exchange: _Exchange, answer: Answer, wanted: tuple[Wanted, ...], catalog: Catalog
    ) -> bytes:
        if self._capturing >= _MOST_WAITING:
            return self._fail(exchange, ExtendedError(Ede.OTHER, "too many names wait to be captured at once"))
        self._capturing += 1
        try:
            await self._capture.ensure(wanted)
        except Tp2Error as error:
            self._report(f"{exchange.query.name} cannot be reached: {error}")
            return self._fail(exchange, ExtendedError(Ede.OTHER, str(error)))
        finally:
            self._capturing -= 1
        return self._answer(exchange, answer, wanted, catalog)

    async def _chase(self, exchange: _Exchange, answer: Answer, target: str) -> bytes:
        query = exchange.query
        try:
            message = build_query(query.id, target, query.type, like=query)
            reply = await self._exchange(message, tcp=False)
            chain = read_chain(reply.message)
            if chain.truncated:
                reply = await self._exchange(message, tcp=True)
                chain = read_chain(reply.message)
            if reply.failures or chain.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
                words = reply.failures or f"{server_text(reply.server)} answered with code {chain.rcode}"
                raise UpstreamError(Ede.NO_REACHABLE_AUTHORITY, words)
        except BadName as error:
            return self._fail(exchange, ExtendedError(Ede.OTHER, f"{target}: {error}"))
        except (UpstreamError, BadReply) as error:
            # The alias is as true as ever; the response code is about its end (RFC 6604 section 3).
            code = error.code if isinstance(error, UpstreamError) else Ede.OTHER
            return self._fail(exchange, ExtendedError(code, f"{target}: {error}"), answers=answer.answers)
        whole = build_reply(
            query,
            chain.rcode,
            answers=(*answer.answers, *chain.answers),
            authority=chain.authority,
            authoritative=True,
            limit=exchange.limit,
        )
        self.counters.cluster_answers += 1
        self._note(exchange, "cluster and upstream", answer.reason)
        return whole

    def _forward(self, exchange: _Exchange) -> Deferred:
        return partial(self._guard, exchange, self._pass_on)

    async def _pass_on(self, exchange: _Exchange) -> bytes:
        try:
            reply = await self._exchange(exchange.data, tcp=exchange.tcp)
        except UpstreamError as error:
            return self._fail(exchange, ExtendedError(error.code, error.words))
        query, rcode = exchange.query, reply.message[3] & 15
        if rcode in _NOT_THERE and query.klass == CLASS_IN and query.opcode == OPCODE_QUERY:
            catalog = self._catalog()
            answer = resolve_expanded(query.name, query.type, catalog, self._config)
            if answer is not None:
                outcome = self._lead_to(replace(exchange, expanded=True), answer, catalog)
                return outcome if isinstance(outcome, bytes) else await outcome()
            if not self._synced() and could_be_short(query.name, self._config):
                # That it does not exist would be remembered for as long as upstream's SOA says.
                return self._fail(exchange, ExtendedError(Ede.NOT_READY, self._why_unsynced()))
        if reply.failures:
            return self._pass_failure_on(exchange, reply)
        self.counters.forwarded += 1
        self._note(exchange, f"upstream {server_text(reply.server)}", "not a name of the cluster")
        if len(reply.message) > exchange.limit:
            return truncate(exchange.query, reply.message)
        return reply.message

    def _pass_failure_on(self, exchange: _Exchange, reply: Reply) -> bytes:
        """What the upstream says, and why, unless it says so itself."""
        query, code = exchange.query, code_to_explain(reply.message)
        if query.edns_version is None or query.opcode != OPCODE_QUERY or code is None:
            self.counters.failures += 1
            self._note(exchange, "failed", reply.failures)
            return reply.message if len(reply.message) <= exchange.limit else truncate(query, reply.message)
        return self._fail(exchange, ExtendedError(code, reply.failures), Rcode(reply.message[3] & 15))

    async def _exchange(self, message: bytes, *, tcp: bool) -> Reply:
        if self._forwarding >= _MOST_WAITING:
            raise UpstreamError(Ede.OTHER, "too many queries wait for the upstream nameservers at once")
        self._forwarding += 1
        try:
            return await self._upstream.exchange(message, tcp=tcp)
        finally:
            self._forwarding -= 1

    async def _guard(
        self,
        exchange: _Exchange,
        step: Callable[Concatenate[_Exchange, P], Awaitable[bytes]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> bytes:
        try:
            return await step(exchange, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a query must not end the server
            return self._unforeseen(exchange.data, exchange.tcp, error)

    def _refuse(self, exchange: _Exchange, why: str, rcode: Rcode = Rcode.REFUSED) -> bytes:
        self.counters.failures += 1
        self._note(exchange, "refused", why)
        error = ExtendedError(Ede.NOT_SUPPORTED, why)
        return build_reply(exchange.query, rcode, error=error, limit=exchange.limit)

    def _fail(
        self,
        exchange: _Exchange,
        error: ExtendedError,
        rcode: Rcode = Rcode.SERVFAIL,
        answers: Sequence[Record] = (),
    ) -> bytes:
        self.counters.failures += 1
        self._note(exchange, "failed", error.text)
        return build_reply(exchange.query, rcode, answers=answers, error=error, limit=exchange.limit)

    def _unforeseen(self, data: bytes, tcp: bool, error: Exception) -> bytes:
        exchange = _Exchange(parse_query(data), data, tcp, time.perf_counter())
        name = type(error).__name__
        self._report(f"{exchange.query.name} {Type.text(exchange.query.type)}: {name}: {error}")
        return self._fail(exchange, ExtendedError(Ede.OTHER, f"tp2 failed: {name}"))

    def _note(self, exchange: _Exchange, who: str, why: str) -> None:
        """Remember it, and write the line per query of ``--verbose``."""
        query, took = exchange.query, (time.perf_counter() - exchange.started) * 1000
        self.recent.note(Asked(time.time(), query.name or ".", query.type, who, why, took))
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s %s: %s: %s (%.1f ms)", query.name or ".", Type.text(query.type), who, why, took)

    def _report(self, words: str) -> None:
        """Tell the user of a failure once, not once per query."""
        if words not in self._reported and len(self._reported) < _MOST_REPORTS:
            self._reported.add(words)
            logger.warning("%s", words)
