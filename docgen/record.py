"""Records the session that docs/session.cast holds: ``scripts/docs --record``.

Somebody types the commands of docs/first-steps.md on the laptop of the cluster in a box, as tests/e2e/test_readme.py
does, which also sees to it that they print what is shown there.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Final

from docgen.session import PROMPT
from tests.e2e.conftest import Laptop
from tests.e2e.readme import FIRST_STEPS, newcomer, prepare, steps
from tp2.sandbox.box import Sandbox

SIZE: Final = (102, 30)

#: Seconds for a character to be typed, and for its command to be read.
TYPING: Final = 0.04
READING: Final = 0.8


def record() -> str:
    """Return the session as an asciicast (version 2)."""
    width, height = SIZE
    lines = [json.dumps({"version": 2, "width": width, "height": height, "title": "tp2, from installed to gone"})]
    clock = 0.0

    def say(data: str) -> None:
        lines.append(json.dumps([round(clock, 3), "o", data]))

    with contextlib.ExitStack() as stack:
        box = stack.enter_context(Sandbox())
        laptop = Laptop(box)
        someone = stack.enter_context(newcomer(laptop, *prepare(laptop)))
        for step in steps("look", FIRST_STEPS):
            say(PROMPT)
            for character in step.command:
                clock += TYPING
                say(character)
            clock += READING
            say("\r\n")
            began = time.monotonic()
            before = clock
            for data in someone.shows(step.command, SIZE, "xterm-256color"):
                clock = before + time.monotonic() - began
                say(data.decode(errors="replace"))
            clock += READING
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(record(), encoding="utf-8")
