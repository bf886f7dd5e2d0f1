"""``tp2 top``: how the running tp2 is, again and again. It reads the control socket, and nothing else."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tp2.control import client
from tp2.runtime import RuntimeDirectory
from tp2.terminal.rows import KEYS, Rates, matching, ordered

#: Seconds between two looks.
EVERY: Final = 1.0

SORTS: Final = tuple(KEYS)


@dataclass(frozen=True, slots=True)
class View:
    """What the person at the terminal has chosen to see.

    ``typing`` is what stands behind a ``/`` that has not been ended by Enter, None if there is no such; ``first`` is
    the row of mappings at the top.
    """

    sort: str = "name"
    filter: str = ""
    typing: str | None = None
    paused: bool = False
    first: int = 0

    @property
    def words(self) -> list[str]:
        """What has to be in each row."""
        return (self.filter if self.typing is None else self.typing).split()


class Quit(Exception):
    """The person has had enough."""


def pressed(view: View, key: str, page: int) -> View:
    """Return *view* as it is after *key*. Pure.

    :param page: how many rows of mappings there is room for.
    :raises Quit: it was q.
    """
    if view.typing is not None:
        return _typed(view, view.typing, key)
    step = {"down": 1, "j": 1, "up": -1, "k": -1, "page down": page, "page up": -page, "home": -(10**9), "end": 10**9}
    if key in step:
        return replace(view, first=max(0, view.first + step[key]))
    match key:
        case "q" | "Q":
            raise Quit
        case "s" | "S":
            at = SORTS.index(view.sort) + (1 if key == "s" else -1)
            return replace(view, sort=SORTS[at % len(SORTS)], first=0)
        case "/":
            return replace(view, typing=view.filter, first=0)
        case "escape":
            return replace(view, filter="", first=0)
        case "p" | " ":
            return replace(view, paused=not view.paused)
    return view


def _typed(view: View, typing: str, key: str) -> View:
    match key:
        case "enter":
            return replace(view, filter=typing, typing=None)
        case "escape":
            return replace(view, typing=None)
        case "backspace":
            return replace(view, typing=typing[:-1])
        case "clear":
            return replace(view, typing="")
    return replace(view, typing=(typing + key)[:60], first=0) if len(key) == 1 else view


@dataclass(slots=True)
class Look:
    """What the control socket said at one moment; ``rates`` carries over to the next."""

    runtime: RuntimeDirectory
    rates: Rates = field(default_factory=Rates)
    status: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    recent: list[dict[str, Any]] = field(default_factory=list)
    #: Queries a second since the last look.
    queries: float = 0.0
    _at: float | None = None

    def again(self) -> None:
        """Look.

        :raises Tp2Error: tp2 is not running, or does not answer (any more).
        """
        before = self.status
        self.status = client.ask(self.runtime, "status")
        now = time.monotonic()
        self.rows = self.rates.add_to(client.ask(self.runtime, "mappings")["mappings"], now)
        self.recent = client.ask(self.runtime, "recent")["recent"]
        if self._at is not None and now > self._at:
            count = self.status["dns"]["queries"] - before["dns"]["queries"]
            self.queries = max(0.0, count / (now - self._at))
        self._at = now

    def shown(self, view: View) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the mappings and the questions that *view* wants to see."""
        words = [word.lower() for word in view.words]
        recent = [row for row in self.recent if all(word in f"{row['name']} {row['who']}" for word in words)]
        return ordered(matching(self.rows, words), view.sort), recent


def top(runtime: RuntimeDirectory, *, sort: str, words: tuple[str, ...]) -> None:
    """Show it until q or Ctrl-C; once, where there is no terminal.

    :raises Tp2Error: tp2 is not running, or does not answer (any more).
    """
    from tp2.terminal import topscreen

    look, view = Look(runtime), View(sort=sort, filter=" ".join(words))
    look.again()
    if not (sys.stdin.isatty() and topscreen.is_terminal()):
        topscreen.once(look, view)
        return
    try:
        _go_on(look, view)
    except (Quit, KeyboardInterrupt, EOFError):
        # That is how a look ends.
        return


def _go_on(look: Look, view: View) -> None:
    from tp2.terminal import topscreen
    from tp2.terminal.keyboard import keyboard

    with keyboard() as keys, topscreen.screen() as show:
        due = time.monotonic() + EVERY
        while True:
            view, page = show(look, view)
            for key in keys.wait(due):
                view = pressed(view, key, page)
            if time.monotonic() >= due:
                due = time.monotonic() + EVERY
                if not view.paused:
                    look.again()
