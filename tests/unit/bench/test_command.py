"""The command line of ``scripts/bench``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import __main__ as command
from bench.report import Figure


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Two benches that take no time; the list says how often one ran, and whether quickly."""
    runs: list[bool] = []

    def measured(quick: bool, say: Callable[[str], None]) -> list[Figure]:
        runs.append(quick)
        say("as good as done")
        return [Figure("speed", "m/s", {"tp2": [3.0, 1.0], "other": [1.0]}, ("other",))]

    monkeypatch.setattr(command, "BENCHES", {"dns": measured, "later": measured})
    return runs


def test_an_unknown_bench_is_an_error_that_names_the_known_ones() -> None:
    done = CliRunner().invoke(command.bench, ["swim"])
    assert done.exit_code == 2
    assert "'dns'" in done.output
    assert "'all'" in done.output


def test_a_bench_prints_a_table_and_writes_its_figures(benches: list[bool], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = CliRunner().invoke(command.bench, ["dns", "--json", str(file)])
    assert done.exit_code == 0
    assert "2.00 of other" in done.stdout
    assert "as good as done" in done.stderr
    assert [(row["bench"], row["contender"], row["median"]) for row in json.loads(file.read_text())] == [
        ("dns", "tp2", 2.0),
        ("dns", "other", 1.0),
    ]
    assert benches == [False]


def test_all_runs_every_bench_into_one_file(benches: list[bool], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = CliRunner().invoke(command.bench, ["all", "--quick", "--json", str(file)])
    assert done.exit_code == 0
    assert [row["bench"] for row in json.loads(file.read_text())] == ["dns", "dns", "later", "later"]
    assert benches == [True, True]


def test_a_file_that_cannot_be_written_is_an_error_before_anything_is_measured(
    benches: list[bool], tmp_path: Path
) -> None:
    done = CliRunner().invoke(command.bench, ["dns", "--json", str(tmp_path / "missing" / "figures.json")])
    assert done.exit_code == 2
    assert "there is no directory" in done.output
    assert benches == []
