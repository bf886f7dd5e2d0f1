"""``scripts/bench dns``: tp2's DNS beside dnsmasq, at three sizes of cluster, and what a first lookup costs.

tp2 is the whole daemon in a sandbox, with its capture and its watch of the Kubernetes API. It and dnsmasq are asked
directly, on their loopback ports, in the same network namespace. Three sandboxes are up at the same time, so that
clusters of different sizes can alternate as well; whoever is not asked has nothing to do meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import mean
from typing import Any, Final

from bench import cluster, dnsperf
from bench.cluster import Name
from bench.contenders import Dnsmasq, Server, Tp2, measure, verify
from bench.dnsperf import Unanswered
from bench.report import Figure, alternate, percentile
from tp2.sandbox.box import Sandbox


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    :param starts: rounds of those figures that start tp2 anew in each.
    :param seconds: that one run of dnsperf takes.
    :param small: services of the small cluster; likewise *middle* and *large*.
    :param many: how many names of the large cluster are asked for, where it is not as many as the small one has. Each
        becomes a mapping, of which tp2 holds as many as it may open files, but for a quarter.
    :param fresh: names that are looked up for the first time in each round, one after the other.
    :param burst: the same for those that are looked up all at once.
    :param changes: objects that are created and deleted in each round.
    """

    rounds: int = 7
    starts: int = 5
    seconds: float = 2.0
    small: int = 100
    middle: int = 1_000
    large: int = 10_000
    many: int = 5_000
    fresh: int = 100
    burst: int = 200
    changes: int = 5


#: For tests of the bench itself: its figures mean nothing.
QUICK: Final = Effort(
    rounds=1, starts=1, seconds=0.2, small=20, middle=50, large=200, many=100, fresh=10, burst=20, changes=1
)

#: Queries a second at which latencies are taken: well below what either server can do, since at full speed it is
#: the length of dnsperf's own queue that is measured.
OFFERED: Final = 10_000

NFT: Final = "nft add element process"


def run(effort: Effort, say: Callable[[str], None]) -> list[Figure]:
    """Measure everything; *say* is told what comes next.

    :raises Tp2Error: a contender did not do its work.
    """
    with ExitStack() as stack:
        say("building three sandboxes")
        small, middle, large = (
            stack.enter_context(Sandbox(cluster.objects(size), programs=()))
            for size in (effort.small, effort.middle, effort.large)
        )
        say("starting and stopping tp2: time and memory to sync")
        syncing = _sync(effort, small, large)
        say(f"tp2 and dnsmasq, {effort.middle:,} names")
        figures = _beside_dnsmasq(effort, middle)
        small_daemon, large_daemon = Tp2(small), Tp2(large)
        say(f"tp2 at {effort.small:,} and at {effort.large:,} services")
        figures.append(_sizes(effort, small_daemon, large_daemon))
        say("first lookups, and nft processes")
        figures.append(_first_lookups(effort, large_daemon))
        figures += syncing
        say("changed objects")
        figures += _changes(effort, small_daemon, large_daemon)
        small_daemon.stop()
        large_daemon.stop()
    return figures


def _beside_dnsmasq(effort: Effort, box: Sandbox) -> list[Figure]:
    """Throughput and latency of tp2 and of dnsmasq with the same names."""
    names = _names(effort.middle)
    questions = _questions(box, names)
    daemon = Tp2(box)
    servers: dict[str, Server] = {"tp2": daemon, "dnsmasq": Dnsmasq(box, names)}
    for server in servers.values():
        verify(server, names)

    def rate(server: Server) -> float:
        return measure(server, questions, seconds=effort.seconds).rate

    def latencies(server: Server) -> Sequence[float]:
        return measure(server, questions, seconds=effort.seconds, rate=OFFERED, each=True).latencies

    rates = alternate(effort.rounds, {who: partial(rate, server) for who, server in servers.items()})
    found = alternate(effort.rounds, {who: partial(latencies, server) for who, server in servers.items()})
    for server in servers.values():
        verify(server, names)
    daemon.stop()
    figures = [Figure(f"throughput, {len(names):,} names, warm", "queries/s", rates, ("dnsmasq",))]
    for percent in (50, 99):
        values = {who: [1000 * percentile(run, percent / 100) for run in runs] for who, runs in found.items()}
        figures.append(Figure(f"p{percent} at {OFFERED:,} queries/s", "ms", values, ("dnsmasq",)))
    return figures


def _sizes(effort: Effort, small: Tp2, large: Tp2) -> Figure:
    """Throughput of tp2 in clusters of two sizes: the same names in both, and then more of them in the large one."""
    asked: dict[str, tuple[Tp2, list[Name]]] = {
        _who(effort.small): (small, _names(effort.small)),
        _who(effort.large): (large, _names(effort.small)),
        f"{_who(effort.large)}, {effort.many:,} names": (large, _names(effort.many)),
    }
    for daemon, names in asked.values():
        verify(daemon, names)

    def rate(daemon: Tp2, names: Sequence[Name]) -> float:
        return measure(daemon, _questions(daemon.box, names), seconds=effort.seconds).rate

    rates = alternate(effort.rounds, {who: partial(rate, *what) for who, what in asked.items()})
    return Figure(f"throughput, {effort.small:,} names, warm", "queries/s", rates, (_who(effort.small),))


def _first_lookups(effort: Effort, daemon: Tp2) -> Figure:
    """Names that nobody has asked for yet, beside processes of ``nft add element`` in the same namespace."""
    numbers = count(effort.many)

    def fresh(how: str, names: int) -> Any:
        first, *_ = islice(numbers, names)
        before = daemon.status()["mappings"]["live"]
        outcome = _inside(daemon.box, how, daemon.port, first, names)
        if daemon.status()["mappings"]["live"] != before + names:
            raise Unanswered("tp2", f"{names} names that are new to it did not become as many mappings")
        return outcome

    def one_by_one() -> float:
        times: list[float] = fresh("lookups", effort.fresh)
        return 1000 * mean(times)

    def at_once() -> float:
        seconds: float = fresh("burst", effort.burst)
        return 1000 * seconds / effort.burst

    def nft() -> float:
        times: list[float] = _inside(daemon.box, "nft", effort.fresh)
        return 1000 * mean(times)

    contenders = {"tp2, one after the other": one_by_one, f"tp2, {effort.burst} at once": at_once, NFT: nft}
    return Figure("first lookup, mean of a name", "ms", alternate(effort.rounds, contenders), (NFT,))


def _sync(effort: Effort, small: Sandbox, large: Sandbox) -> list[Figure]:
    """Time and memory until the whole cluster is known. Reading the same lists alone shows the API server's share."""

    def up(box: Sandbox) -> tuple[float, float]:
        # The sandbox has a few of its own.
        size = sum(item["kind"] == "Service" for item in box.objects)
        daemon = Tp2(box)
        memory, known = daemon.memory(), daemon.status()["cluster"]["services"]
        daemon.stop()
        if known != size:
            raise Unanswered("tp2", f"the cluster has {size} services, and it knows of {known}")
        return daemon.stages["cluster"] - daemon.stages["socks"], memory

    alone = f"{effort.large:,} services, listed alone"

    def listing() -> tuple[float, float]:
        return _inside(large, "listing", large.kubeconfig), 0.0

    contenders: dict[str, Callable[[], tuple[float, float]]] = {
        _who(effort.small): partial(up, small),
        _who(effort.large): partial(up, large),
        alone: listing,
    }
    found = alternate(effort.starts, contenders)
    seconds = {who: [run[0] for run in runs] for who, runs in found.items()}
    memory = {who: [run[1] for run in runs] for who, runs in found.items() if who != alone}
    return [
        Figure(f"first list to synced, {cluster.ENDPOINTS} endpoints each", "s", seconds, (alone,)),
        Figure("memory when ready (VmRSS)", "MB", memory, (_who(effort.small),)),
    ]


def _changes(effort: Effort, small: Tp2, large: Tp2) -> list[Figure]:
    """From the request that changes an object to the answer that shows it."""
    # Numbers that no object has, and that none had before: a deleted service's mapping would still be there.
    numbers = count(effort.large, effort.changes)

    def changes(daemon: Tp2) -> dict[str, list[float]]:
        arguments = (daemon.box.kubeconfig, daemon.port, next(numbers), effort.changes)
        outcome: dict[str, list[float]] = _inside(daemon.box, "changes", *arguments)
        return outcome

    daemons = {_who(effort.small): small, _who(effort.large): large}
    found = alternate(effort.rounds, {who: partial(changes, daemon) for who, daemon in daemons.items()})
    return [
        Figure(
            f"object {what} to answer changed",
            "ms",
            {who: [1000 * seconds for run in runs for seconds in run[what]] for who, runs in found.items()},
            (_who(effort.small),),
        )
        for what in ("created", "deleted")
    ]


def _inside(box: Sandbox, *arguments: object) -> Any:
    """Run :mod:`bench.inside` on the laptop of *box*; return its outcome."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = (sys.executable, "-m", "bench.inside", *map(str, arguments))
    return json.loads(box.laptop.run(*command, env=environment, timeout=120))


def _questions(box: Sandbox, names: Sequence[Name]) -> Path:
    return dnsperf.write_questions(box.directory / "questions", [item.full for item in names])


def _names(many: int) -> list[Name]:
    return [cluster.name(number) for number in range(many)]


def _who(services: int) -> str:
    return f"tp2, {services:,} services"
