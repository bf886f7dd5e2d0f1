"""A bound on what blocks the whole process, and knows no timeout of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after *seconds*, out of a blocking call too (setitimer(2), SIGALRM).

    For commands that have nothing else to do meanwhile: in the main thread only, and one at a time.
    """

    def ring(*_: object) -> None:
        raise TimeoutError

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
