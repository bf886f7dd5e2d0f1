"""A program on a terminal, as a person has it: in tmux, with keys sent to it and its screen read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.conftest import Laptop, eventually

#: A colour of the foreground or background: SGR 30 to 49 and 90 to 107 (ECMA-48 section 8.3.117, and xterm's).
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")

HEIGHT = 24

_ENDED = "ended with"


class Terminal:
    """A terminal with one program on it; what it showed last stays when it has ended."""

    def __init__(self, laptop: Laptop, name: str, width: int) -> None:
        self.width = width
        self._laptop = laptop
        self._socket = str(laptop.box.directory / f"tmux-{name}")

    def start(self, command: list[str], *, colour: bool) -> None:
        """Start *command*."""
        setting = ["env", "LC_ALL=C.UTF-8", *([] if colour else ["NO_COLOR=1"])]
        # As a shell does: Ctrl-C is for the program alone. tmux itself sometimes misses how a program ended.
        script = f"trap : INT; {shlex.join([*setting, *command])}; echo {_ENDED} $?; exec cat >/dev/null"
        size = ["-x", str(self.width), "-y", str(HEIGHT)]
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, shlex.join(["sh", "-c", script]))

    def press(self, *keys: str) -> None:
        """Press keys, by tmux' names; a longer text is typed."""
        self._tmux("send-keys", *keys)

    def resize(self, width: int) -> None:
        """Make the window wider or narrower."""
        self._tmux("resize-window", "-x", str(width))
        self.width = width

    @property
    def screen(self) -> str:
        """What is on it, as text."""
        return self._tmux("capture-pane", "-p")

    @property
    def coloured(self) -> bool:
        """Whether anything on it has a colour."""
        return COLOUR.search(self._tmux("capture-pane", "-e", "-p")) is not None

    def shows(self, *words: str) -> str:
        """Wait until all *words* are on it; return it as it was then."""
        seen = ""

        def there() -> bool:
            nonlocal seen
            seen = self.screen
            return all(word in seen for word in words)

        try:
            eventually(there, 60)
        except AssertionError:
            raise AssertionError(f"{words} did not appear on\n{seen}") from None
        return seen

    def ended(self) -> int:
        """Wait until the program has ended; return its exit code."""
        return int(self.shows(_ENDED).partition(_ENDED)[2].split()[0])

    def close(self) -> None:
        """End the program and the terminal."""
        self._laptop.run("tmux", "-S", self._socket, "kill-server")
        Path(self._socket).unlink(missing_ok=True)

    def _tmux(self, *arguments: str) -> str:
        done = self._laptop.run("tmux", "-u", "-S", self._socket, *arguments)
        assert done.code == 0, done.stderr
        return done.stdout


@contextmanager
def terminal(laptop: Laptop, width: int, command: list[str], *, colour: bool) -> Iterator[Terminal]:
    """A terminal with *command* on it."""
    one = Terminal(laptop, f"{width}-{colour}", width)
    one.start(command, colour=colour)
    try:
        yield one
    finally:
        one.close()
