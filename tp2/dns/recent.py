"""What has been asked lately, who answered, and why: a ring of fixed size. Pure.

Answers from the cache are not in it: each has been there once, when it was made.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple

from tp2.dns.records import Type

#: How many are remembered.
MOST: Final = 200


class Asked(NamedTuple):
    """A question and what became of it: ``at`` is a Unix time in seconds, ``took`` in milliseconds.

    ``who`` is ``cluster``, ``upstream ADDRESS``, ``cluster and upstream``, ``refused`` or ``failed``; ``why``
    is in words.
    """

    at: float
    name: str
    type: int
    who: str
    why: str
    took: float

    def as_json(self) -> dict[str, Any]:
        """Return the row for the control socket, but for the form of the time."""
        return {
            "at": self.at,
            "name": self.name,
            "type": Type.text(self.type),
            "who": self.who,
            "why": self.why,
            "ms": round(self.took, 2),
        }


class Recent:
    """The last questions. :meth:`note` costs less than a microsecond, and nothing grows."""

    def __init__(self, most: int = MOST) -> None:
        self._ring: deque[Asked] = deque(maxlen=most)

    def note(self, asked: Asked) -> None:
        """Remember *asked*, and forget the oldest if there are too many."""
        self._ring.append(asked)

    def latest(self) -> list[Asked]:
        """Return them, the last one first."""
        return list(reversed(self._ring))
