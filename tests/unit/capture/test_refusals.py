"""Refused connections are counted, and each destination is explained once."""

from __future__ import annotations

import pytest

from tp2.capture import refusals as module
from tp2.capture.refusals import Refusals, no_mapping, not_there
from tp2.types import Destination

WEB, OTHER = Destination("10.96.1.1", 81), Destination("fd00::1", 80)


def test_each_destination_is_explained_once_and_counted_always(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(no_mapping)
    refusals.note({WEB: 2})
    refusals.note({WEB: 3, OTHER: 1})
    assert [record.getMessage() for record in caplog.records] == [
        "connection to 10.96.1.1:81 refused: no mapping; look the name up, or connect after 'tp2 map 10.96.1.1:81'",
        "connection to [fd00::1]:80 refused: no mapping; look the name up, or connect after 'tp2 map [fd00::1]:80'",
    ]
    assert refusals.summary() == {
        "connections": 6,
        "destinations": [
            {"address": "10.96.1.1", "port": 81, "connections": 5},
            {"address": "fd00::1", "port": 80, "connections": 1},
        ],
    }


def test_a_scan_of_the_whole_cluster_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    monkeypatch.setattr(module, "EXPLAINED", 1)
    refusals = Refusals(not_there)
    refusals.note({Destination("10.96.0.1", port): 1 for port in range(1, 100)})
    assert refusals.summary()["connections"] == 99
    assert len(refusals.summary()["destinations"]) == 3
    assert [record.getMessage() for record in caplog.records] == [
        not_there(Destination("10.96.0.1", 1)),
        "connections to still others are refused: 'tp2 status' counts them",
    ]
