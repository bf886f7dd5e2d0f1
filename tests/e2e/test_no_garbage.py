"""However tp2 ends, the machine is as it was; and what holds after one end holds for the next start."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Laptop, Up, eventually
from tp2.sandbox.box import tp2_command


def processes_of_tp2(laptop: Laptop) -> list[str]:
    marks = {b"tp2", b"tp2.forward.helper", b"tp2.forward.pfguard"}
    return [b" ".join(command).decode() for command in laptop.host.commands().values() if marks & set(command)]


def runtime_files(laptop: Laptop) -> list[str]:
    directory = Path(laptop.box.environment["TP2_RUNTIME_DIR"])
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def captured(laptop: Laptop) -> dict[str, int]:
    """Use tp2 once; return the ids of its processes."""
    assert laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"
    status = laptop.status()
    return {"daemon": status["pid"], "helper": status["forwarder"]["helper_pid"]}


@pytest.mark.parametrize("way", ["tp2 down", "SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stopped_tp2_leaves_nothing(laptop: Laptop, up: Callable[..., Up], way: str) -> None:
    before = laptop.ruleset()
    running = up()
    captured(laptop)
    if way == "tp2 down":
        assert laptop.tp2("down").code == 0
        # Down returns when everything is gone: nothing is waited for here.
        assert (laptop.ruleset(), processes_of_tp2(laptop)) == (before, [])
    else:
        os.kill(running.process.pid, signal.Signals[way])
    assert running.process.wait(20) == 0
    assert laptop.ruleset() == before
    assert runtime_files(laptop) == []
    eventually(lambda: processes_of_tp2(laptop) == [])


@pytest.mark.parametrize("killed", [("daemon",), ("helper",), ("daemon", "helper"), ("helper", "daemon")])
def test_a_killed_tp2_leaves_no_rule_and_the_next_one_starts_clean(
    laptop: Laptop, up: Callable[..., Up], killed: tuple[str, ...]
) -> None:
    before = laptop.ruleset()
    running = up()
    pids = captured(laptop)
    assert laptop.ruleset() != before
    for name in killed:
        os.kill(pids[name], signal.SIGKILL)
    # The kernel removes the rules with the helper, and the helper goes with the daemon.
    assert eventually(lambda: laptop.ruleset() == before) < 2.0
    code = running.process.wait(20)
    if killed == ("helper",):
        assert code == 6  # a daemon that captures nothing any more says so, and ends
    eventually(lambda: processes_of_tp2(laptop) == [])
    assert laptop.lookup("site.example") == ["203.0.113.80"]

    again = up()
    captured(laptop)
    assert again.stop() == 0
    assert laptop.ruleset() == before
    assert runtime_files(laptop) == []


def test_a_daemon_whose_helper_is_killed_says_what_happened(laptop: Laptop) -> None:
    up = subprocess.Popen(
        [*laptop.host.command(), *laptop.box.up_command()],
        env=laptop.box.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: laptop.tp2("status").code == 0 and laptop.status()["state"] == "ready")
    os.kill(laptop.status()["forwarder"]["helper_pid"], signal.SIGKILL)
    _, stderr = up.communicate(timeout=20)
    assert up.returncode == 6
    assert "tp2: nothing is captured any more" in stderr
    assert "try: run tp2 up again" in stderr


def test_a_tp2_killed_while_it_starts_leaves_no_rule(laptop: Laptop) -> None:
    before = laptop.ruleset()
    for delay in (0.0, 0.3, 0.6, 0.9, 1.2):
        up = laptop.host.start(*laptop.box.up_command(), env=laptop.box.environment, stdout=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            up.wait(delay + 0.01)
        up.kill()
        up.wait()
        eventually(lambda: laptop.ruleset() == before and processes_of_tp2(laptop) == [])


@pytest.mark.parametrize("stage", ["helper", "tunnel", "capture"])
def test_a_start_that_is_interrupted_leaves_nothing(laptop: Laptop, stage: str) -> None:
    before = laptop.ruleset()
    up = laptop.host.start(
        *laptop.box.up_command(),
        env=laptop.box.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert up.stdout is not None
    assert any(line.startswith(stage) for line in up.stdout)
    up.send_signal(signal.SIGINT)
    _, stderr = up.communicate(timeout=20)
    # Between its last stage and ready is next to no time.
    assert up.returncode == 130 or (up.returncode, stage) == (0, "capture")
    assert stderr == ""
    assert (laptop.ruleset(), processes_of_tp2(laptop), runtime_files(laptop)) == (before, [], [])


@pytest.mark.parametrize("at", ["tp2.start", "encodings.idna", "tp2.daemon", "asyncssh", "aiohttp", "uvloop"])
def test_a_start_that_is_interrupted_while_it_imports_leaves_nothing(laptop: Laptop, at: str) -> None:
    before = laptop.ruleset()
    hook = Path(__file__).parents[1] / "fixtures" / "interrupt"
    done = subprocess.run(
        [*laptop.host.command(), *laptop.box.up_command()],
        env={**laptop.box.environment, "PYTHONPATH": str(hook), "INTERRUPT_AT": at},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")
    assert (laptop.ruleset(), processes_of_tp2(laptop), runtime_files(laptop)) == (before, [], [])


def test_a_second_up_refuses_and_names_the_first(laptop: Laptop, up: Callable[..., Up]) -> None:
    running = up()
    second = laptop.run(*laptop.box.up_command())
    assert second.code == 4
    assert f"process {running.process.pid}" in second.stderr
    elsewhere = {**laptop.box.environment, "TP2_RUNTIME_DIR": str(laptop.box.directory / "elsewhere")}
    third = subprocess.run(
        [*laptop.host.command(), *laptop.box.up_command()], env=elsewhere, capture_output=True, text=True, check=False
    )
    assert third.returncode == 4
    assert "another tp2 captures in this network namespace" in third.stderr
    # Neither has disturbed the first.
    captured(laptop)
    assert running.stop() == 0


def test_detach_returns_at_ready_and_down_ends_it(laptop: Laptop) -> None:
    before = laptop.ruleset()
    done = laptop.run(*laptop.box.up_command("--detach"))
    assert done.code == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("ready")
    captured(laptop)
    assert laptop.tp2("down").code == 0
    assert laptop.ruleset() == before
    assert processes_of_tp2(laptop) == []
    assert runtime_files(laptop) == []


def test_without_a_running_tp2_the_commands_say_so(laptop: Laptop) -> None:
    for command in ("status", "mappings", "down"):
        done = laptop.run(*tp2_command(command))
        assert done.code == 3
        assert "tp2 is not running" in done.stderr
        assert "tp2 up" in done.stderr


def test_the_runtime_files_are_the_users_alone(laptop: Laptop, up: Callable[..., Up]) -> None:
    running = up()
    directory = Path(laptop.box.environment["TP2_RUNTIME_DIR"])
    assert directory.stat().st_mode & 0o077 == 0
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o177 == 0, path
    assert running.stop() == 0
