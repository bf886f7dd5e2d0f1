"""The command behind ``scripts/bench``: runs benches by name, prints their tables, and writes their figures."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from bench import dns, mappings, path, recovery, report, results, soak, start
from bench.report import Figure
from tp2.errors import Tp2Error

#: Measures, quickly or in full; is given what to tell the user of its progress.
Bench = Callable[[bool, Callable[[str], None]], list[Figure]]

BENCHES: Final[dict[str, Bench]] = {
    "dns": lambda quick, say: dns.run(dns.QUICK if quick else dns.Effort(), say),
    "mappings": lambda quick, say: mappings.run(mappings.QUICK if quick else mappings.Effort(), say),
    "path": lambda quick, say: path.run(path.QUICK if quick else path.Effort(), say),
    "start": lambda quick, say: start.run(start.QUICK if quick else start.Effort(), say),
    "soak": lambda quick, say: soak.run(soak.QUICK if quick else soak.Effort(), say),
    "recovery": lambda quick, say: recovery.run(say),
}


@click.command()
@click.argument("name", type=click.Choice([*BENCHES, "all", "plots"]))
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures there too.")
@click.option("--quick", is_flag=True, help="Show that the bench works; its figures mean nothing.")
@click.option("--keep", is_flag=True, help="Keep the figures in bench/results, and draw the plots of docs/plots anew.")
def bench(name: str, file: Path | None, quick: bool, keep: bool) -> None:
    """Measure tp2 beside its peers on this machine; 'plots' only draws what is kept."""
    if keep and quick:
        raise click.UsageError("--quick shows that a bench works: there is nothing to --keep")
    if file is not None and not file.parent.is_dir():
        raise click.BadParameter(f"there is no directory {file.parent}", param_hint="--json")
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    for each in [] if name == "plots" else BENCHES if name == "all" else [name]:
        started = time.monotonic()

        def say(words: str, each: str = each) -> None:
            click.echo(f"bench {each}, {time.monotonic() - began:3.0f} s: {words}", err=True)

        figures = BENCHES[each](quick, say)
        rows += report.rows(each, figures)
        report.show(each, figures)
        if keep:
            click.echo(f"kept: {results.keep(each, results.note(each, figures, started))}", err=True)
    if keep or name == "plots":
        results.draw()
    if file is not None:
        file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _terminated(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """Run the command; what a bench found wrong is a message and not a traceback."""
    # So that the sandboxes are taken down on the way out.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        bench(prog_name="scripts/bench")
    except Tp2Error as error:
        click.echo(f"bench: {error.what}\n  why: {error.why}\n  try: {error.remedy}", err=True)
        sys.exit(1)
    except subprocess.SubprocessError as error:
        click.echo(f"bench: {error}; what it said is above", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
