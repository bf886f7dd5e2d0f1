"""``scripts/bench start``: how long a person waits for a way to be there, and for nothing of it to be left.

A client on the laptop looks a service's name up and asks for a page, over and over, from before the command is given
until a page has come. In the end a loop looks at the rules until there are none. Both are watched from outside, and
the same for everybody: what a contender says of itself does not count.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Final

from bench.report import Figure, alternate
from bench.site import WEB_NAME, Site
from bench.ways import API, ORIGDST, SSHUTTLE, TP2, WAYS, NotCarried, Start
from tp2.sandbox.box import NAMESERVER, tp2_command

#: Seconds that a client has to end in.
PATIENCE: Final = 60.0

#: Who has names, and so can be waited for by name.
CONTENDERS: Final = (SSHUTTLE, TP2, ORIGDST, API)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    rounds: int = 7


QUICK: Final = Effort(rounds=1)


def run(effort: Effort, say: Callable[[str], None]) -> list[Figure]:
    """Measure everything; *say* is told what comes next.

    :raises Tp2Error: a contender did not do its work.
    """
    with ExitStack() as stack:
        say("building the sandboxes")
        sites = {name: stack.enter_context(Site()) for name in CONTENDERS}
        found = {}
        for how in ("down", "kill"):
            say(f"starting, and stopping by {how}")
            contenders = {name: partial(_there_and_gone, name, WAYS[name], site, how) for name, site in sites.items()}
            found[how] = alternate(effort.rounds, contenders)
    there = {name: [run[0] for runs in found.values() for run in runs[name]] for name in CONTENDERS}
    return [
        Figure("from the command to the first page by name", "s", there, (SSHUTTLE,)),
        Figure("from 'tp2 down', or 'kill' of sshuttle, to no rule left", "s", _gone(found["down"]), (SSHUTTLE,)),
        Figure("from 'kill' to no rule left", "s", _gone(found["kill"]), (SSHUTTLE,)),
    ]


def _there_and_gone(name: str, start: Start, site: Site, how: str) -> tuple[float, float]:
    """Start and stop a way; return the seconds that each of them took."""
    before = site.requests()
    client = site.start_inside("bench.visitor", "arrival", NAMESERVER, WEB_NAME)
    assert client.stdout is not None
    assert client.stdout.readline() == "asking\n"
    began = monotonic()
    way = start(name, site)
    there = _outcome(name, client) - began
    if site.requests() != before + 1:
        raise NotCarried(name, "nginx has not given the page that came")
    rules = site.start_inside("bench.visitor", "departure")
    assert rules.stdout is not None
    assert rules.stdout.readline() == "looking\n"
    ended = monotonic()
    command = ["kill", str(way.processes()[0])] if how == "kill" or name == SSHUTTLE else tp2_command("down")
    site.box.laptop.run(*command, env=site.box.environment)
    gone = _outcome(name, rules) - ended
    way.wait()
    return there, gone


def _outcome(name: str, client: subprocess.Popen[Any]) -> float:
    assert client.stdout is not None
    answer = client.stdout.read()
    if client.wait(PATIENCE) != 0:
        raise NotCarried(name, "the client that waits for it gave up; it says why above")
    return float(json.loads(answer))


def _gone(found: dict[str, list[tuple[float, float]]]) -> dict[str, list[float]]:
    return {name: [run[1] for run in runs] for name, runs in found.items()}
