"""Work as of many programs, for some seconds: every byte comes, and tp2 holds nothing more afterwards than before.

``scripts/bench soak`` does the same for minutes, in every mode.
"""

from __future__ import annotations

import dataclasses

import pytest

from bench import soak
from bench.report import Figure
from bench.ways import TP2


def value(figures: list[Figure], name: str) -> float:
    return next(figure.median(TP2) for figure in figures if figure.name == name)


@pytest.mark.timeout(300)
def test_thousands_of_connections_leave_every_byte_right_and_nothing_behind() -> None:
    figures = soak.run(soak.QUICK, print)
    assert value(figures, "connections, every byte of which came") > 300
    assert value(figures, "connections that were broken off") > 3
    assert value(figures, "bytes, counted and hashed at both ends") > 0.02
    assert value(figures, "memory of the daemon at rest") > 10
    assert value(figures, "descriptors of the helper at rest") > 3


def test_a_single_wrong_bit_ends_the_soak() -> None:
    effort = dataclasses.replace(soak.QUICK, rounds=1, seconds=0.5, spoil=soak.HELD + 7)
    with pytest.raises(soak.NotWhole, match=rf"connection {soak.HELD + 7} to .* the two ends differ about: sent"):
        soak.run(effort, print)
