"""One tp2 at a time in a runtime directory, which is its user's alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tp2.errors import AlreadyRunning, Tp2Error
from tp2.runtime import RuntimeDirectory, default_directory

HOLD = """
import sys
from pathlib import Path
from tp2.runtime import RuntimeDirectory
with RuntimeDirectory(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_one_refuses_and_names_the_first(tmp_path: Path) -> None:
    directory = RuntimeDirectory(tmp_path / "run")
    with hold(directory.path) as holder:
        for refuse in (directory.check_free, directory.acquire):
            with pytest.raises(AlreadyRunning, match=f"process {holder.pid} holds"):
                refuse()
        assert directory.holder() == holder.pid
        holder.communicate()
    directory.check_free()


def test_what_a_killed_one_left_is_no_obstacle(tmp_path: Path) -> None:
    directory = RuntimeDirectory(tmp_path / "run")
    with hold(directory.path) as holder:
        holder.kill()
    directory.socket.touch()
    assert directory.holder() is None
    with directory:
        assert not directory.socket.exists()
        assert directory.holder() == os.getpid()


def test_nothing_is_left_of_one_that_ends(tmp_path: Path) -> None:
    with RuntimeDirectory(tmp_path / "run") as directory:
        directory.log.touch()
    assert list(tmp_path.iterdir()) == []


def test_the_log_of_one_that_failed_is_kept(tmp_path: Path) -> None:
    directory = RuntimeDirectory(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), directory:
        directory.log.touch()
        raise ZeroDivisionError
    assert [path.name for path in directory.path.iterdir()] == ["tp2.log"]


def test_waiting_for_a_holder_ends_when_its_process_does(tmp_path: Path) -> None:
    directory = RuntimeDirectory(tmp_path / "run")
    with hold(directory.path) as holder, directory.watch_holder() as wait:
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert waiting.is_alive()
        holder.communicate()
        waiting.join(20)
        assert not waiting.is_alive()


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(Tp2Error, match="cannot use the runtime directory"):
        RuntimeDirectory(file).acquire()
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(Tp2Error, match="not a directory"):
        RuntimeDirectory(link).acquire()


def test_a_long_path_still_makes_a_socket_address(tmp_path: Path) -> None:
    directory = RuntimeDirectory(tmp_path / ("x" * 120))
    with directory, directory.socket_address() as address:
        assert len(address) < 108


def test_the_default_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_directory(0) == Path("/run/tp2")
    assert str(default_directory(54321)).endswith("tp2-54321")
