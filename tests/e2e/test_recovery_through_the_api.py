"""The same, where the endpoint is the one that is installed in the cluster and the API server is the way to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import recovery
from bench.day import Day
from tests.e2e.test_recovery import test_at_most_one_visit_fails_and_all_is_well_again_soon as _promise
from tp2.sandbox.box import Sandbox


@pytest.fixture(scope="module")
def running(box: Sandbox) -> Iterator[Day]:
    day = Day(box, installed=True)
    with recovery.connected(day) as up:
        yield day
        assert up.poll() is None


test_at_most_one_visit_fails_and_all_is_well_again_soon = _promise
