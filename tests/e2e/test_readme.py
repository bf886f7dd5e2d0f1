"""What the README says first is what happens. (From a bare Debian machine on: scripts/newcomer.)"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Laptop
from tests.e2e.readme import Newcomer, Step, differences, look, newcomer, prepare, steps, use

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("sudo") is None, reason="needs root, and sudo")


@pytest.fixture(scope="module")
def someone(laptop: Laptop) -> Iterator[Newcomer]:
    with newcomer(laptop, *prepare(laptop)) as one:
        yield one


def test_using_it_is_as_the_readme_says(someone: Newcomer) -> None:
    use(someone, install=False)


def test_the_first_steps_show_what_happens(someone: Newcomer) -> None:
    someone.type("tp2 uninstall")
    look(someone)


def test_nothing_is_left_of_it(someone: Newcomer) -> None:
    assert someone.laptop.ruleset() == ""


def test_the_blocks_are_found_by_their_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(
        "<!-- newcomer: a -->\n```sh\none\ntwo\n```\n\n<!-- newcomer: b -->\n```console\n$ x\nout\n$ y\n```\n"
    )
    assert steps("a", readme) == [Step("one"), Step("two")]
    assert steps("b", readme) == [Step("x", ("out",)), Step("y", ())]
    with pytest.raises(LookupError):
        steps("c", readme)


def test_what_is_printed_is_compared_with_what_is_shown() -> None:
    assert differences(["tunnel   me@bastion:22"], ["tunnel   other, through the API"]) == []
    assert differences([" web   10.96.1.1:80   idle"], [" web 10.96.7.7:8080 idle"]) == []
    assert differences(["..."], ["a", "b"]) == []
    assert differences([], []) == []
    assert differences(["this is web.shop"], ["this is web.blog"])
    assert differences(["tunnel   x"], ["dns      x"])
    assert differences(["a"], ["a", "b"])
