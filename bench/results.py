"""``bench/results``: the last full run of each bench, as it was, with when and on what.

A file is an object. ``rows`` are those of ``--json`` (:mod:`bench.report`), each with ``values``, its runs in their
order; the other keys say when it was, on what machine, and what else that was doing.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench import report
from bench.report import Figure
from bench.ways import PEERS
from tp2.errors import Tp2Error

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "bench" / "results"
PLOTS: Final = ROOT / "docs" / "plots"


def note(bench: str, figures: Sequence[Figure], began: float) -> dict[str, Any]:
    """Return what is kept of a run that *began* then, on the monotonic clock, and has just ended."""
    values = [[float(f"{value:.6g}") for value in runs] for figure in figures for runs in figure.values.values()]
    return {
        **report.circumstances(),
        "load after": round(os.getloadavg()[0], 1),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "rows": [{**row, "values": runs} for row, runs in zip(report.rows(bench, figures), values, strict=True)],
    }


def keep(bench: str, noted: dict[str, Any], directory: Path = RESULTS) -> Path:
    """Write it in the place of what is there of this bench; return the file."""
    directory.mkdir(exist_ok=True)
    file = directory / f"{bench}.json"
    file.write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
    return file


def draw(results: Path = RESULTS, plots: Path = PLOTS) -> None:
    """Draw the plots of all results again, with the library that scripts/bench has installed beside sshuttle.

    :raises Tp2Error: it is not there.
    """
    python = PEERS / "python"
    if not python.exists():
        raise Tp2Error("the plots cannot be drawn", f"there is no {python}", "run scripts/bench, which installs it")
    subprocess.run([python, "-m", "bench.plots", results, plots], cwd=ROOT, check=True)
