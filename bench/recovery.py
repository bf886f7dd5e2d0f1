"""A laptop's day: what goes wrong, and what a running ``curl`` loop sees of it.

Each event (:mod:`bench.day`) does something to the sandbox and says when its cause was gone. Meanwhile a loop on the
laptop looks a name up and fetches a page, with a new connection each time. Counted are the visits that failed, and the
seconds from the end of the cause to the end of the first visit that began after it and succeeded.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.day import EVENTS, PATIENCE, Day, Event
from bench.report import Figure
from tp2.errors import Tp2Error
from tp2.sandbox.box import Sandbox

URL: Final = "http://web.shop/"

#: Visits before an event, and after the recovery from it: it worked before, and goes on working.
WARM: Final = 10


class Visit(NamedTuple):
    """One turn of the loop; ``wrong`` is empty if it succeeded."""

    began: float
    ended: float
    wrong: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the loop saw of an event."""

    visits: int
    failures: tuple[str, ...]
    recovery: float
    longest: float


#: The ways to the endpoint, each of which has a day of its own.
WAYS: Final = {"tp2 --remote": False, "tp2 through the API": True}


def run(say: Callable[[str], None]) -> list[Figure]:
    """Let every event happen to a tp2 of each way; return what the loop saw."""
    seen: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for way, installed in WAYS.items():
        with Sandbox() as box:
            day = Day(box, installed)
            with connected(day):
                for event in EVENTS:
                    outcome = watch(day, event)
                    failed = f", {len(outcome.failures)} failed ({outcome.failures[0]})" if outcome.failures else ""
                    say(f"{way}, {event.name}: {outcome.visits} visits{failed}, well after {outcome.recovery:.2f} s")
                    for figure, unit, value in (
                        ("failed visits", "visits", float(len(outcome.failures))),
                        ("to recovery", "s", outcome.recovery),
                        ("longest visit", "s", outcome.longest),
                    ):
                        seen.setdefault((event.name, figure, unit), {})[way] = [value]
    return [Figure(f"{event}: {figure}", unit, values, ()) for (event, figure, unit), values in seen.items()]


@contextlib.contextmanager
def connected(day: Day) -> Iterator[subprocess.Popen[Any]]:
    """Bring tp2 up, and take it down."""
    up = day.box.laptop.start(
        *day.command(), env=day.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert up.stdout is not None
    if not any(line.startswith("ready") for line in up.stdout):
        raise Tp2Error("tp2 did not come up", f"it ended with exit code {up.wait()}", "its words are above")
    try:
        yield up
    finally:
        up.terminate()
        up.wait(PATIENCE)


def watch(day: Day, event: Event, url: str = URL) -> Outcome:
    """Let *event* happen while the loop runs; return what it saw."""
    loop = day.box.laptop.start(
        *(sys.executable, Path(__file__).with_name("visits.py"), url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert loop.stdout is not None
    lines = (Visit(*json.loads(line)) for line in loop.stdout)
    visits = []
    for visit in lines:
        if visit.wrong:
            raise Tp2Error(
                f"{url} cannot be fetched", visit.wrong, "the bench needs it to work before anything happens"
            )
        visits.append(visit)
        if len(visits) == WARM:
            break
    gone = event.happen(day)
    well: Visit | None = None
    seen = 0
    for visit in lines:
        visits.append(visit)
        if well is None and visit.began >= gone and not visit.wrong:
            well = visit
        if visit.ended > gone + PATIENCE:
            raise Tp2Error(f"after '{event.name}' nothing works", visit.wrong or "no visit succeeded", "this is a bug")
        seen += well is not None
        if seen == WARM:
            break
    assert well is not None
    assert loop.stdin is not None
    loop.stdin.close()
    visits += list(lines)
    loop.wait(PATIENCE)
    return Outcome(
        len(visits),
        tuple(visit.wrong for visit in visits if visit.wrong),
        well.ended - gone,
        max(visit.ended - visit.began for visit in visits),
    )
