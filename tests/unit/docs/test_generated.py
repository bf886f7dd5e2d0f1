"""What of docs/ follows from the code, follows from the code as it is."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import click
import pytest

from docgen import benchmarks, diagrams, hooks, manpage
from docgen.__main__ import ROOT, stale
from tp2.cli import cli

DOCS = ROOT / "docs"


def test_everything_generated_is_up_to_date() -> None:
    assert [str(path.relative_to(ROOT)) for path in stale()] == [], "run scripts/docs, and commit what it wrote"


def commands(group: click.Group, *names: str) -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        inside = isinstance(command, click.Group)
        found += commands(command, *names, name) if inside else [(" ".join((*names, name)), command)]  # type: ignore[arg-type]
    return found


def test_the_manual_page_has_every_command_and_every_option_with_its_words() -> None:
    page = manpage.page().replace("\\-", "-").replace("\\(aq", "'").replace("\\(ti", "~").replace("\\e", "\\")
    for name, command in commands(cli):
        section = page.partition(f".SS tp2 {name}\n")[2].partition(".SS ")[0]
        up = cli.commands["up"]
        assert section, name
        for param in command.params:
            if isinstance(param, click.Option) and (command is up or param not in up.params):
                assert max(param.opts, key=len) in section
                assert " ".join((param.help or "").split()) in section


@pytest.mark.skipif(shutil.which("man") is None, reason="there is no man")
def test_man_has_nothing_to_complain_of() -> None:
    done = subprocess.run(["man", "--warnings", "-l", str(DOCS / "man" / "tp2.1")], capture_output=True, check=True)
    assert done.stderr == b""
    text = re.sub(".\b", "", done.stdout.decode())
    assert "tp2 service install [OPTIONS]" in text


def test_nothing_in_a_text_is_a_request_to_the_formatter() -> None:
    assert manpage._escaped("'kubectl apply -f'") == "\\(aqkubectl apply \\-f\\(aq"
    assert manpage._escaped(".hidden") == "\\&.hidden"
    assert manpage._escaped("C:\\path ~/x") == "C:\\epath \\(ti/x"


@pytest.mark.parametrize("source", sorted((DOCS / "diagrams").glob("*.toml")), ids=lambda path: path.stem)
def test_a_diagram_is_whole(source: Path) -> None:
    svg = ET.fromstring(diagrams.draw(source.read_text()))
    space = "{http://www.w3.org/2000/svg}"
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for rect in svg.iter(f"{space}rect"):
        x, y = float(rect.get("x", 0)), float(rect.get("y", 0))
        assert x >= 0
        assert y >= 0
        assert x + float(rect.attrib["width"]) <= width
        assert y + float(rect.attrib["height"]) <= height
    # Each number stands at its arrow and in the legend.
    numbers = [text.text for text in svg.iter(f"{space}text") if text.get("class") == "number"]
    assert numbers
    assert sorted(numbers, key=str) == sorted(2 * [str(n) for n in range(1, len(numbers) // 2 + 1)])
    assert svg.findtext(f"{space}title")
    assert svg.findtext(f"{space}desc")


@pytest.mark.parametrize(
    "broken", ["", "x =", "title = 'x'", "title='t'\ndescription='d'\ncolumns=1\nrows=1\narrow=[{}]"]
)
def test_a_diagram_that_is_none_is_refused(broken: str) -> None:
    with pytest.raises(ValueError, match="cannot be drawn"):
        diagrams.draw(broken)


ROWS = """[
 {"bench": "dns", "figure": "warm | hot", "contender": "tp2", "median": 87000, "min": 80000, "max": 90000,
  "unit": "queries/s", "ratio_to": {"dnsmasq": 1.34}},
 {"bench": "dns", "figure": "warm | hot", "contender": "dnsmasq", "median": 65100, "min": 65000, "max": 66000,
  "unit": "queries/s", "ratio_to": {"tp2": 0.746}}
]"""


def test_results_become_tables(tmp_path: Path) -> None:
    (tmp_path / "dns.json").write_text(ROWS)
    page = benchmarks.page(benchmarks.read(tmp_path))
    assert "## dns" in page
    assert "### warm \\| hot\n\n| | queries/s | spread | of dnsmasq | of tp2 |\n|---|--:|--:|--:|--:|\n" in page
    assert "| tp2 | 87,000 | 80,000 to 90,000 | 1.34 |  |\n" in page
    assert "| dnsmasq | 65,100 | 65,000 to 66,000 |  | 0.75 |\n" in page
    assert "no results" not in page


def test_what_was_noted_of_the_machine_is_told(tmp_path: Path) -> None:
    (tmp_path / "dns.json").write_text(f'{{"date": "2026-11-25", "cores": 2, "rows": {ROWS}}}')
    assert "date: 2026-11-25; cores: 2\n" in benchmarks.page(benchmarks.read(tmp_path))


def test_without_results_it_says_how_to_get_them(tmp_path: Path) -> None:
    page = benchmarks.page(benchmarks.read(tmp_path / "nowhere"))
    assert "There are no results in the repository yet." in page
    assert "scripts/bench" in page


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"bench": "dns"}]', '{"rows": 7}'])
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(ValueError, match=r"odd\.json"):
        benchmarks.read(tmp_path)


def test_the_api_reference_has_every_room_and_module() -> None:
    pages = hooks.pages(ROOT / "tp2")
    assert {"", "cluster", "dns", "forward", "portmap", "socks"} <= pages.keys()
    listed = {
        line.removeprefix("::: ") for page in pages.values() for line in page.splitlines() if line.startswith(":::")
    }
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "tp2").rglob("*.py")
        if path.name != "__main__.py" and "sandbox" not in path.parts
    }
    assert listed == modules
