"""``tp2 mappings``: once, or again and again. It reads the control socket, and nothing else."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import click

from tp2.control import client
from tp2.runtime import RuntimeDirectory
from tp2.terminal.rows import Rates, matching, ordered

#: Seconds between two looks.
EVERY: Final = 1.0


def mappings(runtime: RuntimeDirectory, *, words: Sequence[str], sort: str, watch: bool, as_json: bool) -> None:
    """Print the mappings that have all *words* in them, in the order of *sort*; with *watch*, until Ctrl-C.

    :raises Tp2Error: tp2 is not running, or does not answer (any more).
    """
    if not watch:
        answer = _shown(client.ask(runtime, "mappings"), words, sort)
        if as_json:
            click.echo(json.dumps(answer, indent=2))
            return
        from tp2.terminal import screen

        screen.mappings(answer, filtered=bool(words))
        return
    try:
        _watch(runtime, words, sort, as_json=as_json)
    except KeyboardInterrupt:
        # That is how a look ends.
        return


def _watch(runtime: RuntimeDirectory, words: Sequence[str], sort: str, *, as_json: bool) -> None:
    rates = Rates()

    def look() -> dict[str, Any]:
        answer = client.ask(runtime, "mappings")
        answer["mappings"] = rates.add_to(answer["mappings"], time.monotonic())
        return _shown(answer, words, sort)

    if as_json:
        while True:
            click.echo(json.dumps(look()))
            sys.stdout.flush()
            time.sleep(EVERY)
    from tp2.terminal import screen

    with screen.live_mappings(filtered=bool(words)) as show:
        while True:
            show(look())
            time.sleep(EVERY)


def _shown(answer: dict[str, Any], words: Sequence[str], sort: str) -> dict[str, Any]:
    return {**answer, "mappings": ordered(matching(answer["mappings"], words), sort)}
