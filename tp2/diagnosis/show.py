"""What ``tp2 doctor`` and ``tp2 explain`` print for people, with rich: no colour off a terminal or with NO_COLOR."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tp2.diagnosis.model import Finding, Report, State

_STYLES: Final = {
    State.OK: "green",
    State.WARNING: "yellow",
    State.FAILED: "bold red",
    State.NOT_APPLICABLE: "dim",
}
_WORDS: Final = {State.NOT_APPLICABLE: "-"}


def report(found: Report, console: Console | None = None) -> None:
    """Print the findings of ``tp2 doctor`` by place, and what to mend first."""
    console = console or _console()
    for place, findings in itertools.groupby(found.findings, key=lambda finding: finding.place):
        console.print(Text(str(place), style="bold"))
        _print(console, _table(findings))
    first = found.first
    console.print(Text(found.summary(), style=_STYLES[first.state if first else State.OK]))


def steps(found: Report, conclusion: str, console: Console | None = None) -> None:
    """Print the steps of ``tp2 explain``, and what they come to."""
    console = console or _console()
    _print(console, _table(found.findings, times=True))
    console.print(Text(conclusion, style=_STYLES[State.OK if found.well else State.FAILED]))


def _table(findings: Iterable[Finding], *, times: bool = False) -> Table:
    table = Table(box=None, show_header=False, pad_edge=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    if times:
        table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    last = ""
    for finding in findings:
        style = _STYLES[finding.state]
        words = Text(finding.what)
        if finding.state is State.NOT_APPLICABLE:
            words = Text(f"{finding.what}: {finding.why}", style="dim")
        elif finding.why or finding.remedy:
            words.append(f"\nwhy: {finding.why}\ntry: {finding.remedy}")
        cells = [Text(_WORDS.get(finding.state, str(finding.state)), style=style)]
        cells.append(Text("" if finding.check == last else finding.check))
        if times:
            cells.append(Text(f"{finding.took * 1000:.1f} ms" if finding.took else "", style="dim"))
        table.add_row(*cells, words)
        last = finding.check
    return table


def _print(console: Console, table: Table) -> None:
    """Print *table* without the blanks that fill its last column."""
    with console.capture() as captured:
        console.print(table)
    console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _console() -> Console:
    console = Console(highlight=False)
    # Off a terminal there is nothing to fit: lines are as long as they need to be.
    return console if console.is_terminal else Console(width=4000, highlight=False)
