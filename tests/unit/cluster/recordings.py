"""Reads the recordings of a real API server under ``tests/fixtures``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parents[2] / "fixtures" / "kubernetes-1.36"


def recorded(name: str) -> Any:
    """The JSON of a recording."""
    return json.loads((DIRECTORY / name).read_text(encoding="utf-8"))


def lines(name: str) -> list[Any]:
    """The JSON lines of a recording."""
    return [json.loads(line) for line in (DIRECTORY / name).read_bytes().splitlines()]
