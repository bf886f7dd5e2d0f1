"""Whether it works, found out as any program would: a name looked up and a connection made, watched from inside.

A flight has two legs. The system's own resolver is asked for a name that nobody has asked for before, with the last
label ``tp2-canary``; tp2's DNS server must hear of it, and its answer must come back. Then a
connection is made to the address in that answer. It belongs to no service; a rule leads it to a listener here, the
connector takes it through the tunnel, and the endpoint connects it to its own SSH port. That the endpoint answered, if
only that nothing listens there, shows the way there and back. An endpoint may be restricted to certain destinations, so
if it does not allow that one, it is asked for a service.

============ ==================================================================================================
step         it failed there when
============ ==================================================================================================
``resolver`` the question did not arrive here: something else answers this machine's programs, or nothing does
``answer``   it arrived, and the answer did not get back
``rule``     the connection did not arrive at the listener
``tunnel``   it arrived, and no channel was to be had
``endpoint`` the channel was open and nothing came of it, or forwarding is not allowed there
============ ==================================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from dnslib import DNSRecord

from tp2.errors import EndpointError, ForwarderError, Tp2Error
from tp2.socks.reasons import ChannelRefused, Refusal
from tp2.types import Destination, Redirect

logger = logging.getLogger(__name__)

#: Where the connection goes, as far as programs can tell: an address for benchmarks, which no network has (RFC 2544).
DESTINATION: Final = Destination("198.19.84.80", 22)

#: What its names end in. Not the cluster's domain: some resolvers keep ``.local`` to themselves, whom tp2's short names
#: reach all the same.
SUFFIX: Final = ".tp2-canary"

#: Seconds for each leg. Resolvers ask a second time after five.
LEG: Final = 7.0

#: Seconds between flights while they succeed, and after one that failed.
EVERY: Final = 15.0
AGAIN: Final = 1.0

#: Refusals that the endpoint itself gave: it was reached.
_FROM_THE_ENDPOINT: Final = frozenset(Refusal) - {Refusal.NOT_CONNECTED, Refusal.TIMED_OUT, Refusal.PROHIBITED}


class Forwarder(Protocol):
    """What is needed of the operating system."""

    async def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        """Take redirects away, then set others; raises Tp2Error."""


class Flow(Protocol):
    """A connection on its way; ``refusal`` is why it has no channel, if it has none."""

    refusal: ChannelRefused | None
    bytes_received: int

    def abort(self) -> None:
        """Reset it."""


class Carrier(Protocol):
    """Takes connections into the cluster."""

    def carry(
        self, sock: socket.socket, destination: Destination, on_close: Callable[[Any], None], *, quiet: bool
    ) -> Flow:
        """Take over *sock*; see :meth:`tp2.socks.connector.Connector.carry`."""


@dataclass(frozen=True, slots=True)
class Flight:
    """How it went. ``at`` is a Unix time, ``took`` seconds; ``failure`` says what is wrong, None if nothing is."""

    at: float
    took: float
    step: str = ""
    failure: Tp2Error | None = None

    def as_json(self) -> dict[str, Any]:
        """The ``canary`` part of ``tp2 status``, but for the time."""
        failure = self.failure
        return {
            "ok": failure is None,
            "at": self.at,
            "took": round(self.took, 4),
            "step": self.step or None,
            "why": str(failure) if failure else None,
            "remedy": failure.remedy if failure else None,
        }


class Canary:
    """Makes flights.

    :param behind: gives the destinations to ask the endpoint for, its own SSH port first.
    :param nameserver: says whom to ask, where that is not whom this machine's programs ask; None where it is.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        carrier: Carrier,
        behind: Callable[[], Sequence[Destination]],
        nameserver: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.last: Flight | None = None
        self._forwarder = forwarder
        self._carrier = carrier
        self._nameserver = nameserver
        self._behind = behind
        self._heard: dict[str, asyncio.Event] = {}
        self._listener: socket.socket | None = None
        self._wanted = asyncio.Event()
        self._flown = asyncio.Event()

    def hear(self, name: str) -> str | None:
        """Return the address of a canary's *name*; None for any other name. It has been heard then."""
        # Some resolvers write a name's letters in either case, to make answers harder to forge.
        name = name.lower()
        if not name.endswith(SUFFIX):
            return None
        if event := self._heard.get(name):
            event.set()
        return DESTINATION.address

    def want(self) -> None:
        """Something has changed: fly soon."""
        self._wanted.set()

    async def soon(self, within: float) -> tuple[Flight | None, bool]:
        """Return how a flight that began after this call went, and True; or, after so many seconds, the last and False.

        :param within: seconds to wait for it.
        """
        asked = time.time()
        try:
            async with asyncio.timeout(within):
                while self.last is None or self.last.at < asked:
                    self._flown.clear()
                    self.want()
                    await self._flown.wait()
        except TimeoutError:
            return self.last, False
        return self.last, True

    async def start(self) -> None:
        """Listen, and set the rule that leads there.

        :raises ForwarderError: the platform refused it.
        """
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
            sock.listen(8)
            await self._forwarder.update([Redirect(DESTINATION, sock.getsockname()[1])], ())
        except BaseException:
            sock.close()
            raise
        self._listener = sock

    def close(self) -> None:
        """Stop listening; the rule must be gone by then."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def keep_flying(self) -> None:
        """Fly now and then, and whenever it is wanted, until cancelled; say when that changes what is known."""
        while True:
            delay = EVERY if self.last is None or self.last.failure is None else AGAIN
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wanted.wait()
            self._wanted.clear()
            before = self.last
            now = await self.fly()
            if now.failure is not None and (before is None or before.step != now.step):
                logger.warning("a test did not come through: %s. %s", now.failure, now.failure.remedy)
            elif now.failure is None and before is not None and before.failure is not None:
                logger.info("the test comes through again")

    async def fly(self) -> Flight:
        """Make a flight, and keep it as the last one."""
        at, began = time.time(), time.monotonic()
        step, failure = "", None
        try:
            await self._look_up()
            await self._connect_to_one()
        except _Failed as failed:
            step, failure = failed.step, failed.error
        self.last = Flight(at, time.monotonic() - began, step, failure)
        self._flown.set()
        return self.last

    async def _look_up(self) -> None:
        name = f"{secrets.token_hex(6)}{SUFFIX}"
        heard = self._heard[name] = asyncio.Event()
        try:
            async with asyncio.timeout(LEG):
                found = await _resolve(name, self._nameserver())
        except TimeoutError:
            found = "no answer came"
        finally:
            del self._heard[name]
        if not heard.is_set():
            raise _Failed("resolver", _not_heard(found))
        if found != DESTINATION.address:
            raise _Failed("answer", _not_answered(found))

    async def _connect_to_one(self) -> None:
        refused: ChannelRefused | None = None
        for destination in self._behind():
            refused = await self._connect(destination)
            if refused is None or refused.refusal is not Refusal.PROHIBITED:
                break
        if refused is None or refused.refusal in _FROM_THE_ENDPOINT:
            return
        if refused.refusal is Refusal.PROHIBITED:
            raise _Failed("endpoint", not_allowed(refused))
        raise _Failed("tunnel", _no_channel(refused))

    async def _connect(self, destination: Destination) -> ChannelRefused | None:
        """Connect by way of everything; return how the endpoint refused *destination*, if it did."""
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        flow: Flow | None = None
        with socket.socket() as client:
            client.setblocking(False)
            try:
                async with asyncio.timeout(LEG):
                    await loop.sock_connect(client, DESTINATION)
                    accepted = await self._accept(client.getsockname())
            except OSError as error:
                why = error.strerror or str(error) or "it does not arrive"
                raise _Failed("rule", _not_led_here(why)) from None
            flow = self._carrier.carry(accepted, destination, lambda _: ended.set(), quiet=True)
            try:
                async with asyncio.timeout(LEG):
                    answered = bool(await loop.sock_recv(client, 64))
            except TimeoutError:
                answered = False
            except OSError:
                await ended.wait()
                answered = False
            finally:
                flow.abort()
        if not answered and flow.refusal is None:
            raise _Failed("endpoint", _not_answered_there())
        return flow.refusal

    async def _accept(self, address: tuple[str, int]) -> socket.socket:
        """Accept the connection from *address*; others that come are nobody's."""
        assert self._listener is not None
        while True:
            accepted, peer = await asyncio.get_running_loop().sock_accept(self._listener)
            if peer == address:
                return accepted
            accepted.close()


class _Failed(Exception):
    def __init__(self, step: str, error: Tp2Error) -> None:
        super().__init__(step)
        self.step = step
        self.error = error


async def _resolve(name: str, nameserver: str | None) -> str:
    """Return the address that this machine's programs get for *name*, or in words why they get none.

    In a thread of its own that nobody waits for in the end: resolvers have their own ideas of how long to try.

    :param nameserver: to ask this one instead, as a program would that does not use the system's resolver.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[str] = loop.create_future()

    def settle(words: str) -> None:
        if not outcome.done():
            outcome.set_result(words)

    def run() -> None:
        try:
            words = _ask(name, nameserver) if nameserver else _look_up(name)
        except OSError as error:
            words = error.strerror or str(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, words)

    threading.Thread(target=run, name="canary", daemon=True).start()
    return await outcome


def _look_up(name: str) -> str:
    # The dot keeps the resolver from trying its search list.
    return str(socket.getaddrinfo(f"{name}.", None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])


def _ask(name: str, nameserver: str) -> str:
    reply = DNSRecord.parse(DNSRecord.question(name).send(nameserver, timeout=LEG, ipv6=":" in nameserver))
    return str(reply.rr[0].rdata) if reply.rr else f"response code {reply.header.rcode}"


def _not_heard(found: str) -> Tp2Error:
    return Tp2Error(
        "this machine's programs do not ask tp2 for names",
        f"a name that only tp2 knows was looked up through the system's resolver, and tp2 was not asked ({found})",
        "see whom it asks: /etc/resolv.conf, the hosts line of /etc/nsswitch.conf, and `resolvectl status` for DNS "
        "over TLS; capture that nameserver with --dns",
    )


def _not_answered(found: str) -> Tp2Error:
    return Tp2Error(
        "tp2's answers do not reach this machine's programs",
        f"the system's resolver asked tp2 for a name, and gave its program: {found}",
        "look for a firewall rule that drops packets on the loopback interface, or a resolver that validates DNSSEC",
    )


def _not_led_here(why: str) -> ForwarderError:
    return ForwarderError(
        "captured connections do not arrive at tp2",
        f"a connection to {DESTINATION}, which a rule should lead to tp2, failed: {why}",
        "look for other rules that take it first (`nft list ruleset`), or that drop packets on the loopback interface",
    )


def _no_channel(refused: ChannelRefused) -> EndpointError:
    return EndpointError("connections do not get into the cluster", str(refused), "see `tp2 status` for the tunnel")


def not_allowed(refused: ChannelRefused) -> EndpointError:
    """Return what it means that the endpoint refuses to connect to anything."""
    return EndpointError(
        "the SSH endpoint does not allow TCP forwarding",
        f"it refused each destination that it was asked for: {refused.detail}",
        "set AllowTcpForwarding to yes or local in its sshd_config, and let PermitOpen have the cluster's addresses; "
        "or use the endpoint of `tp2 install`",
    )


def _not_answered_there() -> EndpointError:
    return EndpointError(
        "connections get to the SSH endpoint and no further",
        f"its own SSH port was connected to through it, and did not answer within {LEG:g} s",
        "see the endpoint's log; it may be overloaded",
    )
