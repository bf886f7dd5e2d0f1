"""The same through the API server's port-forward, for a person who says nothing but ``tp2 up``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Laptop, Up
from tests.e2e.test_main_job import *  # noqa: F403 - every promise there holds here too
from tp2.cluster.manifest import NAMESPACE
from tp2.sandbox.box import ENDPOINT_POD


@pytest.fixture(scope="module")
def connected(laptop: Laptop) -> Iterator[Laptop]:
    laptop.installed = True
    up = Up(laptop, installed=True)
    yield laptop
    assert up.process.poll() is None, "tp2 did not survive the tests"
    assert up.stop() == 0


def test_it_goes_through_the_api_server(connected: Laptop) -> None:
    through = connected.status()["tunnel"]["through"]
    assert through == f"the API server to pod {NAMESPACE}/{ENDPOINT_POD}"
