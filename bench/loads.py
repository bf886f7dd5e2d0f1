"""What is sent through a way to the cluster, by whom, and what is taken from what they say.

iperf3 moves bytes, wrk asks for pages; :mod:`bench.visitor` does what neither of them can time. Each run is checked
against the counters of the far side, and raises if they do not say the same.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from bench import usage
from bench.site import BODY, IPERF, IPERF_PORT, WEB, WEB_PORT
from bench.ways import NotCarried, Way

#: Seconds that a command may take beyond those it was told to: with a thousand connections some contenders are slow.
PATIENCE = 300


class Bulk(NamedTuple):
    """One transfer: bits a second at the receiver, and CPU seconds of the way for each GB (10^9 bytes)."""

    rate: float
    cpu: float


class Pages(NamedTuple):
    """One run of wrk: requests a second, seconds of latency, and CPU seconds of the way for 1,000 requests."""

    rate: float
    median: float
    p99: float
    cpu: float


def bulk(way: Way, seconds: int, *, down: bool, warm: int = 1) -> Bulk:
    """Move bytes as fast as they go, after *warm* seconds of the same."""
    with _watched(way) as watch:
        text = way.site.box.laptop.run(
            *("iperf3", "--client", IPERF, "--port", str(IPERF_PORT), "--json"),
            *("--time", str(seconds), "--omit", str(warm)),
            *(["--reverse"] if down else []),
            timeout=seconds + warm + PATIENCE,
            check=False,
        )
        outcome = json.loads(text or '{"error": "nothing"}')
        if "error" in outcome:
            raise NotCarried(way.name, f"iperf3 says: {outcome['error']}")
        received = outcome["end"]["sum_received"]
        watch.payload(**{"down" if down else "up": received["bytes"]})
    carried = watch.carried.down_local or watch.carried.down_straight if down else watch.carried.up_local
    return Bulk(received["bits_per_second"], watch.cpu / max(1, carried) * 1e9)


def pages(way: Way, seconds: int, *, keep: bool, connections: int = 16) -> Pages:
    """Ask nginx for as many pages as it gives, with a connection for each or with some that are kept."""
    before = way.site.requests()
    with _watched(way) as watch:
        text = way.site.box.laptop.run(
            *("wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s", "--latency"),
            *([] if keep else ["--header", "Connection: close"]),
            f"http://{WEB}:{WEB_PORT}/",
            timeout=seconds + PATIENCE,
            check=False,
        )
        completed, outcome = _wrk(way.name, text)
        watch.payload(down=completed * len(BODY))
    answered = way.site.requests() - before
    if answered < completed:
        raise NotCarried(way.name, f"wrk has {completed} answers, and nginx gave {answered}")
    return outcome._replace(cpu=watch.cpu / answered * 1000)


def visits(way: Way, what: str, *arguments: object) -> list[float]:
    """Let :mod:`bench.visitor` ask nginx; return the seconds of each of its visits."""
    before = way.site.requests()
    with _watched(way) as watch:
        times = _visited(way, what, WEB, WEB_PORT, *arguments)
        watch.payload(down=len(times) * len(BODY))
    if (answered := way.site.requests() - before) < len(times):
        raise NotCarried(way.name, f"the client has {len(times)} answers, and nginx gave {answered}")
    return times


def lookups(way: Way, server: str, name: str, seconds: float) -> list[float]:
    """Look a name up, over and over; return the seconds of each lookup. Each has to have *WEB*'s address."""
    return _visited(way, "lookups", server, name, WEB, seconds)


def _visited(way: Way, *arguments: object) -> list[float]:
    try:
        times: list[float] = way.site.inside("bench.visitor", *arguments)
    except subprocess.CalledProcessError as error:
        raise NotCarried(way.name, "the client gave up; it says why above") from error
    if not times:
        raise NotCarried(way.name, "the client has no answer")
    return times


@contextmanager
def transfer(way: Way, *, down: bool = True) -> Iterator[None]:
    """Have a transfer at full speed under way; it has to be still going on at the end."""
    before = way.site.carried()
    command = ("iperf3", "--client", IPERF, "--port", str(IPERF_PORT), "--time", "600")
    process = way.site.box.laptop.start(
        *command, *(["--reverse"] if down else []), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
        if process.poll() is not None:
            raise NotCarried(way.name, "the transfer beside it has ended early")
        carried = way.site.carried().since(before)
        # Far less than any contender moves, and far more than there is without a transfer.
        way.check(carried, **{"down" if down else "up": 1_000_000})
    finally:
        process.kill()
        process.wait()
        way.site.quiet()


@contextmanager
def open_connections(way: Way, count: int) -> Iterator[None]:
    """Hold connections to nginx open, each of which has been used once."""
    before = way.site.requests()
    process = way.site.start_inside("bench.visitor", "hold", WEB, WEB_PORT, count)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if line != f"{count}\n" or way.site.requests() - before < count:
            raise NotCarried(way.name, f"of {count} connections that should be open, there are {line or 'none'}")
        yield
        process.stdin.close()
        if process.wait(PATIENCE) != 0:
            raise NotCarried(way.name, f"{count} open connections did not answer again; the client says so above")
    finally:
        process.kill()
        process.wait()


def _wrk(who: str, text: str) -> tuple[int, Pages]:
    """Read what wrk printed.

    :raises NotCarried: it met errors.
    """
    errors = re.search(r"^\s*(Socket errors:.*|Non-2xx.*)$", text, re.M)
    if errors is not None:
        raise NotCarried(who, f"wrk says: {errors[1].strip()}")
    completed = re.search(r"(\d+) requests in", text)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.M)
    latencies = dict(re.findall(r"^\s+(\d+)%\s+([\d.]+(?:us|ms|s|m))$", text, re.M))
    if not completed or not rate or not int(completed[1]):
        raise NotCarried(who, f"wrk says: {text}")
    return int(completed[1]), Pages(float(rate[1]), _seconds(latencies["50"]), _seconds(latencies["99"]), 0.0)


def _seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[unit]


class _Watch:
    """What a run has to show: its payload, which is compared with the counters, and the CPU time of its way."""

    def __init__(self, way: Way) -> None:
        self._payload: dict[str, int] = {}
        self._way = way
        self._before = way.site.carried()
        self._pids = way.processes()
        self._cpu = usage.cpu(self._pids)
        self.carried = self._before
        self.cpu = 0.0

    def payload(self, **payload: int) -> None:
        """Say what has to have arrived."""
        self._payload = payload

    def end(self) -> None:
        """Compare."""
        self.cpu = usage.cpu(self._pids) - self._cpu
        self.carried = self._way.site.carried().since(self._before)
        self._way.check(self.carried, **self._payload)


@contextmanager
def _watched(way: Way) -> Iterator[_Watch]:
    watch = _Watch(way)
    yield watch
    watch.end()
