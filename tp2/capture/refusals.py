"""Connections that were refused since tp2 does not lead where they wanted to go: counted, and explained once each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from tp2.types import Destination

logger = logging.getLogger(__name__)

#: Destinations that are told apart; connections to more of them are only counted.
MOST: Final = 1000

#: How many are explained: whoever connects to more is looking around, and the log need not tell of each.
EXPLAINED: Final = 20

#: How many ``tp2 status`` shows.
SHOWN: Final = 10


class Refusals:
    """All of them so far.

    :param explain: says of a destination what to do about it.
    """

    def __init__(self, explain: Callable[[Destination], str]) -> None:
        self.total = 0
        self._explain = explain
        self._counts: Counter[Destination] = Counter()

    def note(self, refused: Mapping[Destination, int]) -> None:
        """Count connections, and explain those to destinations that have not been seen before, while they are few."""
        for destination, count in refused.items():
            self.total += count
            if destination in self._counts:
                self._counts[destination] += count
            elif len(self._counts) < MOST:
                self._counts[destination] = count
                if len(self._counts) <= EXPLAINED:
                    logger.warning("%s", self._explain(destination))
                elif len(self._counts) == EXPLAINED + 1:
                    logger.warning("connections to still others are refused: 'tp2 status' counts them")

    def summary(self) -> dict[str, Any]:
        """Return the object for ``tp2 status --json``."""
        most = self._counts.most_common(SHOWN)
        rows = [{"address": there.address, "port": there.port, "connections": count} for there, count in most]
        return {"connections": self.total, "destinations": rows}


def no_mapping(destination: Destination) -> str:
    """Say why a connection in mode portmap was refused, and what to do."""
    return (
        f"connection to {destination} refused: no mapping; look the name up, or connect after 'tp2 map {destination}'"
    )


def not_there(destination: Destination) -> str:
    """Say why a connection in mode origdst was reset."""
    return f"connection to {destination} reset: the cluster has no such address any more; look the name up again"
