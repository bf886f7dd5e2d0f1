"""What is kept of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import __main__ as command
from bench import results
from bench.report import Figure
from docgen import benchmarks

FIGURE = Figure("bulk up", "Gbit/s", {"tp2": [3.0, 1.0, 2.0], "sshuttle": [0.1, 0.1, 0.1]}, ("sshuttle",))


def test_every_run_is_kept_in_its_order_with_when_and_on_what(tmp_path: Path) -> None:
    file = results.keep("path", results.note("path", [FIGURE], time.monotonic() - 90), tmp_path / "results")
    kept = json.loads(file.read_text())
    assert [(row["contender"], row["median"], row["values"]) for row in kept["rows"]] == [
        ("tp2", 2.0, [3.0, 1.0, 2.0]),
        ("sshuttle", 0.1, [0.1, 0.1, 0.1]),
    ]
    assert kept["minutes"] == 1.5
    assert {"date", "processor", "cores", "kernel", "python", "load before", "load after"} <= kept.keys()


def test_what_is_kept_becomes_a_page(tmp_path: Path) -> None:
    results.keep("path", results.note("path", [FIGURE], time.monotonic()), tmp_path)
    (tmp_path / "path.md").write_text("In *my* words.\n")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "path-bulk.svg").write_text("<svg/>")
    page = benchmarks.page(benchmarks.read(tmp_path))
    assert "\nIn *my* words.\n" in page
    assert "(plots/path-bulk.svg)" in page
    assert "| bulk up, Gbit/s | 2.00<br>(1.00 to 3.00) | 0.100 |\n" in page
    assert "load before: " in page


def test_a_later_run_takes_the_place_of_the_former_one_whatever_it_says(tmp_path: Path) -> None:
    slower = Figure("bulk up", "Gbit/s", {"tp2": [0.5]}, ())
    for figure in (FIGURE, slower):
        results.keep("path", results.note("path", [figure], time.monotonic()), tmp_path)
    (kept,) = benchmarks.read(tmp_path)
    assert [row["median"] for row in kept.rows] == [0.5]


def test_a_quick_run_is_not_kept() -> None:
    done = CliRunner().invoke(command.bench, ["path", "--quick", "--keep"])
    assert done.exit_code == 2
    assert "nothing to --keep" in done.output


def test_a_run_is_kept_and_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(command, "BENCHES", {"path": lambda _quick, _say: [FIGURE], "later": lambda _quick, _say: []})
    monkeypatch.setattr(results, "keep", lambda bench, _noted: done.append(bench))
    monkeypatch.setattr(results, "draw", lambda: done.append("drawn"))
    assert CliRunner().invoke(command.bench, ["all", "--keep"]).exit_code == 0
    assert done == ["path", "later", "drawn"]
    assert CliRunner().invoke(command.bench, ["path"]).exit_code == 0
    assert CliRunner().invoke(command.bench, ["plots"]).exit_code == 0
    assert done == ["path", "later", "drawn", "drawn"]
