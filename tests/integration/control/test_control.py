"""The control socket answers who may ask, and survives whoever else talks to it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tp2.control import MAX_QUESTION, client
from tp2.control.server import Answer, ControlServer
from tp2.errors import ExitCode, NotRunning, Tp2Error, UsageError
from tp2.runtime import RuntimeDirectory


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[RuntimeDirectory]:
    directory = RuntimeDirectory(tmp_path / "run")
    with directory:

        async def later() -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"came": "later"}

        def map_(question: dict[str, Any]) -> dict[str, Any]:
            if question["target"] == "nosuch":
                raise UsageError("cannot map nosuch", "no such name", "write it otherwise")
            return {"mapped": question["target"]}

        operations: dict[str, Callable[[], Answer]] = {
            "status": lambda: {"state": "ready"},
            "big": lambda: {"x": "y" * 3_000_000},
            "later": later,
        }
        server = ControlServer(directory, operations, {"map": map_})
        await server.start()
        yield directory
        await server.close()


async def talk(runtime: RuntimeDirectory, words: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(runtime.socket))
    try:
        writer.write(words)
        writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_question_is_answered(runtime: RuntimeDirectory) -> None:
    assert await asyncio.to_thread(client.ask, runtime, "status") == {"state": "ready"}


async def test_an_answer_may_take_a_while(runtime: RuntimeDirectory) -> None:
    assert await asyncio.to_thread(client.ask, runtime, "later") == {"came": "later"}


async def test_a_long_answer_arrives_whole(runtime: RuntimeDirectory) -> None:
    answer = await asyncio.to_thread(client.ask, runtime, "big")
    assert len(answer["x"]) == 3_000_000


async def test_a_question_may_say_more_than_its_name(runtime: RuntimeDirectory) -> None:
    answer = await asyncio.to_thread(client.ask, runtime, "map", target="10.96.1.1:80")
    assert answer == {"mapped": "10.96.1.1:80"}


async def test_an_error_of_the_daemon_arrives_whole(runtime: RuntimeDirectory) -> None:
    with pytest.raises(Tp2Error) as caught:
        await asyncio.to_thread(client.ask, runtime, "map", target="nosuch")
    error = caught.value
    assert (error.what, error.why, error.remedy) == ("cannot map nosuch", "no such name", "write it otherwise")
    assert error.exit_code is ExitCode.USAGE


async def test_an_unknown_question_is_answered_with_the_known_ones(runtime: RuntimeDirectory) -> None:
    with pytest.raises(Tp2Error, match="known are big, later, map, status"):
        await asyncio.to_thread(client.ask, runtime, "reboot")


@given(
    words=st.binary(max_size=200) | st.integers(1, 100).map(lambda n: b"[" * n * 100) | st.just(b"x" * MAX_QUESTION * 2)
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_stop_it(tmp_path_factory: pytest.TempPathFactory, words: bytes) -> None:
    async def run() -> None:
        with RuntimeDirectory(tmp_path_factory.mktemp("control") / "run") as directory:
            server = ControlServer(directory, {"status": lambda: {"state": "ready"}})
            await server.start()
            answer = await talk(directory, words)
            assert not answer or "error" in json.loads(answer)
            assert json.loads(await talk(directory, b'{"op":"status"}\n')) == {"state": "ready"}
            await server.close()

    asyncio.run(run())


async def test_one_that_says_nothing_does_not_hold_up_the_others_or_the_end(
    runtime: RuntimeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tp2.control.server.PATIENCE", 0.2)
    reader, writer = await asyncio.open_unix_connection(str(runtime.socket))
    assert await asyncio.to_thread(client.ask, runtime, "status") == {"state": "ready"}
    assert await reader.read() == b""
    writer.close()


async def test_the_socket_is_its_users_alone(runtime: RuntimeDirectory) -> None:
    assert runtime.socket.stat().st_mode & 0o777 == 0o600
    assert runtime.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_not_answered() -> None:
    with tempfile.TemporaryDirectory() as path, RuntimeDirectory(Path(path) / "run") as runtime:
        server = ControlServer(runtime, {"status": lambda: {"state": "ready"}})
        await server.start()
        # Even where the file system lets them in, the daemon looks at who it is.
        Path(path).chmod(0o755)
        runtime.path.chmod(0o755)
        runtime.socket.chmod(0o666)
        done = await asyncio.to_thread(_ask_as_nobody, runtime)
        await server.close()
    assert "ready" not in done.stdout
    assert done.stdout == "b''\n" or "ConnectionResetError" in done.stderr or "BrokenPipe" in done.stderr, done.stderr


def _ask_as_nobody(runtime: RuntimeDirectory) -> subprocess.CompletedProcess[str]:
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.send(bytes(sys.argv[2], 'ascii')); print(s.recv(100))"
    )
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", script]
    command += [str(runtime.socket), '{"op":"status"}\n']
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_where_nobody_listens_tp2_is_not_running(tmp_path: Path) -> None:
    runtime = RuntimeDirectory(tmp_path)
    with pytest.raises(NotRunning, match="tp2 is not running"):
        client.ask(runtime, "status")
    with pytest.raises(NotRunning):
        client.stop(runtime)


def test_asking_needs_neither_the_kubernetes_nor_the_ssh_client() -> None:
    script = (
        "import sys, tp2.cli, tp2.terminal.screen;"
        "heavy = {'asyncssh', 'kubernetes_asyncio', 'aiohttp', 'asyncio', 'netaddr', 'dnslib'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
