"""What a bench found: figures, their statistics, and the two forms in which they are shown. Pure but for the printing.

One :class:`Figure` is one question put to several contenders ("queries/s": tp2, dnsmasq). The form for programs is a
list of one object per figure and contender, with a fixed set of keys::

    {"bench", "figure", "contender", "median", "min", "max", "unit", "ratio_to": {CONTENDER: RATIO}}

A ratio is this contender's median divided by the other's, whatever is better for the unit.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

T = TypeVar("T")

# What others were doing on the machine when the bench began: it tells how far the figures can be trusted.
_LOAD_BEFORE = os.getloadavg()[0]


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured.

    :param name: what, with the conditions that it depends on.
    :param unit: of the values; a plain word such as ``ms`` or ``queries/s``.
    :param values: by contender, one value a round; never empty.
    :param beside: the contenders that the table compares the others with.
    """

    name: str
    unit: str
    values: Mapping[str, Sequence[float]]
    beside: tuple[str, ...]

    def median(self, contender: str) -> float:
        """The median of the rounds."""
        return median(self.values[contender])

    def ratio(self, contender: str, other: str) -> float | None:
        """The median of *contender* divided by that of *other*; None where there is none, or where it is zero."""
        return self.median(contender) / self.median(other) if other in self.values and self.median(other) else None


def alternate(rounds: int, contenders: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Let each contender run once a round, and each begin a round in its turn; return the outcomes by contender."""
    names = list(contenders)
    outcomes: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            outcomes[name].append(contenders[name]())
    return outcomes


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of *values* (not empty) that is no less than *share* of them (0 < share <= 1)."""
    # Rounded, since 0.99 * 100 is a little more than 99.
    return sorted(values)[math.ceil(round(share * len(values), 9)) - 1]


def rows(bench: str, figures: Iterable[Figure]) -> list[dict[str, Any]]:
    """Return the form for programs."""
    return [
        {
            "bench": bench,
            "figure": figure.name,
            "contender": contender,
            "median": _rounded(figure.median(contender)),
            "min": _rounded(min(values)),
            "max": _rounded(max(values)),
            "unit": figure.unit,
            "ratio_to": {
                other: _rounded(ratio)
                for other in figure.values
                if other != contender and (ratio := figure.ratio(contender, other)) is not None
            },
        }
        for figure in figures
        for contender, values in figure.values.items()
    ]


def show(bench: str, figures: Iterable[Figure]) -> None:
    """Print the table."""
    table = Table(box=box.SIMPLE_HEAD, title=f"bench {bench}", caption=_caption(), pad_edge=False)
    table.add_column("figure")
    table.add_column("contender")
    for heading in ("median", "min", "max"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("ratio", no_wrap=True)
    for figure in figures:
        for number, (contender, values) in enumerate(figure.values.items()):
            ratios = (
                f"{ratio:.2f} of {other}"
                for other in figure.beside
                if other != contender and (ratio := figure.ratio(contender, other)) is not None
            )
            numbers = (readable(value) for value in (figure.median(contender), min(values), max(values)))
            table.add_row("" if number else figure.name, contender, *numbers, figure.unit, "\n".join(ratios))
        table.add_section()
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def readable(value: float) -> str:
    """Return *value* with three digits that say something: 123,456; 12.3; 0.123."""
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:,.0f}"
    digits = 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3
    return f"{value:.{digits}f}"


def _rounded(value: float) -> float:
    # Six significant digits: more would pretend to be exact.
    return float(f"{value:.6g}")


def circumstances() -> dict[str, Any]:
    """Return when and on what this is: the date, the processor, its cores, the kernel, Python, and the load before."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": model,
        "cores": os.cpu_count(),
        "kernel": f"Linux {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "load before": round(_LOAD_BEFORE, 1),
    }


def _caption() -> str:
    now = circumstances()
    machine = f"{now['cores']} x {now['processor']}, {now['kernel']}, Python {now['python']}"
    return f"{now['date']}, {machine}, load before: {now['load before']}"
