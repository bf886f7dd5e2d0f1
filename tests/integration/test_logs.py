"""``tp2 logs``: what was written, what is being written, and not a moment longer than that tp2 lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tp2.errors import ExitCode
from tp2.runtime import RuntimeDirectory

#: A process that holds the runtime directory as a detached tp2 does: it writes what it reads, and ends with that.
HOLDER = """
import sys
from pathlib import Path
from tp2.runtime import RuntimeDirectory
runtime = RuntimeDirectory(Path(sys.argv[1]))
with runtime:
    if sys.argv[2] == "detached":
        log = runtime.log.open("ab", buffering=0)
        log.write(b"one\\ntwo\\n")
    print("up", flush=True)
    for line in sys.stdin.buffer:
        log.write(line)
if sys.argv[2] == "detached":
    log.write(b"the last words\\n")
"""


class Holder:
    def __init__(self, path: Path, how: str) -> None:
        command = [sys.executable, "-c", HOLDER, str(path), how]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin
        assert self.process.stdout
        self.input = self.process.stdin
        assert self.process.stdout.readline() == b"up\n"

    def say(self, words: str) -> None:
        self.input.write(words.encode() + b"\n")
        self.input.flush()

    def end(self) -> None:
        self.input.close()
        self.process.wait(30)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def detached(path: Path) -> Iterator[Holder]:
    holder = Holder(path, "detached")
    yield holder
    if holder.process.poll() is None:
        holder.end()


def logs(path: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tp2", "logs", *options],
        env={**os.environ, "TP2_RUNTIME_DIR": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_log_is_shown(detached: Holder, path: Path) -> None:
    assert logs(path).communicate(timeout=60) == ("one\ntwo\n", "")
    assert logs(path, "--tail", "1").communicate(timeout=60) == ("two\n", "")
    assert logs(path, "-n", "0").communicate(timeout=60) == ("", "")


def test_it_is_followed_until_that_tp2_ends_and_to_its_last_words(detached: Holder, path: Path) -> None:
    following = logs(path, "-f", "-n", "1")
    assert following.stdout is not None
    assert following.stdout.readline() == "two\n"
    for words in ("three", "four"):
        detached.say(words)
        assert following.stdout.readline() == f"{words}\n"
    detached.end()
    assert following.communicate(timeout=60) == ("the last words\n", "")
    assert following.returncode == 0


def test_ctrl_c_ends_a_look_at_once(detached: Holder, path: Path) -> None:
    following = logs(path, "--follow", "-n", "1")
    assert following.stdout is not None
    assert following.stdout.readline() == "two\n"
    # Followed by now: this line was written later.
    detached.say("three")
    assert following.stdout.readline() == "three\n"
    following.send_signal(signal.SIGINT)
    assert following.communicate(timeout=60) == ("", "")
    assert following.returncode == 0
    assert detached.process.poll() is None


def test_a_tp2_in_the_foreground_has_its_words_elsewhere(path: Path) -> None:
    holder = Holder(path, "foreground")
    asked = logs(path)
    _, words = asked.communicate(timeout=60)
    holder.end()
    assert asked.returncode == ExitCode.FAILURE
    assert "keeps no log" in words
    assert "terminal" in words


def test_without_a_tp2_there_is_what_the_last_one_left_or_nothing(path: Path) -> None:
    asked = logs(path)
    assert "has left no log" in asked.communicate(timeout=60)[1]
    assert asked.returncode == ExitCode.NOT_RUNNING
    path.mkdir()
    RuntimeDirectory(path).log.write_text("why it failed\n")
    assert logs(path, "-f").communicate(timeout=60) == ("why it failed\n", "")
