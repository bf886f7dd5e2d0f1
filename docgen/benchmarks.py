"""The measurements that bench/results holds, as a page: docs/benchmarks.md.

A result file is what ``scripts/bench NAME --keep`` writes (:mod:`bench.results`), an object with the rows beside what
was noted of the machine; or what ``--json FILE`` writes, the rows alone (:mod:`bench.report`). Beside ``NAME.json`` may
stand ``NAME.md``, a person's words about it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.report import readable
from docgen import aims

_HEAD: Final = """\
# Benchmarks

<!-- Written by scripts/docs from bench/results. -->

`scripts/bench` measures tp2 beside what people would use instead: all in one run, on one machine, in turns. It sets
itself up on Debian:

```sh
scripts/bench path --keep
scripts/docs
```

The first line measures, in some minutes, and keeps the result in `bench/results`; `scripts/bench all` runs every bench
there is, in about half an hour. The second puts it on this page. Everybody's runs take turns, in an order that changes
from round to round; a figure is the median of all runs, and the spread is the least and the most of them. A run whose
bytes the far side did not count, by the way that the contender claims, ends the bench with an error, and none is tried
again. The ratios say more than the figures: those are of the machine that it ran on.
"""

#: Benches in which many contenders have the same figures: one table for all of them.
_MATRIX: Final = ("path", "start", "soak", "recovery")

_NONE: Final = """
There are no results in the repository yet.
"""

_KEYS: Final = ("bench", "figure", "contender", "median", "min", "max", "unit", "ratio_to")


@dataclass(frozen=True, slots=True)
class Result:
    """What one file holds. ``circumstances`` says when and on what it was measured, if that was written down."""

    name: str
    circumstances: str
    rows: tuple[dict[str, Any], ...]
    words: str = ""
    plots: tuple[str, ...] = ()


def read(directory: Path, plots: Path | None = None) -> list[Result]:
    """Read every result below *directory*, which need not exist.

    :param plots: where the plots of the results are.
    :raises ValueError: a file is no result.
    """
    return [_read(path, plots or directory / "plots") for path in sorted(directory.glob("*.json"))]


def _read(path: Path, plots: Path) -> Result:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    rows, noted = (content.get("rows"), content) if isinstance(content, dict) else (content, {})
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= set(_KEYS) for row in rows):
        raise ValueError(f"{path} is not what scripts/bench --json writes: a list of rows with {', '.join(_KEYS)}")
    words = [f"{key}: {value}" for key, value in noted.items() if isinstance(value, str | int | float)]
    about = path.with_suffix(".md")
    return Result(
        path.stem,
        "; ".join(words),
        tuple(rows),
        about.read_text(encoding="utf-8") if about.exists() else "",
        tuple(plot.name for plot in sorted(plots.glob(f"{path.stem}*.svg"))),
    )


def page(results: list[Result]) -> str:
    """Return the page, in Markdown."""
    if not results:
        return _HEAD + _NONE
    aimed = "".join(aims.table([row for result in results for row in result.rows]))
    return "".join(
        [_HEAD, f"\n## What was aimed at\n{aimed}" if aimed else "", *(_section(result) for result in results)]
    )


def _section(result: Result) -> str:
    return "".join(_lines(result))


def _lines(result: Result) -> Iterator[str]:
    yield f"\n## {result.name}\n"
    if result.circumstances:
        yield f"\n{_cell(result.circumstances)}\n"
    if result.words:
        yield f"\n{result.words.strip()}\n"
    for plot in result.plots:
        yield f"\n![{result.name}: a plot of the figures below](plots/{plot})\n"
    yield from _matrix(result) if result.name in _MATRIX else _tables(result)


def _matrix(result: Result) -> Iterator[str]:
    """One table: a line for each figure, a column for each contender."""
    contenders = list(dict.fromkeys(row["contender"] for row in result.rows))
    yield f"\n| |{''.join(f' {_cell(who)} |' for who in contenders)}\n|---|{'--:|' * len(contenders)}\n"
    for figure, unit in dict.fromkeys((row["figure"], row["unit"]) for row in result.rows):
        cells = {row["contender"]: row for row in result.rows if (row["figure"], row["unit"]) == (figure, unit)}
        yield f"| {_cell(figure)}, {_cell(unit)} |"
        yield "".join(f" {_spread(cells[who]) if who in cells else ''} |" for who in contenders)
        yield "\n"


def _spread(row: dict[str, Any]) -> str:
    least, most = readable(row["min"]), readable(row["max"])
    return readable(row["median"]) + (f"<br>({least} to {most})" if least != most else "")


def _tables(result: Result) -> Iterator[str]:
    """A table for each figure, with ratios."""
    figures = list(dict.fromkeys((row["bench"], row["figure"], row["unit"]) for row in result.rows))
    for bench, figure, unit in figures:
        rows = [row for row in result.rows if (row["bench"], row["figure"], row["unit"]) == (bench, figure, unit)]
        others = list(dict.fromkeys(name for row in rows for name in row["ratio_to"]))
        yield f"\n### {_cell(figure)}\n\n| | {_cell(unit)} | spread |"
        yield "".join(f" of {_cell(other)} |" for other in others)
        yield f"\n|---|--:|--:|{'--:|' * len(others)}\n"
        for row in rows:
            ratios = (row["ratio_to"].get(other) for other in others)
            yield f"| {_cell(row['contender'])} | {readable(row['median'])} | "
            yield f"{readable(row['min'])} to {readable(row['max'])} |"
            yield "".join(f" {'' if ratio is None else f'{ratio:.2f}'} |" for ratio in ratios)
            yield "\n"


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
