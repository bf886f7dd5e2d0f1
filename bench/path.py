"""``scripts/bench path``: the bytes of tp2 beside those of what people would use instead.

Every contender has a sandbox of its own, and all of them are up from the beginning to the end; whoever is not asked
has nothing to do meanwhile. Figures are taken in rounds, each contender once a round, in an order that changes.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from bench import loads, usage
from bench.loads import Bulk, Pages
from bench.report import Figure, alternate, percentile
from bench.site import WEB_NAME, Site
from bench.ways import REDSOCKS, SSHUTTLE, UPSTREAM, WAYS, Start, Way
from tp2.sandbox.box import NAMESERVER

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    :param seconds: that one transfer takes, or one run of requests; whole ones, since iperf3 and wrk know no others.
    :param beside: seconds that small requests and lookups are asked for, beside a transfer or beside nothing.
    :param delays: round trips in milliseconds of the links on which transfers are measured as well.
    :param visits: new connections in each round of the time to the first byte.
    :param far_visits: the same on a link that takes its time.
    :param held: connections that are open at a time.
    """

    rounds: int = 3
    seconds: int = 1
    beside: float = 1.0
    delays: tuple[int, ...] = (20, 80)
    visits: int = 60
    far_visits: int = 10
    held: int = 1000


#: For tests of the bench itself, and for a glance.
QUICK: Final = Effort(rounds=1, beside=0.3, delays=(20,), visits=10, far_visits=3, held=100)

_BESIDE: Final = (REDSOCKS, SSHUTTLE)

#: Seconds of a transfer on the short link that do not count.
_WARM: Final = 1


def run(effort: Effort, say: Callable[[str], None], ways: Mapping[str, Start] = WAYS) -> list[Figure]:
    """Measure everything; *say* is told what comes next.

    :raises Tp2Error: a contender did not do its work.
    """
    # For 1,000 connections at once, in every program that is started here.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        sites = {name: stack.enter_context(Site()) for name in ways}
        figures = _near(effort, say, _start(say, ways, sites))
        # With tp2 before it, an ssh -D is as far from the cluster as it is with redsocks before it.
        distant = {name: start for name, start in ways.items() if name != UPSTREAM}
        for milliseconds in effort.delays:
            say(f"a link of {milliseconds} ms")
            for name in distant:
                sites[name].delay(milliseconds)
            # Anew: what TCP knows of a connection must not be of another link.
            figures += _far(effort, say, _start(say, distant, sites), milliseconds)
    return figures


def _start(say: Callable[[str], None], ways: Mapping[str, Start], sites: Mapping[str, Site]) -> list[Way]:
    contenders = []
    for name, start in ways.items():
        say(f"starting {name}")
        contenders.append(start(name, sites[name]))
    return contenders


def _near(effort: Effort, say: Callable[[str], None], contenders: Sequence[Way]) -> list[Figure]:
    figures = [_memory("memory, idle", effort, contenders, 0)]
    say("transfers")
    figures += _transfers(effort, contenders)
    say("requests")
    figures += _requests(effort, contenders)
    say("the first byte")
    figures += _first_byte(effort, contenders, effort.visits)
    say("small requests and lookups beside a transfer")
    figures += _beside_a_transfer(effort, contenders)
    say(f"{effort.held:,} open connections")
    figures.append(_memory(f"memory at {effort.held:,} open connections", effort, contenders, effort.held))
    for way in contenders:
        way.stop()
    return figures


def _transfers(effort: Effort, contenders: Sequence[Way]) -> list[Figure]:
    figures = []
    for where, down in (("up", False), ("down", True)):
        found = _each(effort, contenders, partial(loads.bulk, seconds=effort.seconds, down=down, warm=_WARM))
        figures.append(Figure(f"bulk {where}", "Gbit/s", _rates(found), _BESIDE))
        figures.append(Figure(f"CPU for bulk {where}", "s/GB", _costs(contenders, found), _BESIDE))
    return figures


def _requests(effort: Effort, contenders: Sequence[Way]) -> list[Figure]:
    figures = []
    for what, keep in (("new connections", False), ("kept-alive requests", True)):
        found = _each(effort, contenders, partial(loads.pages, seconds=effort.seconds, keep=keep))
        figures += [
            Figure(what, "1/s", _each_of(found, lambda run: run.rate), _BESIDE),
            Figure(f"{what}, median", "ms", _each_of(found, lambda run: 1000 * run.median), _BESIDE),
            Figure(f"{what}, p99", "ms", _each_of(found, lambda run: 1000 * run.p99), _BESIDE),
            Figure(f"CPU for {what}", "s/1,000", _costs(contenders, found), _BESIDE),
        ]
    return figures


def _first_byte(effort: Effort, contenders: Sequence[Way], visits: int, suffix: str = "") -> list[Figure]:
    found = _each(effort, contenders, lambda way: loads.visits(way, "first", visits))
    return _latencies(f"connection to first byte{suffix}", found)


def _beside_a_transfer(effort: Effort, contenders: Sequence[Way]) -> list[Figure]:
    def kept(way: Way) -> list[float]:
        return loads.visits(way, "kept", effort.beside)

    def lookups(way: Way) -> list[float]:
        return loads.lookups(way, NAMESERVER, WEB_NAME, effort.beside)

    def beside(ask: Callable[[Way], list[float]], down: bool, way: Way) -> list[float]:
        with loads.transfer(way, down=down):
            return ask(way)

    resolving = [way for way in contenders if way.resolves]
    figures = _latencies("small request, nothing beside it", _each(effort, contenders, kept))
    found = _each(effort, contenders, partial(beside, kept, True))
    figures += _latencies("small request beside a download", found)
    found = _each(effort, contenders, partial(beside, kept, False))
    figures += _latencies("small request beside an upload", found)
    figures += _latencies("lookup, nothing beside it", _each(effort, resolving, lookups))
    figures += _latencies("lookup beside a download", _each(effort, resolving, partial(beside, lookups, True)))
    return figures


def _far(effort: Effort, say: Callable[[str], None], contenders: Sequence[Way], milliseconds: int) -> list[Figure]:
    # A transfer needs many round trips to find its speed.
    warm = math.ceil(25 * milliseconds / 1000)
    figures = []
    say("transfers")
    for where, down in (("up", False), ("down", True)):
        found = _each(effort, contenders, partial(loads.bulk, seconds=effort.seconds, down=down, warm=warm))
        figures.append(Figure(f"bulk {where} at {milliseconds} ms", "Gbit/s", _rates(found), _BESIDE))
    say("the first byte")
    figures += _first_byte(effort, contenders, effort.far_visits, f" at {milliseconds} ms")
    for way in contenders:
        way.stop()
    return figures


def _memory(name: str, effort: Effort, contenders: Sequence[Way], connections: int) -> Figure:
    def memory(way: Way) -> float:
        if not connections:
            return usage.memory(way.processes())
        with loads.open_connections(way, connections):
            return usage.memory(way.processes())

    costing = [way for way in contenders if way.over_ssh]
    # Once: it takes long, and hardly varies.
    return Figure(name, "MB", alternate(1, {way.name: partial(memory, way) for way in costing}), _BESIDE)


def _each(effort: Effort, contenders: Sequence[Way], measure: Callable[[Way], T]) -> dict[str, list[T]]:
    return alternate(effort.rounds, {way.name: partial(measure, way) for way in contenders})


def _rates(found: Mapping[str, Sequence[Bulk]]) -> dict[str, list[float]]:
    return {who: [run.rate / 1e9 for run in runs] for who, runs in found.items()}


def _each_of(found: Mapping[str, Sequence[Pages]], value: Callable[[Pages], float]) -> dict[str, list[float]]:
    return {who: [value(run) for run in runs] for who, runs in found.items()}


def _costs(contenders: Sequence[Way], found: Mapping[str, Sequence[Bulk] | Sequence[Pages]]) -> dict[str, list[float]]:
    return {way.name: [run.cpu for run in found[way.name]] for way in contenders if way.over_ssh}


def _latencies(what: str, found: Mapping[str, Sequence[Sequence[float]]]) -> list[Figure]:
    figures = []
    for word, share in (("median", 0.5), ("p99", 0.99)):
        values = {who: [1000 * percentile(run, share) for run in runs] for who, runs in found.items()}
        figures.append(Figure(f"{what}, {word}", "ms", values, _BESIDE))
    return figures
