"""Whether an aim is met is decided by the results, and by nobody."""

from __future__ import annotations

from typing import Any

import pytest

from docgen import aims
from docgen.aims import AIMS, OURS, REDSOCKS, SSHUTTLE, Aim


def row(figure: str, contender: str, **ratios: float) -> dict[str, Any]:
    beside = {{"redsocks": REDSOCKS, "sshuttle": SSHUTTLE}[who]: ratio for who, ratio in ratios.items()}
    return {"bench": "path", "figure": figure, "contender": contender, "ratio_to": beside}


@pytest.mark.parametrize(
    ("least", "ratio", "met"),
    [(True, 1.0, True), (True, 0.996, True), (True, 0.99, False), (False, 1.004, True), (False, 1.01, False)],
)
def test_a_ratio_is_compared_as_it_is_shown(least: bool, ratio: float, met: bool) -> None:
    assert Aim("path", "bulk up", "bulk up", REDSOCKS, 1.0, least).met(ratio) is met


def test_what_is_missed_is_said_and_what_was_not_measured_is_left_empty() -> None:
    rows = [row("bulk up", OURS[0], redsocks=1.2, sshuttle=12.0), row("bulk up", OURS[1], redsocks=0.91, sshuttle=9.0)]
    lines = "".join(aims.table(rows)).splitlines()
    assert "| bulk up | redsocks + ssh -D | 1 or more | 1.20 | **0.91, missed** |  |" in lines
    assert "| bulk up | sshuttle | 10 or more | 12.00 | **9.00, missed** |  |" in lines
    assert len(lines) == 5


def test_without_figures_there_is_no_table() -> None:
    assert list(aims.table([])) == []


def test_every_aim_is_about_a_figure_that_was_measured() -> None:
    from docgen import benchmarks
    from docgen.__main__ import ROOT

    rows = [row for result in benchmarks.read(ROOT / "bench" / "results") for row in result.rows]
    measured = {(row["bench"], row["figure"]) for row in rows}
    for aim in AIMS:
        assert (aim.bench, aim.figure) in measured
