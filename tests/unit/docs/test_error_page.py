"""No error message is missing from the page of all error messages, and none stands there that the code cannot make."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from docgen import errors
from docgen.__main__ import ROOT
from docgen.errors import Message, Place, matches
from docgen.texts import Module, Walk
from tp2 import settings
from tp2.cluster import kubefile
from tp2.control import client
from tp2.errors import ExitCode, Tp2Error
from tp2.runtime import RuntimeDirectory

PACKAGE = ROOT / "tp2"


@pytest.fixture(scope="module")
def found() -> dict[Place, set[Message]]:
    return errors.scan(PACKAGE)


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")


def error_classes() -> set[str]:
    """The names of all classes of errors: those whose bases, by name, lead to Tp2Error."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    names = {"Tp2Error"}
    while more := {name for name, of in bases.items() if of & names} - names:
        names |= more
    return names


def test_every_place_that_makes_an_error_is_on_the_page(found: dict[Place, set[Message]], page: str) -> None:
    """Found anew here, in the simplest way, so that the scan is not its own judge."""
    names = error_classes()
    places = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                places[Place(module, node.lineno, node.col_offset)] = ast.unparse(node)
    assert len(places) > 100
    for place, source in places.items():
        assert found.get(place), f"{place}: {source}"
        for message in found[place]:
            if message.says_something:
                assert f"| {message.why} | {message.remedy} |".replace("\n", " ") in page, f"{place}: {message}"


def test_each_stands_under_its_exit_code(found: dict[Place, set[Message]], page: str) -> None:
    for message in {one for messages in found.values() for one in messages}:
        if message.exit_code > 0 and any(character.isalpha() for character in message.what.partition("‹")[0]):
            section = page.partition(f"\n## Exit code {message.exit_code}\n")[2].partition("\n## ")[0]
            assert f"\n### {message.what}\n" in section


def test_no_text_was_given_up(found: dict[Place, set[Message]]) -> None:
    """Whatever the page leaves open was open in the code: nobody writes an error without a word of their own."""
    silent = {
        place
        for place, messages in found.items()
        if not any(message.says_something or message.exit_code < 0 for message in messages)
    }
    # An error of the helper's or the daemon's, handed on in the other process.
    assert {place.file for place in silent} <= {"tp2.control.client", "tp2.forward.protocol"}


def test_what_doctor_finds_is_there_too(page: str) -> None:
    section = page.partition("\n## What doctor and explain find\n")[2]
    assert "timedatectl" in section


def raised_by(run: Callable[[], object]) -> Tp2Error:
    with pytest.raises(Tp2Error) as failure:
        run()
    return failure.value


def test_errors_as_they_are_raised_are_on_the_page(found: dict[Place, set[Message]], tmp_path: Path) -> None:
    broken, empty, lacking = (tmp_path / name for name in ("broken", "empty", "lacking"))
    broken.write_text("{")
    empty.write_text("")
    lacking.write_text("current-context: a\ncontexts: [{name: a, context: {cluster: c}}]")
    nobody = RuntimeDirectory(tmp_path / "nowhere")
    known = {message for messages in found.values() for message in messages}
    for error in (
        raised_by(lambda: settings.parse_address("x")),
        raised_by(lambda: settings.parse_ports("80-90")),
        raised_by(lambda: settings.parse_duration("soon")),
        raised_by(lambda: settings.parse_socket_address("127.0.0.1")),
        raised_by(lambda: settings.parse_remote("a b")),
        raised_by(lambda: settings.read_host_key(str(tmp_path))),
        raised_by(lambda: settings.read_host_key(str(empty))),
        raised_by(lambda: kubefile.select([tmp_path / "missing"], None, all_must_exist=True)),
        raised_by(lambda: kubefile.select([broken], None, all_must_exist=True)),
        raised_by(lambda: kubefile.select([empty], None, all_must_exist=True)),
        raised_by(lambda: kubefile.select([lacking], "b", all_must_exist=True)),
        raised_by(lambda: kubefile.select([lacking], None, all_must_exist=True)),
        raised_by(lambda: client.ask(nobody, "status")),
    ):
        assert any(
            message.exit_code == error.exit_code
            and matches(message.what, error.what)
            and matches(message.why, error.why)
            and matches(message.remedy, error.remedy)
            for message in known
        ), (error.what, error.why, error.remedy)


def test_every_exit_code_of_an_error_has_a_meaning(page: str) -> None:
    for code in ExitCode:
        if code not in (ExitCode.OK, ExitCode.INTERRUPTED):
            assert f"| [{int(code)}](#exit-code-{int(code)}) | " in page


def texts(source: str) -> set[tuple[str, ...]]:
    """What the arguments of ``tell`` can be, path by path."""
    told: set[tuple[str, ...]] = set()

    def visit(call: ast.Call, of: Callable[[ast.expr], list[str]], by_caller: bool) -> None:
        if isinstance(call.func, ast.Name) and call.func.id == "tell":
            alternatives = [of(argument) for argument in call.args]
            assert all(alternatives)
            told.update(zip(*alternatives, strict=True) if len({len(a) for a in alternatives}) == 1 else [])

    Walk(Module.read(source), {}, visit).run()
    return told


def test_the_words_of_one_path_are_not_mixed_with_those_of_another() -> None:
    source = """
def f(x):
    what, why = "it failed", "nobody knows"
    if x:
        why = f"of {x.reason!r}"
        what += " at once"
    elif x is None:
        return tell("gone", "early")
    tell(what, why)
"""
    assert texts(source) == {
        ("it failed at once", "of '‹reason›'"),
        ("gone", "early"),
        ("it failed", "nobody knows"),
    }


def test_every_branch_is_followed() -> None:
    source = """
A = "constant"
def words(x) -> str:
    return "short" if x else f"{A} words"
def f(x):
    try:
        y = "tried"
    except OSError:
        y = "caught"
    match x:
        case 1: z = "one"
        case _: z = words(x)
    tell(y, z)
    for each in x:
        tell("in a loop", A.lower())
        return
    with x as y:
        tell(f"{y} " + A, "{} it {no}".format(z, no="now"))
"""
    told = texts(source)
    assert {("tried", "one"), ("caught", "short"), ("tried", "constant words")} <= told
    assert ("in a loop", "constant") in told
    assert any(words.endswith(" it now") for _, words in told)
