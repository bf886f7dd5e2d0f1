"""Findings in order, what is to be mended first, and checks that build on each other."""

from __future__ import annotations

import asyncio
import io
import time

import pytest
from rich.console import Console

from tp2.diagnosis import show
from tp2.diagnosis.model import Finding, Place, Report, State, failed, not_applicable, ok, placed, warning
from tp2.diagnosis.running import Check, in_thread, run
from tp2.errors import Tp2Error

HERE = Place.MACHINE


def check(name: str, found: Finding | Exception, *needs: str) -> Check:
    async def look() -> Finding:
        if isinstance(found, Exception):
            raise found
        return found

    return Check(name, HERE, look, needs)


def states(report: Report) -> dict[str, State]:
    return {finding.check: finding.state for finding in report.findings}


def test_the_first_that_failed_is_mended_first_and_before_any_warning() -> None:
    report = Report((ok("a"), warning("b", "because", "mend b"), failed("c", "cause", "mend c"), failed("d", "", "")))
    assert not report.well
    assert report.first is not None
    assert report.first.what == "c"
    assert report.summary() == "Mend this first: c (cause). Mend c."


def test_a_warning_is_named_when_nothing_failed_and_does_no_harm() -> None:
    report = Report((ok("a"), warning("b", "because", "mend b")))
    assert report.well
    assert report.summary() == "Nothing failed. Worth a look: b (because). Mend b."


def test_where_nothing_is_wrong_nothing_is_reported() -> None:
    report = Report((ok("a"), not_applicable("b", "there is none")))
    assert report.well
    assert report.first is None
    assert report.summary() == "Nothing is wrong."


async def test_what_builds_on_something_that_failed_is_not_looked_at() -> None:
    report = await run(
        [
            check("a", failed("a", "x", "y")),
            check("b", ok("b"), "a"),
            check("c", ok("c"), "b"),
            check("d", ok("d")),
        ]
    )
    assert states(report) == {
        "a": State.FAILED,
        "b": State.NOT_APPLICABLE,
        "c": State.NOT_APPLICABLE,
        "d": State.OK,
    }
    assert report.findings[1].why == "a has to be well first"
    assert report.first is not None
    assert report.first.check == "a"


async def test_what_is_not_there_keeps_nobody_from_being_looked_at() -> None:
    report = await run([check("plugin", not_applicable("plugin", "none")), check("login", ok("in"), "plugin")])
    assert states(report)["login"] is State.OK


async def test_checks_that_do_not_build_on_each_other_run_side_by_side() -> None:
    both = asyncio.Barrier(2)

    async def meet() -> Finding:
        await both.wait()
        return ok("met")

    report = await run([Check("a", HERE, meet), Check("b", HERE, meet)])
    assert [finding.what for finding in report.findings] == ["met", "met"]


async def test_a_check_that_does_not_end_is_given_up() -> None:
    async def hang() -> Finding:
        await asyncio.Event().wait()
        raise AssertionError

    report = await run([Check("slow", HERE, hang, within=0.01), check("after", ok("after"), "slow")])
    assert states(report) == {"slow": State.FAILED, "after": State.NOT_APPLICABLE}


async def test_an_error_in_words_is_a_finding_and_a_bug_spoils_only_its_own_check() -> None:
    report = await run(
        [check("a", Tp2Error("what", "why", "remedy")), check("b", KeyError("oops")), check("c", ok("c"))]
    )
    assert report.findings[0] == placed([failed("what", "why", "remedy")], "a", HERE, report.findings[0].took)[0]
    assert states(report)["b"] is State.NOT_APPLICABLE
    assert "oops" in report.findings[1].why
    assert states(report)["c"] is State.OK


async def test_a_check_cannot_build_on_one_that_comes_later() -> None:
    with pytest.raises(ValueError, match="does not come before"):
        await run([check("a", ok("a"), "b"), check("b", ok("b"))])


async def test_work_that_blocks_is_not_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await in_thread(lambda: time.sleep(1))
    assert time.monotonic() - began < 0.9
    with pytest.raises(KeyError):
        await in_thread(lambda: dict[str, int]()["nothing"])


def screen(report: Report, *, terminal: bool, width: int = 80) -> str:
    out = io.StringIO()
    show.report(report, Console(file=out, force_terminal=terminal, width=width, highlight=False))
    return out.getvalue()


def test_off_a_terminal_the_output_is_plain_and_has_cause_and_remedy() -> None:
    report = Report(placed([ok("fine"), failed("broken [x]", "a cause", "a remedy")], "thing", HERE, 0.1))
    lines = screen(report, terminal=False).splitlines()
    assert lines[0] == "this machine"
    assert [line.split() for line in lines[1:5]] == [
        ["ok", "thing", "fine"],
        ["failed", "broken", "[x]"],
        ["why:", "a", "cause"],
        ["try:", "a", "remedy"],
    ]
    assert lines[-1] == "Mend this first: broken [x] (a cause). A remedy."
    assert "\x1b" not in screen(report, terminal=False)
    assert "\x1b" in screen(report, terminal=True)


def test_on_a_narrow_terminal_no_word_is_lost() -> None:
    words = " ".join(f"word{number}" for number in range(40))
    text = screen(Report(placed([ok(words)], "thing", HERE, 0.0)), terminal=False, width=60)
    assert all(f"word{number}" in text for number in range(40))
    assert max(map(len, text.splitlines())) <= 60
