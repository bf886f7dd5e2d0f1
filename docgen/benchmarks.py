"""The measurements that bench/results holds, as a page: docs/benchmarks.md.

A result file is what ``scripts/bench NAME --json FILE`` writes: a list of rows (:mod:`bench.report`), or an object with
them under ``rows`` beside what was noted of the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.report import readable

_HEAD: Final = """\
# Benchmarks

<!-- Written by scripts/docs from bench/results. -->

`scripts/bench` measures tp2 beside what people would use instead: all in one run, on one machine, in turns. It sets
itself up on Debian:

```sh
scripts/bench dns --json bench/results/dns.json
scripts/docs
```

The first line measures, in some minutes, and `scripts/bench all` runs every bench there is; the second puts the result
on this page. The ratios say more than the figures: those are of the machine that it ran on.
"""

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


def read(directory: Path) -> list[Result]:
    """Read every result below *directory*, which need not exist.

    :raises ValueError: a file is no result.
    """
    return [_read(path) for path in sorted(directory.glob("*.json"))]


def _read(path: Path) -> Result:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    rows, noted = (content.get("rows"), content) if isinstance(content, dict) else (content, {})
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= set(_KEYS) for row in rows):
        raise ValueError(f"{path} is not what scripts/bench --json writes: a list of rows with {', '.join(_KEYS)}")
    words = [f"{key}: {value}" for key, value in noted.items() if isinstance(value, str | int | float)]
    return Result(path.stem, "; ".join(words), tuple(rows))


def page(results: list[Result]) -> str:
    """Return the page, in Markdown."""
    return "".join([_HEAD, *(_section(result) for result in results)] if results else [_HEAD, _NONE])


def _section(result: Result) -> str:
    return "".join(_lines(result))


def _lines(result: Result) -> Iterator[str]:
    yield f"\n## {result.name}\n"
    if result.circumstances:
        yield f"\n{_cell(result.circumstances)}\n"
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
