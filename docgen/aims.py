"""What tp2 is to be beside its peers, and whether the kept results say that it is. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

REDSOCKS: Final = "redsocks + ssh -D"
SSHUTTLE: Final = "sshuttle"

#: The contenders that have aims.
OURS: Final = ("tp2 portmap", "tp2 origdst", "tp2 through the API")


class Aim(NamedTuple):
    """A ratio to reach.

    :param bench: whose *figure* it is about.
    :param words: for *figure*, in the table.
    :param beside: the contender that is the measure.
    :param bound: of the ratio of the medians.
    :param least: whether the ratio has to be *bound* or more, or else *bound* or less.
    """

    bench: str
    figure: str
    words: str
    beside: str
    bound: float
    least: bool = True

    def met(self, ratio: float) -> bool:
        """Whether *ratio* is enough. It is compared as it is shown: with two digits after the point."""
        return round(ratio, 2) >= self.bound if self.least else round(ratio, 2) <= self.bound

    def __str__(self) -> str:
        return f"{self.bound:g} or {'more' if self.least else 'less'}"


AIMS: Final = (
    Aim("path", "bulk up", "bulk up", REDSOCKS, 1.0),
    Aim("path", "bulk down", "bulk down", REDSOCKS, 1.0),
    Aim("path", "bulk up", "bulk up", SSHUTTLE, 10.0),
    Aim("path", "bulk down", "bulk down", SSHUTTLE, 10.0),
    Aim("path", "bulk up at 80 ms", "bulk up, round trip of 80 ms", REDSOCKS, 1.0),
    Aim("path", "bulk down at 80 ms", "bulk down, round trip of 80 ms", REDSOCKS, 1.0),
    Aim("path", "new connections", "new connections/s", REDSOCKS, 0.8),
    Aim("path", "new connections", "new connections/s", REDSOCKS, 1.0),
    Aim("path", "new connections", "new connections/s", SSHUTTLE, 1.5),
    Aim("path", "kept-alive requests", "kept-alive requests/s", REDSOCKS, 0.8),
    Aim("path", "kept-alive requests", "kept-alive requests/s", REDSOCKS, 1.0),
    Aim("path", "kept-alive requests", "kept-alive requests/s", SSHUTTLE, 3.0),
    Aim(
        "path", "small request beside a download, p99", "p99 of small requests beside a download", REDSOCKS, 1.0, False
    ),
    Aim(
        "path", "small request beside a download, p99", "p99 of small requests beside a download", SSHUTTLE, 1.0, False
    ),
    Aim("path", "lookup beside a download, p99", "p99 of lookups beside a download", SSHUTTLE, 1.0, False),
    Aim("path", "memory at 1,000 open connections", "memory at 1,000 open connections", SSHUTTLE, 1.0, False),
    Aim("start", "from the command to the first page by name", "start to first request", SSHUTTLE, 1.0, False),
    Aim("start", "from 'tp2 down', or 'kill' of sshuttle, to no rule left", "stop to clean", SSHUTTLE, 1.0, False),
)


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Return a Markdown table of the aims that *rows* say something about; nothing if there are none."""
    found = {(row["bench"], row["figure"], row["contender"]): row["ratio_to"] for row in rows}
    lines = []
    for aim in AIMS:
        ratios = [found.get((aim.bench, aim.figure, who), {}).get(aim.beside) for who in OURS]
        if any(ratio is not None for ratio in ratios):
            cells = " | ".join("" if ratio is None else _cell(aim, ratio) for ratio in ratios)
            lines.append(f"| {aim.words} | {aim.beside} | {aim} | {cells} |\n")
    if lines:
        yield f"\n| times as much, of the medians | beside | aim | {' | '.join(OURS)} |\n"
        yield f"|---|---|---|{'---|' * len(OURS)}\n"
        yield from lines


def _cell(aim: Aim, ratio: float) -> str:
    return f"{ratio:.2f}" if aim.met(ratio) else f"**{ratio:.2f}, missed**"
