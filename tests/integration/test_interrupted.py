"""Ctrl-C ends every command quietly, however early it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HOOK = Path(__file__).parents[1] / "fixtures" / "interrupt"


def interrupted(tmp_path: Path, at: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tp2, and interrupt it when it imports the module *at*."""
    env = {**os.environ, "PYTHONPATH": str(HOOK), "INTERRUPT_AT": at, "TP2_RUNTIME_DIR": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-m", "tp2", *arguments], env=env, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("at", ["tp2.cli", "click", "tp2.configuration", "tp2.control", "tp2.service.commands"])
@pytest.mark.parametrize("command", ["status", "mappings", "--help"])
def test_while_commands_are_imported(tmp_path: Path, at: str, command: str) -> None:
    done = interrupted(tmp_path, at, command)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_while_a_command_is_at_work(tmp_path: Path) -> None:
    done = interrupted(tmp_path, "tp2.provenance", "config")
    # What follows the ^C on a terminal begins on a line of its own.
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\n")


def test_one_that_was_told_to_ignore_interrupts_does(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(HOOK), "INTERRUPT_AT": "click"}
    done = subprocess.run(
        [sys.executable, "-m", "tp2", "--version"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.returncode == 0
    assert done.stdout.startswith("tp2, version ")
