"""``scripts/bench soak``: an hour's work in minutes, after which everything has come and nothing has grown.

Programs on the laptop look names up, connect, exchange bytes with a server in the cluster, and end; some break off, and
some stay all the time. Both ends count and hash every byte. After each round of work tp2 comes to rest, its mappings
gone but for those in use, and what it holds is looked at: memory and descriptors of the daemon and of its helper. The
first rounds make what is kept for the next; after them, all has to stay as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from bench import usage
from bench.contenders import Tp2
from bench.report import Figure
from bench.ways import API, ORIGDST, TP2
from tp2.errors import Tp2Error
from tp2.sandbox.box import NAMESERVER, Sandbox
from tp2.sandbox.objects import Object, namespace, service

#: Seconds after which something that should happen has not.
PATIENCE: Final = 90.0

#: The services, and their ports: so many mappings in mode portmap.
SERVICES: Final = 20
PORTS: Final = tuple(range(7000, 7004))

#: Connections that stay from the beginning to the end.
HELD: Final = 10

#: How much more memory a process may have in the end, as a share of what it had and in MB (10^6 octets), whichever is
#: more: an allocator does not always give the same pages back.
SHARE: Final = 0.05
ROOM: Final = 3.0

#: How tp2 is started for each way, and whether it goes to the endpoint that is installed in the cluster.
_OPTIONS: Final[dict[str, tuple[tuple[str, ...], bool]]] = {
    TP2: ((), False),
    ORIGDST: (("--mode", "origdst"), False),
    API: ((), True),
}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done.

    :param rounds: of work, with a rest after each.
    :param warm: how many of them make what is kept for the next.
    :param seconds: that a round takes.
    :param workers: connections at a time.
    :param ways: of tp2, one after the other.
    :param parts: into which the services are divided: each round has one of them, and the mappings of the others go.
    :param spoil: the number of a connection whose bytes the server is to get wrong; for the test that this is seen.
    """

    rounds: int = 8
    warm: int = 2
    seconds: float = 5.0
    workers: int = 40
    ways: tuple[str, ...] = (TP2, ORIGDST, API)
    parts: int = 2
    spoil: int | None = None


#: For tests of the bench itself, and for a glance.
QUICK: Final = Effort(rounds=5, seconds=1.5, ways=(TP2,), parts=1)


class Level(NamedTuple):
    """What a process holds at rest: MB (10^6 octets) of memory of its own, and open descriptors."""

    memory: float
    descriptors: int


class NotLevel(Tp2Error):
    """Something has grown."""

    def __init__(self, what: str, values: Sequence[float]) -> None:
        words = ", ".join(f"{value:g}" for value in values)
        super().__init__(f"{what} is not level", f"at rest, after each round of work: {words}", "this is a bug")


class NotWhole(Tp2Error):
    """Bytes are missing, or are other ones."""

    def __init__(self, way: str, why: str) -> None:
        super().__init__(f"{way} did not carry every byte as it was", why, "this is a bug")


@dataclass
class Soaked:
    """What came of one way."""

    whole: int = 0
    broken: int = 0
    bytes: int = 0
    seconds: float = 0.0
    peak: float = 0.0
    daemon: list[Level] = field(default_factory=list)
    helper: list[Level] = field(default_factory=list)


def run(effort: Effort, say: Callable[[str], None]) -> list[Figure]:
    """Soak each way; *say* is told what comes next.

    :raises NotWhole: a byte is missing or another one, or an end knows nothing of a connection of the other.
    :raises NotLevel: memory or descriptors have grown.
    """
    soaked = {}
    for way in effort.ways:
        say(f"{way}: {effort.rounds} rounds of {effort.seconds:g} s, {effort.workers} connections at a time")
        soaked[way] = soak(way, effort)
        for who, levels in (("daemon", soaked[way].daemon), ("helper", soaked[way].helper)):
            check_level(f"{way}, {who}", levels[effort.warm :])
    return list(_figures(soaked, effort))


def soak(way: str, effort: Effort) -> Soaked:
    """Soak one way; return what came of it, which is whole.

    :raises NotWhole: see :func:`run`.
    """
    options, installed = _OPTIONS[way]
    with Sandbox(_objects(), programs=()) as box, _server(box, effort) as served:
        tp2 = Tp2(box, *options, "--idle-timeout", "1s" if effort.parts > 1 else "10m", installed=installed)
        soaked = Soaked()
        with _client(box) as client:
            for _ in range(effort.rounds):
                began = time.monotonic()
                _ask(client, f"{effort.seconds} {effort.workers} {effort.parts}")
                _settle(way, soaked, _answer(way, client))
                soaked.seconds += time.monotonic() - began
                helper = _rest(tp2, mappings=HELD if effort.parts > 1 else SERVICES * len(PORTS))
                soaked.peak = max(soaked.peak, usage.status(tp2.pid, "VmHWM"))
                soaked.daemon.append(_level(tp2.pid))
                soaked.helper.append(_level(helper))
            assert client.stdin is not None
            client.stdin.close()
            _settle(way, soaked, _answer(way, client))
        count = served()
        if (count["whole"], count["up"] + count["down"]) != (soaked.whole, soaked.bytes):
            there = f"{count['whole']} connections with {count['up'] + count['down']} bytes"
            raise NotWhole(way, f"{soaked.whole} with {soaked.bytes} bytes were seen here, and {there} there")
        tp2.stop()
    return soaked


def check_level(what: str, levels: Sequence[Level]) -> None:
    """Accept that nothing grows from one rest to the next; *what* is whose levels these are.

    :raises NotLevel: it does: there are more descriptors in the end, or the trend of the memory over all rests is more
        than :data:`ROOM` and :data:`SHARE`.
    """
    descriptors = [level.descriptors for level in levels]
    if descriptors[-1] > descriptors[0]:
        raise NotLevel(f"the number of descriptors ({what})", descriptors)
    memory = [level.memory for level in levels]
    if growth(memory) > max(ROOM, SHARE * memory[0]):
        raise NotLevel(f"the memory in MB ({what})", memory)


def growth(values: Sequence[float]) -> float:
    """Return how much *values* (two or more) grow from the first to the last by their trend.

    The trend is the median of the slopes between any two, so that a single odd value does not make it (the estimator of
    Theil and Sen).
    """
    pairs = combinations(enumerate(values), 2)
    return median((later - former) / (j - i) for (i, former), (j, later) in pairs) * (len(values) - 1)


def _figures(soaked: dict[str, Soaked], effort: Effort) -> Iterator[Figure]:
    def figure(name: str, unit: str, values: Callable[[Soaked], Sequence[float]]) -> Figure:
        return Figure(name, unit, {way: values(outcome) for way, outcome in soaked.items()}, ())

    yield figure("connections, every byte of which came", "connections", lambda one: [float(one.whole)])
    yield figure("connections that were broken off", "connections", lambda one: [float(one.broken)])
    yield figure("bytes, counted and hashed at both ends", "GB", lambda one: [one.bytes / 1e9])
    yield figure("connections a second", "1/s", lambda one: [(one.whole + one.broken) / one.seconds])
    yield figure("memory of the daemon, at its most", "MB", lambda one: [one.peak])
    for who in ("daemon", "helper"):

        def levels(one: Soaked, who: str = who) -> list[Level]:
            found: list[Level] = getattr(one, who)
            return found[effort.warm :]

        yield figure(f"memory of the {who} at rest", "MB", lambda one, of=levels: [at.memory for at in of(one)])
        yield figure(
            f"descriptors of the {who} at rest",
            "descriptors",
            lambda one, of=levels: [float(at.descriptors) for at in of(one)],
        )


def _settle(way: str, soaked: Soaked, outcome: dict[str, Any]) -> None:
    """Add what the client says.

    :raises NotWhole: it has something to complain of.
    """
    if outcome["failures"]:
        raise NotWhole(way, f"{outcome['failures']} connections were not as they should: {'; '.join(outcome['wrong'])}")
    soaked.whole += outcome["whole"]
    soaked.broken += outcome["broken"]
    soaked.bytes += outcome["up"] + outcome["down"]


def _rest(tp2: Tp2, mappings: int) -> int:
    """Return the helper's process id when nothing but what is held is open.

    :raises NotLevel: something stays.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        status = tp2.status()
        open_connections, live = status["connections"]["open"], status["mappings"]["live"]
        if open_connections <= HELD and live <= mappings:
            helper: int = status["forwarder"]["helper_pid"]
            return helper
        if time.monotonic() > deadline:
            raise NotLevel("what is open, and mapped", (open_connections, live))
        time.sleep(0.2)


def _level(pid: int) -> Level:
    # Its own memory alone: that of files, the programs' and libraries', depends on who else has them open.
    return Level(usage.status(pid, "RssAnon"), usage.descriptors(pid))


def _address(number: int) -> str:
    return f"10.96.20.{1 + number}"


def _objects() -> list[Object]:
    ports = {f"p{port}": port for port in PORTS}
    services = [service("soak", f"soak-{number}", _address(number), ports) for number in range(SERVICES)]
    return [namespace("default"), namespace("soak"), *services]


@contextmanager
def _server(box: Sandbox, effort: Effort) -> Iterator[Callable[[], dict[str, int]]]:
    """Have the server in the cluster; what is yielded says what it has served."""
    # One program at all ports of all addresses.
    box.cluster.shell("ip route add local 10.96.20.0/24 dev lo")
    spoil = [] if effort.spoil is None else ["--spoil", str(effort.spoil)]
    with box.cluster.start(
        *(sys.executable, "-m", "bench.soakserver", *map(str, PORTS), *spoil),
        env=_environment(box),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n":
            raise Tp2Error("the soak has no server", "it ended; its words are above", "report this")

        def served() -> dict[str, int]:
            _ask(server, "")
            count: dict[str, int] = _answer("the server", server)
            return count

        try:
            yield served
        finally:
            server.kill()


@contextmanager
def _client(box: Sandbox) -> Iterator[subprocess.Popen[str]]:
    targets = [
        f"soak-{number}.soak.svc.cluster.local={_address(number)}:{port}"
        for number in range(SERVICES)
        for port in PORTS
    ]
    with box.laptop.start(
        *(sys.executable, "-m", "bench.soaker", NAMESERVER, str(HELD), *targets),
        env=_environment(box),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout is not None
        try:
            if client.stdout.readline() != "holding\n":
                raise NotWhole("tp2", "the first connections failed; the client says why above")
            yield client
        finally:
            client.kill()


def _ask(program: subprocess.Popen[str], line: str) -> None:
    assert program.stdin is not None
    program.stdin.write(f"{line}\n")
    program.stdin.flush()


def _answer(who: str, program: subprocess.Popen[str]) -> dict[str, Any]:
    assert program.stdout is not None
    line = program.stdout.readline()
    if not line:
        raise NotWhole(who, "the client ended; it says why above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _environment(box: Sandbox) -> dict[str, str]:
    return {**box.environment, "PYTHONPATH": str(Path(__file__).parent.parent)}
