"""Who draws on the terminal, and leaves it to programs that may ask somebody something there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol


class Drawing(Protocol):
    """Something on the terminal that moves."""

    def pause(self) -> None:
        """Take it away."""

    def go_on(self) -> None:
        """Show it again, if it still is of use."""


#: All that may be on the terminal now.
drawings: Final[list[Drawing]] = []


@contextmanager
def paused() -> Iterator[None]:
    """Leave the terminal to somebody else: what they write is not drawn over."""
    stopped = list(drawings)
    for drawing in stopped:
        drawing.pause()
    try:
        yield
    finally:
        for drawing in stopped:
            if drawing in drawings:
                drawing.go_on()
