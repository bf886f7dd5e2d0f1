"""``scripts/bench mappings``: what a new mapping costs when there are few and many, beside a rule that a process sets.

tp2 is the whole daemon in a sandbox: a new mapping is the first lookup of a name, from the query to the answer, with
its listener and its rule. Three sandboxes are up at the same time, with 10, 1,000 and 10,000 live mappings, so that
the sizes alternate. The processes run in the sandbox's internet, whose rules are their own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench import cluster, usage
from bench.contenders import Tp2
from bench.dnsperf import Unanswered
from bench.report import Figure, alternate
from tp2.sandbox.box import Sandbox
from tp2.sandbox.objects import Object, service

#: Ports of a service of which one lookup makes as many mappings.
PORTS: Final = 100

WHERE: Final = "bulk"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    :param sizes: numbers of live mappings, the first of which the others are compared with.
    :param fresh: new mappings in each round: rules as well, but of iptables, which takes longest, fewer.
    """

    rounds: int = 9
    sizes: tuple[int, ...] = (10, 1_000, 10_000)
    fresh: int = 20


#: For tests of the bench itself: its figures mean nothing.
QUICK: Final = Effort(rounds=1, sizes=(10, 200), fresh=5)


def run(effort: Effort, say: Callable[[str], None]) -> list[Figure]:
    """Measure everything; *say* is told what comes next.

    :raises Tp2Error: a contender did not do its work.
    """
    total = effort.rounds * effort.fresh
    with ExitStack() as stack:
        say(f"building {len(effort.sizes)} sandboxes")
        boxes = {
            size: stack.enter_context(Sandbox([*cluster.objects(total), *_bulk(size)], programs=()))
            for size in effort.sizes
        }
        daemons = {size: Tp2(box, "--idle-timeout", "1h") for size, box in boxes.items()}
        say(f"making {' and '.join(f'{size:,}' for size in effort.sizes)} mappings")
        memory = {size: _fill(daemon, size) for size, daemon in daemons.items()}
        say("new mappings, and processes that set a rule")
        figures = [*_costs(effort, daemons), _memory(memory[max(effort.sizes)])]
        for size, daemon in daemons.items():
            live = daemon.status()["mappings"]["live"]
            if live != size + total:
                raise Unanswered("tp2", f"{size + total} mappings were made, and it has {live}")
            daemon.stop()
    return figures


def _costs(effort: Effort, daemons: dict[int, Tp2]) -> list[Figure]:
    """The median of a round is what a user sees on a machine as busy as it is; the fastest is what the work costs."""

    def new(daemon: Tp2, numbers: count[int]) -> list[float]:
        first = next(numbers) * effort.fresh
        times: list[float] = _inside(daemon.box, "bench.inside", "lookups", daemon.port, first, effort.fresh)
        return times

    def process(what: str, size: int) -> list[float]:
        where = next(iter(daemons.values())).box.internet
        done = where.run(
            *(sys.executable, "-m", "bench.rules", what, str(size), str(max(3, effort.fresh // 4))),
            timeout=300,
            env=_environment(),
        )
        times: list[float] = json.loads(done)
        return times

    contenders: dict[str, Callable[[], list[float]]] = {
        _who("tp2", size): partial(new, daemon, count()) for size, daemon in daemons.items()
    }
    for what, called in (("nft", "nft process"), ("iptables", "iptables process")):
        contenders |= {_who(called, size): partial(process, what, size) for size in daemons}
    found = alternate(effort.rounds, contenders)
    beside = (_who("tp2", min(daemons)),)
    return [
        Figure(
            f"one more, {words}",
            "ms",
            {who: [1000 * of(times) for times in rounds] for who, rounds in found.items()},
            beside,
        )
        for words, of in (("median", median), ("fastest", min))
    ]


def _memory(values: tuple[float, float]) -> Figure:
    processes, kernel = values
    found = {
        "daemon and helper (VmRSS)": [processes],
        "kernel (Slab, of the whole machine)": [kernel],
        "both": [processes + kernel],
    }
    return Figure("memory of a live mapping", "KiB", found, ())


def _fill(daemon: Tp2, size: int) -> tuple[float, float]:
    """Look up what makes *size* mappings; return the KiB that each costs, in the processes and in the kernel."""
    before, slab = _resident(daemon), _slab()
    questions = "".join(f"{name}.{WHERE}.svc.cluster.local A\n" for name, _ in _services(size))
    daemon.box.laptop.run(
        *("dig", "+short", "+tries=1", "@127.0.0.1", "-p", str(daemon.port), "-f", "-"), stdin=questions, timeout=120
    )
    live = daemon.status()["mappings"]["live"]
    if live != size:
        raise Unanswered("tp2", f"the names of {size} mappings were looked up, and it has {live}")
    return (_resident(daemon) - before) / size, (_slab() - slab) / size


def _resident(daemon: Tp2) -> float:
    """KiB of the daemon and its helper in memory."""
    helper = int(daemon.status()["forwarder"]["helper_pid"])
    return sum(usage.kibibytes(Path(f"/proc/{pid}/status"), "VmRSS") for pid in (daemon.pid, helper))


def _slab() -> float:
    """KiB of the kernel's own objects, sockets among them."""
    return usage.kibibytes(Path("/proc/meminfo"), "Slab")


def _services(size: int) -> list[tuple[str, int]]:
    """Names and numbers of ports of services that come to *size* mappings."""
    whole, rest = divmod(size, PORTS)
    return [*((f"bulk-{number}", PORTS) for number in range(whole)), *([(f"bulk-{whole}", rest)] if rest else [])]


def _bulk(size: int) -> list[Object]:
    return [
        service(
            WHERE, name, f"10.98.{number // 250}.{1 + number % 250}", {f"p{port}": 7000 + port for port in range(n)}
        )
        for number, (name, n) in enumerate(_services(size))
    ]


def _inside(box: Sandbox, module: str, what: str, *arguments: object) -> Any:
    done = box.laptop.run(*(sys.executable, "-m", module, what, *map(str, arguments)), timeout=120, env=_environment())
    return json.loads(done)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def _who(what: str, size: int) -> str:
    return f"{what}, {size:,} live"
