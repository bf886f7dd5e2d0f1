"""The addresses of a cluster's services and pods, as the forwarder has them.

The catalog says which there are, :mod:`tp2.exclusions` which of them are left alone, and what is then different from
what the forwarder has is committed, in bunches. In mode origdst they are captured, whatever the port; in mode portmap a
connection to one of them that has no mapping is refused at once.

None of it is on the way of a lookup: the catalog is compared with the one before it by set operations, new addresses
are judged in slices between which everything else has its turn, and a commit is small enough for others to come in
between. Only :meth:`ClusterAddresses.ensure` does not wait its turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

from tp2.cluster.catalog import Catalog
from tp2.errors import Tp2Error
from tp2.exclusions import Borders, Exclusions

logger = logging.getLogger(__name__)

#: Seconds between two comparisons: what changes meanwhile is committed together.
PACE: Final = 0.25

#: Seconds without news after which it is looked all the same whether tp2's own way has changed.
REST: Final = 5.0

#: Seconds that an address outlives its service or pod: some client may have it in its cache, and shall be told at once
#: that nobody is there, rather than be sent to whoever has the address elsewhere.
GRACE: Final = 30.0

#: Addresses in one commit: it takes the helper about 10 ms, for which lookups have to wait.
AT_A_TIME: Final = 500

#: Addresses that are judged before others have their turn.
SLICE: Final = 500

#: How many addresses a report names.
NAMED: Final = 5

T = TypeVar("T")


class Forwarder(Protocol):
    """What is needed of the operating system."""

    async def cluster(self, add: Sequence[str], remove: Sequence[str], port: int | None) -> None:
        """Change the cluster's addresses; see :meth:`tp2.forward.rules.Rules.cluster`. Raises Tp2Error."""


class ClusterAddresses:
    """Keeps the forwarder's set of addresses in step.

    :param catalog: gives the cluster as it is now.
    :param exclusions: gives what is excluded now.
    :param changed: called when other exclusions are in force, and :meth:`why` says something else.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        catalog: Callable[[], Catalog],
        exclusions: Callable[[], Exclusions],
        *,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        #: Where connections to the addresses go; None refuses them.
        self.port: int | None = None
        self._forwarder = forwarder
        self._catalog = catalog
        self._exclusions = exclusions
        self._changed = changed
        self._borders = Borders(exclusions())
        self._seen = Catalog()
        # All that the catalog has, those that are left alone with the reason, and those that the forwarder has.
        self._known: frozenset[str] = frozenset()
        self._left_alone: dict[str, str] = {}
        self._committed: set[str] = set()
        # Committed, but not the cluster's any more: when they go.
        self._leaving: dict[str, float] = {}
        # Something was refused: everything is to be compared again.
        self._behind = False
        self._reported: set[str] = set()
        self._woken = asyncio.Event()
        self._busy = asyncio.Lock()

    def __contains__(self, address: str) -> bool:
        """Whether *address* is one of the cluster's, as of now, and the forwarder has it."""
        catalog = self._catalog()
        known = address in catalog.services_by_address or address in catalog.endpoints_by_address
        return known and address in self._committed

    def __len__(self) -> int:
        return len(self._committed)

    def why(self, address: str, *, own_way: bool = True) -> str | None:
        """Say why *address* is left alone, whether or not the cluster has it; None if it is not.

        :param own_way: whether all of an address is left alone of which tp2 needs one port itself.
        """
        return self._borders.why(address, own_way=own_way)

    def left_alone(self) -> list[dict[str, Any]]:
        """Return which addresses of the cluster are not captured: a few for each reason, and how many there are."""
        return [{"why": why, "addresses": found[:NAMED], "count": len(found)} for why, found in self._by_reason()]

    def look(self) -> None:
        """Something has changed: the catalog, this machine's network, or tp2's own way."""
        self._woken.set()

    def refresh(self) -> None:
        """Look at the exclusions again, so that :meth:`why` answers by what is excluded now."""
        exclusions = self._exclusions()
        if exclusions != self._borders.exclusions:
            self._borders = Borders(exclusions)
            self._changed()
            self.look()

    def has(self, addresses: Iterable[str]) -> bool:
        """Whether every one of *addresses* is captured, or left alone."""
        return all(address in self._committed or self.why(address) is not None for address in addresses)

    async def ensure(self, addresses: Iterable[str]) -> None:
        """Return when every one of *addresses* is captured, unless it is left alone.

        :raises Tp2Error: the forwarder refused.
        """
        missing = [a for a in dict.fromkeys(addresses) if a not in self._committed and self.why(a) is None]
        if missing:
            await self._forwarder.cluster(missing, (), self.port)
            self._committed.update(missing)
            # Those that the catalog does not know (yet, or any more) are looked at again.
            now = asyncio.get_running_loop().time()
            self._leaving |= {address: now + GRACE for address in missing if address not in self._known}

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                async with asyncio.timeout(REST):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            await self.reconcile()
            await asyncio.sleep(PACE)

    async def reconcile(self) -> None:
        """Commit what is different by now; what the forwarder refuses is tried again later."""
        async with self._busy:
            before = self._borders
            self.refresh()
            everything, self._behind = self._behind or self._borders is not before, False
            try:
                await self._reconcile(everything)
            except Tp2Error as error:
                self._behind = True
                self._report(f"{error}. {error.remedy}")

    async def clear(self) -> None:
        """Take all addresses away: they were another cluster's."""
        async with self._busy:
            self._seen = Catalog()
            self._known = frozenset()
            self._left_alone.clear()
            self._reported.clear()
            try:
                for part in _parts(list(self._committed), AT_A_TIME):
                    await self._remove(part)
            except Tp2Error as error:
                self._report(f"{error}. {error.remedy}")

    async def _reconcile(self, everything: bool) -> None:
        now = asyncio.get_running_loop().time()
        wanted: list[str] = []
        unwanted: list[str] = []
        for part in _parts(self._take_in(self._catalog(), now, everything), SLICE):
            for address in part:
                why = self._borders.why(address)
                if why is not None and address in self._known:
                    self._left_alone[address] = why
                if why is not None and address in self._committed:
                    unwanted.append(address)
                elif why is None and address not in self._committed:
                    wanted.append(address)
            await asyncio.sleep(0)
        self._report_left_alone()
        # What tp2 itself may need is let go of first.
        for part in _parts(unwanted, AT_A_TIME):
            await self._remove(part)
        for part in _parts([address for address, at in self._leaving.items() if at <= now], AT_A_TIME):
            await self._remove(part)
        for part in _parts(wanted, AT_A_TIME):
            await self._forwarder.cluster(part, (), self.port)
            self._committed.update(part)

    def _take_in(self, catalog: Catalog, now: float, everything: bool) -> list[str]:
        """Note what *catalog* has; return the addresses to judge, *everything* or those that are new."""
        new: frozenset[str] = frozenset()
        if catalog is not self._seen:
            former, self._seen = self._known, catalog
            self._known = frozenset(catalog.services_by_address.keys() | catalog.endpoints_by_address.keys())
            new = self._known - former
            for address in former - self._known:
                self._left_alone.pop(address, None)
                if address in self._committed:
                    self._leaving.setdefault(address, now + GRACE)
            for address in self._known & self._leaving.keys():
                del self._leaving[address]
        if everything:
            self._left_alone.clear()
            return list(self._known | self._committed)
        return list(new)

    async def _remove(self, addresses: Sequence[str]) -> None:
        # Whoever needs one of them from now on finds it missing, and adds it again after this.
        self._committed.difference_update(addresses)
        for address in addresses:
            self._leaving.pop(address, None)
        try:
            await self._forwarder.cluster((), addresses, self.port)
        except Tp2Error:
            self._committed.update(addresses)
            self._leaving |= {address: 0.0 for address in addresses if address not in self._known}
            raise

    def _by_reason(self) -> list[tuple[str, list[str]]]:
        found: dict[str, list[str]] = {}
        for address, why in self._left_alone.items():
            found.setdefault(why, []).append(address)
        return [(why, sorted(addresses)) for why, addresses in sorted(found.items())]

    def _report_left_alone(self) -> None:
        for why, found in self._by_reason():
            rest = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
            self._report(f"not captured: {', '.join(found[:NAMED])}{rest}: {why}", about=why)

    def _report(self, words: str, about: str | None = None) -> None:
        """Tell the user once."""
        if (about or words) not in self._reported:
            self._reported.add(about or words)
            logger.warning("%s", words)


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))
