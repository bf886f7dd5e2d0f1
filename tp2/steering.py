"""Having the system ask tp2 for the cluster's names and for no others, where it can be told so: macOS' resolver(5).

No packet is captured for it, and it survives whatever network or VPN comes and goes
(:mod:`tp2.forward.resolverfiles`). What can be told is domains: the cluster's own, ``svc`` for ``web.shop.svc``, and
each namespace for ``web.shop``; the namespaces are followed. One that somebody else steers, or that is the system's own
(``local``), is left to them. What tp2 is asked and is not the cluster's goes where it always goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from tp2.canary import SUFFIX
from tp2.dns.zone import ZoneConfig
from tp2.errors import ForwarderError, Tp2Error
from tp2.forward.platforms import MACOS, Platform
from tp2.forward.resolverfiles import checked_domain
from tp2.settings import Settings

logger = logging.getLogger(__name__)


class Forwarder(Protocol):
    """What is needed of the operating system."""

    async def steer_dns(self, domains: Sequence[str], search: Sequence[str], port: int) -> None:
        """See :meth:`tp2.forward.rules.Rules.steer_dns`; raises Tp2Error."""


def is_steered(settings: Settings, kind: str, platform: Platform) -> bool:
    """Whether names are steered rather than nameservers captured: on macOS, unless ``--dns`` names some.

    :param kind: of the forwarder.
    :param platform: whose pf that is, if it is pf.
    """
    return kind == "pf" and platform is MACOS and not settings.dns


def essential(config: ZoneConfig) -> list[str]:
    """Return the domains without which nothing works.

    :raises ForwarderError: the cluster's domain cannot be steered.
    """
    try:
        return [checked_domain(domain) for domain in (config.zone, "svc", SUFFIX.removeprefix("."))]
    except ValueError as error:
        raise ForwarderError(
            "cannot steer DNS to tp2", str(error), "capture the nameservers instead: --dns IP, of those in use"
        ) from error


def of_namespaces(namespaces: Iterable[str], config: ZoneConfig) -> list[str]:
    """Return the domains of short names: the *namespaces* but for those that are excluded or the system's own."""
    found = set()
    for namespace in namespaces:
        try:
            found.add(checked_domain(namespace))
        except ValueError:
            logger.debug("names below %s are left to the system", namespace)
    return sorted(found.difference(config.exclude, essential(config)))


class Steering:
    """The domains that are steered.

    :param config: says how names are looked up now.
    :param namespaces: gives those of the cluster now.
    """

    def __init__(
        self, forwarder: Forwarder, config: Callable[[], ZoneConfig], namespaces: Callable[[], Iterable[str]]
    ) -> None:
        #: What is steered now.
        self.domains: list[str] = []
        self._forwarder = forwarder
        self._config = config
        self._namespaces = namespaces
        self._port = 0
        self._search: list[str] = []
        # What somebody else steers; they are not asked again and again.
        self._taken: set[str] = set()
        self._changed = asyncio.Event()

    async def start(self, port: int) -> None:
        """Steer to the DNS server at *port*.

        :raises Tp2Error: it cannot be. What could be is undone with the forwarder.
        """
        self._port = port
        await self._apply()

    def look(self) -> None:
        """The namespaces may have changed."""
        self._changed.set()

    async def follow(self) -> None:
        """Follow the namespaces until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._apply()
            except Tp2Error as error:
                # What was steered still is; if the helper is gone, its watcher says so.
                logger.warning("%s. %s", error, error.remedy)

    async def _apply(self) -> None:
        config = self._config()
        needed = essential(config)
        short = [domain for domain in of_namespaces(self._namespaces(), config) if domain not in self._taken]
        search = [f"{config.namespace}.svc.{config.zone}", f"svc.{config.zone}", config.zone]
        if [*needed, *short] == self.domains and search == self._search:
            return
        self._search = search
        try:
            await self._steer([*needed, *short])
        except ForwarderError:
            await self._steer(needed)
            await self._steer_what_can_be(short)

    async def _steer_what_can_be(self, more: Sequence[str]) -> None:
        """Steer *more* as well, but for those that are refused."""
        if not more:
            return
        try:
            await self._steer([*self.domains, *more])
        except ForwarderError as error:
            if len(more) == 1:
                self._taken.update(more)
                logger.warning("short names below %s do not come to tp2: %s. %s", more[0], error, error.remedy)
                return
            half = len(more) // 2
            await self._steer_what_can_be(more[:half])
            await self._steer_what_can_be(more[half:])

    async def _steer(self, domains: Sequence[str]) -> None:
        await self._forwarder.steer_dns(domains, self._search, self._port)
        self.domains = list(domains)
