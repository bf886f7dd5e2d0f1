"""What ``tp2 up`` waits for, on a terminal: a line that moves, below the stages that are done. Elsewhere, nothing."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from rich.status import Status

_BEGIN: Final = "starting"

#: What is done when a stage is. The API and the tunnel come up side by side.
_NEXT: Final = {
    "helper": _BEGIN,
    "metrics": _BEGIN,
    "socks": "waiting for the Kubernetes API and the SSH endpoint",
    "cluster": "waiting for the SSH endpoint",
    "tunnel": "waiting for the Kubernetes API",
    "dns": "setting forwarding rules",
    "capture": "waiting for a name and a connection of its own to come through",
}
_BOTH: Final = {"cluster", "tunnel"}


class Progress:
    """The line; leaving ends it. It is never there while sudo may ask for a password on the terminal."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._done: set[str] = set()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Show the line, if there is a terminal to show it on."""
        # With only one of them on it, the line and what goes elsewhere would be in each other's way.
        if not (sys.stdout.isatty() and sys.stderr.isatty()):
            return
        from rich.console import Console

        console = Console()
        if console.is_dumb_terminal:
            return
        self._status = console.status(_words(self._done, ""), spinner="dots")
        self._status.start()
        _log_above()

    def done(self, stage: str, line: str) -> None:
        """Print the *line* of a stage that is done, and wait for what comes after; nothing comes after ``ready``."""
        self._done.add(stage)
        if stage == "ready":
            self.stop()
        if self._status is None:
            click.echo(line)
            sys.stdout.flush()
            return
        self._status.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._status.update(_words(self._done, stage))

    def stop(self) -> None:
        """Take the line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None
            _log_above()


def _words(done: set[str], last: str) -> str:
    return "starting DNS" if last in _BOTH and done >= _BOTH else _NEXT.get(last, _BEGIN)


def _log_above() -> None:
    """Let log lines go to what standard error is now: while there is a line, that leaves it the last one."""
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)
