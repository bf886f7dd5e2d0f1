"""Changes of rules, a few commits for many of them: what comes up while one commit is under way shares the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tp2.errors import Tp2Error
from tp2.portmap.table import Mapping
from tp2.types import Destination, Redirect


class Forwarder(Protocol):
    """What this room needs of the operating system."""

    async def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        """Take redirects away, then set others, in one transaction; raises Tp2Error."""


@dataclass(slots=True)
class Commit:
    """Changes that are committed together. ``add`` wins: what is in both keeps the rule that it has."""

    done: asyncio.Future[None]
    add: dict[Destination, Mapping] = field(default_factory=dict)
    remove: dict[Destination, Mapping] = field(default_factory=dict)


class Commits:
    """The commits of one forwarder, one after the other.

    :param finish: called with each commit when it is made, or with the error when it was refused; after that whoever
        waits for the commit is told.
    """

    def __init__(self, forwarder: Forwarder, finish: Callable[[Commit, Tp2Error | None], None]) -> None:
        self._forwarder = forwarder
        self._finish = finish
        self._next: Commit | None = None
        self._wanted = asyncio.Event()

    def next(self) -> Commit:
        """Return the commit that the next changes go into."""
        if self._next is None:
            self._next = Commit(asyncio.get_running_loop().create_future())
            self._wanted.set()
        return self._next

    async def run(self) -> None:
        """Commit until cancelled."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                commit, self._next = self._next, None
                if commit is not None:
                    await self._make(commit)
        finally:
            if self._next is not None:
                self._next.done.cancel()

    async def _make(self, commit: Commit) -> None:
        # Asked for again before its rule was taken away: then the rule simply stays.
        remove = [destination for destination in commit.remove if destination not in commit.add]
        add = [Redirect(m.destination, m.local.port, m.local.address) for m in commit.add.values()]
        try:
            await self._forwarder.update(add, remove)
        except Tp2Error as error:
            self._finish(commit, error)
            commit.done.set_exception(error)
            commit.done.exception()  # marks it as seen: whoever waited may have been cancelled
        except BaseException:
            commit.done.cancel()
            raise
        else:
            self._finish(commit, None)
            commit.done.set_result(None)
