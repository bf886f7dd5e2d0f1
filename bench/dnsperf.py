"""dnsperf (DNS-OARC) as the client: it asks, and its words say how fast the answers came, and whether all of them did.

A run counts only if every query was answered, and with NOERROR: anything else raises, since a server that drops or
refuses is faster than one that answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tp2.errors import Tp2Error
from tp2.sandbox.namespaces import Host


class Run(NamedTuple):
    """What dnsperf said. Times are seconds; ``latencies`` is one a query, for runs that asked for them."""

    sent: int
    completed: int
    lost: int
    interrupted: int
    codes: dict[str, int]
    seconds: float
    rate: float
    mean_latency: float
    latencies: tuple[float, ...]


class Unanswered(Tp2Error):
    """A server did not answer all that it was asked."""

    def __init__(self, who: str, why: str) -> None:
        super().__init__(f"{who} did not answer", why, "there is no figure for this; see what the server says")


def ask(
    host: Host,
    port: int,
    questions: Path,
    *,
    clients: int = 8,
    seconds: float | None = None,
    outstanding: int = 100,
    rate: int | None = None,
    each: bool = False,
) -> Run:
    """Run dnsperf in *host* against 127.0.0.1:*port*.

    :param questions: a file that :func:`write_questions` wrote.
    :param seconds: how long to ask, over and over; once through the questions if None.
    :param outstanding: how many queries may be under way at a time.
    :param rate: queries a second to offer; as many as it can if None.
    :param each: whether to note the latency of each query, which costs dnsperf some of its speed.

    :raises Unanswered: a query was lost, or answered with an error.
    """
    options = ["-c", str(clients), "-q", str(outstanding)]
    options += ["-n", "1"] if seconds is None else ["-l", f"{seconds:g}"]
    options += ["-Q", str(rate)] if rate is not None else []
    options += ["-v"] if each else []
    command = ["dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", str(questions), *options]
    outcome = parse(host.run(*command, timeout=60 + (seconds or 0)))
    check(f"the server on port {port}", outcome)
    return outcome


def write_questions(path: Path, names: Sequence[str]) -> Path:
    """Write a file that asks for the addresses of *names*; return its path."""
    path.write_text("".join(f"{name} A\n" for name in names), encoding="ascii")
    return path


def parse(text: str) -> Run:
    """Read what dnsperf printed, with or without ``-v``.

    :raises ValueError: it is not the statistics of dnsperf.
    """
    codes = {
        word: int(count) for word, count in re.findall(r"([A-Z]+[A-Z0-9]*) (\d+) \(", _field(text, "Response codes"))
    }
    return Run(
        sent=_count(text, "Queries sent"),
        completed=_count(text, "Queries completed"),
        lost=_count(text, "Queries lost"),
        interrupted=_count(text, "Queries interrupted") if "Queries interrupted:" in text else 0,
        codes=codes,
        seconds=float(_field(text, "Run time (s)")),
        rate=float(_field(text, "Queries per second")),
        mean_latency=float(_field(text, "Average Latency (s)").split()[0]),
        latencies=tuple(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("> NOERROR ")),
    )


def check(who: str, run: Run) -> None:
    """Accept a run in which everything was answered.

    :raises Unanswered: it is another one.
    """
    if not run.completed:
        raise Unanswered(who, "no query was answered")
    if run.lost:
        raise Unanswered(who, f"{run.lost} of {run.sent} queries were lost")
    if run.codes != {"NOERROR": run.completed}:
        words = ", ".join(f"{count} {code}" for code, count in run.codes.items())
        raise Unanswered(who, f"of {run.completed} answers there were {words}, where all should be NOERROR")


def _count(text: str, key: str) -> int:
    return int(_field(text, key).split()[0])


def _field(text: str, key: str) -> str:
    match = re.search(rf"^\s*{re.escape(key)}:[ \t]*(.*)$", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"dnsperf did not print {key!r}")
    return match[1]
