"""The plots that the documentation shows are those of the results that are kept."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import results
from bench.ways import PEERS

pytestmark = pytest.mark.skipif(not (PEERS / "python").exists(), reason="scripts/bench installs what draws them")


def drawn(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(directory.glob("*.svg"))}


def test_the_plots_are_up_to_date_and_the_same_results_make_the_same_files(tmp_path: Path) -> None:
    results.draw(plots=tmp_path)
    assert drawn(tmp_path)
    assert drawn(tmp_path) == drawn(results.PLOTS), "run scripts/bench plots, and commit what it wrote"


def test_a_plot_is_a_picture_that_runs_nothing_and_fetches_nothing() -> None:
    for path in results.PLOTS.glob("*.svg"):
        svg = ET.fromstring(path.read_text())
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        assert "<script" not in path.read_text()
        assert "@import" not in path.read_text()
        assert "href" not in path.read_text()
