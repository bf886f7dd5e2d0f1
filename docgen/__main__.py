"""The command behind ``scripts/docs``: writes the files that follow from others, or says which are not up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from docgen import benchmarks, diagrams, errors, manpage, session

ROOT = Path(__file__).parents[1]


def generated(root: Path = ROOT) -> dict[Path, str]:
    """Return every generated file of the repository at *root*, and what it should say."""
    docs = root / "docs"
    return {
        docs / "reference" / "errors.md": errors.page(errors.scan(root / "tp2")),
        docs / "man" / "tp2.1": manpage.page(),
        docs / "benchmarks.md": benchmarks.page(benchmarks.read(root / "bench" / "results", docs / "plots")),
        docs / "session.svg": session.draw((docs / "session.cast").read_text(encoding="utf-8")),
        **{
            source.with_suffix(".svg"): diagrams.draw(source.read_text(encoding="utf-8"))
            for source in sorted((docs / "diagrams").glob("*.toml"))
        },
    }


def stale(root: Path = ROOT) -> list[Path]:
    """Return which of them say something else, or are missing."""
    return [path for path, text in generated(root).items() if not path.is_file() or path.read_text("utf-8") != text]


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if anything would change.")
def docgen(check: bool) -> None:
    """Write what of docs/ follows from the code."""
    if check:
        found = stale()
        for path in found:
            click.echo(f"{path.relative_to(ROOT)} is not up to date: run scripts/docs", err=True)
        sys.exit(1 if found else 0)
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    docgen(prog_name="scripts/docs")
