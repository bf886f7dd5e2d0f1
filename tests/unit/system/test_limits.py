"""How many mappings there is room for, and how far the limit on open files goes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tp2.system import limits


@pytest.mark.parametrize(("open_files", "mappings"), [(20_000, 14_232), (1024, 576), (256, 144), (4, 2), (1, 1)])
def test_three_quarters_of_the_open_files_are_for_mappings(open_files: int, mappings: int) -> None:
    assert limits.most_mappings(open_files) == mappings


def test_the_limit_is_raised_as_far_as_it_goes() -> None:
    script = """
import resource
from tp2.system import limits
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
assert limits.raise_open_files() == limits.open_files() >= hard
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
assert limits.raise_open_files() == limits.open_files() >= 100
"""
    subprocess.run([sys.executable, "-c", script], check=True)
