"""The recorded session is drawn as it was: what was said, and when."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docgen.session import PAUSE, draw, play

ROOT = Path(__file__).parents[3]


def recorded(*events: tuple[float, str]) -> str:
    lines = [
        {"version": 2, "width": 40, "height": 10, "title": "a <session>"},
        *([at, "o", data] for at, data in events),
    ]
    return "\n".join(map(json.dumps, lines))


def test_a_row_appears_when_it_says_what_it_says_in_the_end() -> None:
    rows = play(recorded((0.0, "$ go\r\n"), (0.5, "waiting"), (1.0, "\r\x1b[2Kready\r\n"), (1.5, "$ ")))
    assert [(row.text, row.at) for row in rows] == [("$ go", 0.0), ("ready", 1.0), ("$", 1.5)]


def test_long_pauses_are_cut_short() -> None:
    (first, second) = play(recorded((0.0, "a\r\n"), (100.0, "b")))
    assert (first.at, second.at) == (0.0, PAUSE)


def test_what_was_said_can_be_read_by_those_who_do_not_see_it_and_nothing_in_it_is_markup() -> None:
    root = ElementTree.fromstring(draw(recorded((0.0, "$ echo '<b>&'\r\n"), (0.1, "\x1b[1;31m<b>&\x1b[0m"))))
    texts = {element.tag.rpartition("}")[2]: element.text for element in root}
    assert texts["title"] == "a <session>"
    assert texts["desc"] == "$ echo '<b>&'\n<b>&"
    drawn = [(text.text, text.get("class")) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert ("<b>&", "red bold") in drawn


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"width": 10}\n[1]', '{"width": 10}\n["x", "o", "y"]'])
def test_what_is_no_recording_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="asciicast"):
        play(text)


def test_the_session_of_the_documentation_shows_what_the_first_steps_show() -> None:
    said = [row.text for row in play((ROOT / "docs" / "session.cast").read_text("utf-8"))]
    typed = [line for line in said if line.startswith("$ ")]
    page = (ROOT / "docs" / "first-steps.md").read_text("utf-8").partition("<!-- newcomer: look -->")[2]
    assert typed == [line for line in page.partition("\n```\n")[0].splitlines() if line.startswith("$ ")]
    assert "this is web.shop, port 80" in said
