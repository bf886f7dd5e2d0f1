"""What Tab completes: in a real bash, as its users have it, from files and from the control socket."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import CompletionItem

from tp2.cli import cli
from tp2.control.server import ControlServer
from tp2.runtime import RuntimeDirectory
from tp2.terminal import completion

EKS = "arn:aws:eks:eu-west-1:123456789012:cluster/shop"

KUBECONFIG = f"""
contexts:
- {{name: staging, context: {{cluster: st, user: me, namespace: shop}}}}
- {{name: production, context: {{cluster: pr}}}}
- {{name: "{EKS}", context: {{cluster: pr}}}}
- {{name: "with space", context: {{cluster: pr}}}}
- {{context: without-a-name}}
- just-a-word
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "kubeconfig"
    file.write_text(KUBECONFIG)
    program = tmp_path / "tp2"
    program.write_text(f"#!{sys.executable}\nfrom tp2.cli import main\nmain()\n")
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TP2_", "SUDO_", "COMP_"))}
    return {
        **kept,
        "KUBECONFIG": str(file),
        "TP2_RUNTIME_DIR": str(tmp_path / "run"),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }


@functools.cache
def source() -> str:
    """What is evaluated in ~/.bashrc."""
    return completion.Bash(cli, {}, "tp2", "_TP2_COMPLETE").source()


def complete(environment: dict[str, str], line: str) -> list[str]:
    # The calls are those that bash makes itself: see COMP_LINE and COMP_POINT in bash(1).
    script = """
        eval "$2"
        COMP_LINE=$1 COMP_POINT=${#1} COMPREPLY=()
        _tp2_completion tp2
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    done = subprocess.run(
        [bash, "--norc", "-c", script, "bash", line, source()],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines() if done.stdout != "\n" else []


def test_the_command_of_the_readme_gives_the_source(environment: dict[str, str]) -> None:
    asked = {**environment, "_TP2_COMPLETE": "bash_source"}
    done = subprocess.run(["tp2"], env=asked, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == source().strip()


def test_contexts_are_completed(environment: dict[str, str]) -> None:
    assert complete(environment, "tp2 up --context ") == ["staging", "production", EKS, "with space"]
    assert complete(environment, "tp2 up --context s") == ["staging"]
    assert complete(environment, "tp2 install --context p") == ["production"]


def test_of_a_name_with_colons_bash_is_handed_what_it_replaces(environment: dict[str, str]) -> None:
    assert complete(environment, "tp2 up --context arn:aws:ek") == ["eks:eu-west-1:123456789012:cluster/shop"]


def test_contexts_come_from_the_kubeconfig_that_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other").write_text("contexts: [{name: elsewhere, context: {}}]")
    assert complete(environment, f"tp2 up --kubeconfig {tmp_path}/other --context ") == ["elsewhere"]
    several = {**environment, "KUBECONFIG": f"{tmp_path}/other:{tmp_path}/missing:{environment['KUBECONFIG']}"}
    assert complete(several, "tp2 up --context ")[:2] == ["elsewhere", "staging"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"contexts: 7", b"[]", b"contexts: [{name: [1]}]"])
def test_a_broken_kubeconfig_completes_nothing_and_says_nothing(environment: dict[str, str], content: bytes) -> None:
    Path(environment["KUBECONFIG"]).write_bytes(content)
    assert complete(environment, "tp2 up --context ") == []


def test_without_a_running_tp2_the_namespaces_are_those_of_the_contexts(environment: dict[str, str]) -> None:
    assert complete(environment, "tp2 up --namespace ") == ["shop"]
    assert complete(environment, "tp2 up -n shop -n ") == []


def test_commands_and_options_are_completed(environment: dict[str, str]) -> None:
    assert complete(environment, "tp2 mapp") == ["mappings"]
    assert complete(environment, "tp2 service unin") == ["uninstall"]
    assert complete(environment, "tp2 up --mode p") == ["portmap"]


ROWS = [
    {"name": "web.shop", "address": "10.96.1.1", "port": 80},
    {"name": "web.shop", "address": "10.96.1.1", "port": 443},
    {"name": "db.shop", "address": "fd00::1", "port": 5432},
]


@pytest.fixture
async def running(environment: dict[str, str]) -> AsyncIterator[dict[str, str]]:
    """The control socket of a tp2 with mappings."""
    with RuntimeDirectory(Path(environment["TP2_RUNTIME_DIR"])) as directory:
        operations: dict[str, Callable[[], dict[str, Any]]] = {
            "namespaces": lambda: {"namespaces": ["blog", "shop", "kube-system"]},
            "mappings": lambda: {"mappings": ROWS},
        }
        server = ControlServer(directory, operations)
        await server.start()
        yield environment
        await server.close()


async def test_the_namespaces_of_a_running_tp2_are_completed(running: dict[str, str]) -> None:
    assert await asyncio.to_thread(complete, running, "tp2 up -n ") == ["blog", "kube-system", "shop"]
    assert await asyncio.to_thread(complete, running, "tp2 up -n shop -n b") == ["blog"]


def ask(environment: dict[str, str], incomplete: str) -> list[tuple[str, str | None]]:
    """Complete a mapping's name in a process of its own, whose signals are its own."""
    script = (
        "import sys, json, click; from tp2.terminal import completion\n"
        "command = click.Command('x', params=[click.Argument(['name'])])\n"
        "items = completion.mappings(click.Context(command), command.params[0], sys.argv[1])\n"
        "print(json.dumps([(item.value, item.help) for item in items]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, incomplete], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return [(value, words) for value, words in json.loads(done.stdout)]


async def test_live_mappings_are_completed_by_name_or_by_address(running: dict[str, str]) -> None:
    both = [("db.shop", "[fd00::1]:5432"), ("web.shop", "10.96.1.1:80, 10.96.1.1:443")]
    assert await asyncio.to_thread(ask, running, "") == both
    assert await asyncio.to_thread(ask, running, "web") == both[1:]
    assert await asyncio.to_thread(ask, running, "10.96") == [
        ("10.96.1.1:443", "web.shop"),
        ("10.96.1.1:80", "web.shop"),
    ]


def test_nobody_waits_for_a_tp2_that_hangs(environment: dict[str, str]) -> None:
    with RuntimeDirectory(Path(environment["TP2_RUNTIME_DIR"])) as directory, socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(directory.socket))
        deaf.listen()
        began = time.monotonic()
        assert ask(environment, "") == []
        # The time that Python takes to start, on a busy machine, is the greater part; the client would wait for 10 s.
        assert time.monotonic() - began < completion.PATIENCE + 5


def test_nothing_heavy_is_imported_to_complete(environment: dict[str, str]) -> None:
    script = (
        "import sys; from tp2.cli import cli; from click.shell_completion import ShellComplete\n"
        "shell = ShellComplete(cli, {}, 'tp2', 'X')\n"
        "print([item.value for item in shell.get_completions(['up', '--context'], 'st')])\n"
        "print({'asyncio', 'kubernetes_asyncio', 'asyncssh', 'rich', 'uvloop'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "['staging']\nset()\n"


def test_a_completer_that_fails_is_silent() -> None:
    @completion._silent
    def fails(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        raise RuntimeError

    command = click.Command("x", params=[click.Argument(["name"])])
    assert fails(click.Context(command), command.params[0], "") == []
