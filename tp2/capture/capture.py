"""Everything that leads connections to tp2, in either mode: what is captured, what is left alone, and what was refused.

The mode itself (:mod:`tp2.portmap` or :mod:`tp2.origdst`) answers the DNS server and takes connections. Beside it the
cluster's addresses are followed, the bridges of containers come and go, and this machine's own networks decide what is
not captured.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, Final

from tp2.attachment import Attachment
from tp2.capture import bridges, refusals
from tp2.capture.addresses import ClusterAddresses
from tp2.capture.refusals import Refusals
from tp2.capture.targets import name_of
from tp2.containers.bridges import chosen
from tp2.containers.inlets import Inlets, Ports
from tp2.dns.server import DnsServer
from tp2.errors import Tp2Error
from tp2.exclusions import Exclusions
from tp2.forward.client import HelperForwarder
from tp2.forward.original import original_destination
from tp2.forward.rules import Inlet
from tp2.origdst.interceptor import Interceptor
from tp2.portmap.mapper import Mapper
from tp2.portmap.ports import SPARE_SHARE
from tp2.portmap.table import Table
from tp2.settings import Mode, Settings
from tp2.socks.connector import Connector
from tp2.system import interfaces, limits
from tp2.system.listeners import loopback_addresses, reset
from tp2.types import Destination

logger = logging.getLogger(__name__)

#: Seconds between two questions what was refused.
ASK_EVERY: Final = 10.0

#: The most addresses of 127.0.0.0/8 that mappings spread over.
MOST_LOOPBACK: Final = 64


class Capture:
    """The capture of one daemon.

    :param attachment: the cluster that is attached now; see :meth:`attach`.
    """

    def __init__(
        self, settings: Settings, forwarder: HelperForwarder, connector: Connector, attachment: Attachment
    ) -> None:
        self._settings = settings
        self._forwarder = forwarder
        self._interfaces = _interfaces()
        self._own_way: set[str] = set()
        self._told: set[str] = set()
        self._moved = asyncio.Event()
        self._disturbed = asyncio.Event()
        self._inlets: Inlets | None = None
        #: The loopback addresses on which redirected connections arrive, one a family.
        self.loopback = ["127.0.0.1", "::1"] if _has("::1") else ["127.0.0.1"]
        self._attachment = attachment
        #: Called when the catalog has changed.
        self.on_catalog: Callable[[], None] = lambda: None
        self.addresses = ClusterAddresses(
            forwarder, lambda: self._attachment.cluster.catalog, self._exclusions, changed=self._moved.set
        )
        self.attach(attachment)
        self.way: Mapper | Interceptor
        if settings.mode is Mode.ORIGDST:
            self.refusals = Refusals(refusals.not_there)
            self.way = Interceptor(
                self.addresses,
                forwarder,
                connector,
                origin=original_destination,
                name=lambda there: name_of(there, self._attachment.cluster.catalog),
                memory=settings.idle_timeout,
            )
        else:
            self.refusals = Refusals(refusals.no_mapping)
            self.way = Mapper(_table(settings), forwarder, connector, spare=self.why_spared)

    def attach(self, attachment: Attachment) -> None:
        """Follow another cluster from now on; :meth:`clear` lets go of the former one."""
        self._attachment = attachment
        self._own_way.clear()
        attachment.on_change = self._catalog_changed
        self._catalog_changed()

    async def clear(self) -> None:
        """Let go of everything that was captured for the cluster that is not attached any more."""
        await self.addresses.clear()
        with contextlib.suppress(Tp2Error):  # the helper is gone, which its watcher tells
            await self.way.clear()

    async def start(self, dns: DnsServer) -> None:
        """Capture what does not wait for a lookup: the cluster's addresses in mode origdst, and containers' bridges.

        :raises Tp2Error: it cannot be.
        """
        if isinstance(self.way, Interceptor):
            self.addresses.port = self.way.listen(self.loopback, self._settings.ports)
            await self.addresses.reconcile()
        self._inlets = Inlets(
            self._announce, dns, origin=original_destination, accept=self.way.accept, refuse=self._refuse
        )
        if isinstance(self.way, Mapper):
            self.way.accept_pending = self._inlets.accept_pending
        await self._use_bridges()

    async def close(self) -> None:
        """Stop listening where containers come in; the rules must have gone before."""
        if self._inlets is not None:
            await self._inlets.close()

    async def follow(self) -> None:
        """Follow the cluster, this machine's networks and the bridges until cancelled."""
        self.disturbed()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.addresses.run())
            group.create_task(self._leave_alone())
            group.create_task(self._follow_bridges())
            group.create_task(self._ask_what_was_refused())

    def disturbed(self) -> None:
        """This machine's network has changed."""
        self._interfaces = _interfaces()
        self.addresses.refresh()
        self._disturbed.set()

    async def count_refused(self) -> None:
        """Count what has been refused by now."""
        if isinstance(self.way, Interceptor):
            self.refusals.note(self.way.take_refused())
            return
        with contextlib.suppress(Tp2Error):
            self.refusals.note(await self._forwarder.refused())

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the ``mappings`` and ``capture`` parts of ``tp2 status``."""
        if isinstance(self.way, Mapper):
            shortage, table = self.way.shortage, self.way.table
            mappings: dict[str, Any] = {
                "live": len(table),
                "made": table.made,
                "capacity": table.capacity,
                "failed_lookups": shortage.lookups,
                "last_failed": shortage.last,
                "why": shortage.why,
            }
        else:
            mappings = {
                "live": self.way.live(),
                "made": None,
                "capacity": None,
                "failed_lookups": 0,
                "last_failed": None,
                "why": None,
            }
        return {
            "mappings": mappings,
            "capture": {
                "addresses": len(self.addresses),
                "left_alone": self.addresses.left_alone(),
                "refused": self.refusals.summary(),
                "containers": [] if self._inlets is None else self._inlets.names,
            },
        }

    def why_spared(self, destination: Destination) -> str | None:
        """Say why connections to *destination* are not captured, whether or not the cluster has it; None if they are.

        As of now: nothing is changed by asking.
        """
        if self._attachment.leads_here(destination):
            return "tp2 itself reaches the cluster that way"
        # A port of its own on an address whose other port tp2 uses does no harm: a rule is for one port.
        return self.addresses.why(destination.address, own_way=False)

    def _catalog_changed(self) -> None:
        self.addresses.look()
        self.on_catalog()

    def _exclusions(self) -> Exclusions:
        # What once was part of the way may be again: the tunnel must not have to wait for us to notice.
        self._own_way |= {address for address, _ in self._attachment.own_way()}
        return Exclusions(
            networks=self._settings.excluded_networks,
            interfaces=self._interfaces,
            own_way=frozenset(self._own_way),
            ipv6="::1" in self.loopback,
        )

    def _refuse(self, destination: Destination, sock: socket.socket) -> None:
        self.refusals.note({destination: 1})
        reset(sock)

    async def _announce(self, inlets: Sequence[Ports]) -> None:
        await self._forwarder.containers([Inlet(*ports) for ports in inlets])

    async def _leave_alone(self) -> None:
        while True:
            await self._moved.wait()
            self._moved.clear()
            with contextlib.suppress(Tp2Error):
                await self.way.leave_alone()

    async def _ask_what_was_refused(self) -> None:
        while True:
            await asyncio.sleep(ASK_EVERY)
            await self.count_refused()

    async def _follow_bridges(self) -> None:
        while True:
            await self._disturbed.wait()
            self._disturbed.clear()
            await self._use_bridges()

    async def _use_bridges(self) -> None:
        if self._inlets is None:
            return
        try:
            links, notes = chosen(bridges.links(), self._settings.containers)
            before = self._inlets.names
            await self._inlets.use(links)
        except (OSError, Tp2Error) as error:
            notes = [f"what containers send is not captured: {error}"]
        else:
            if self._inlets.names != before:
                logger.info("containers come in by %s", ", ".join(self._inlets.names) or "no interface")
        for note in notes:
            if note not in self._told:
                self._told.add(note)
                logger.warning("%s", note)


def _table(settings: Settings) -> Table:
    capacity = limits.most_mappings(limits.open_files())
    # Enough addresses for as many as there may be, and those that rest.
    needed = ceil(capacity * SPARE_SHARE / (SPARE_SHARE - 1) / len(settings.ports))
    further = loopback_addresses(min(needed, MOST_LOOPBACK))[1:]
    return Table(settings.ports, further=further, capacity=capacity, idle_timeout=settings.idle_timeout)


def _interfaces() -> frozenset[Any]:
    with contextlib.suppress(OSError):
        return frozenset(address for _, address in interfaces.addresses())
    return frozenset()


def _has(address: str) -> bool:
    """Whether *address* is one of this machine's."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind((address, 0))
        return True
    return False
