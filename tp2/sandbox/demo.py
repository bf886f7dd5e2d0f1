"""``tp2 demo``: the main job from start to end in the sandbox, as a person would see it in a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import click

from tp2.errors import Tp2Error
from tp2.sandbox.box import NAMESERVER, SITE, Sandbox, tp2_command
from tp2.sandbox.namespaces import SEARCH_PATH

#: Seconds after which something that takes a moment has gone wrong.
PATIENCE = 30.0

#: A process of its own for everything: when it ends, however it ends, the kernel ends all that it started.
_CONFINED = "TP2_DEMO_CONFINED"


def run(*, shell: bool) -> int:
    """Run the demonstration, or with *shell* leave the caller in a shell on the laptop with tp2 up.

    Returns the exit code: 0 if everything shown went as it should.

    :raises Tp2Error: the sandbox cannot be built here.
    """
    if _CONFINED not in os.environ:
        return _confined(shell=shell)
    _say("Building a laptop, an internet and a cluster, in network namespaces of their own ...")
    with Sandbox() as box:
        _say(
            f"The laptop's nameserver is {NAMESERVER}; its router knows nothing of the cluster's addresses.\n"
            "# The cluster has the SSH endpoint that `tp2 install` puts there, and its API server leads to it."
        )
        return _shell(box) if shell else _show(box)


def _confined(*, shell: bool) -> int:
    user = ["--user", "--map-current-user", "--keep-caps"] if os.geteuid() != 0 else []
    command = ["unshare", *user, "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--"]
    options = ["--shell"] if shell else []
    environment = {**os.environ, _CONFINED: "1"}
    return subprocess.run([*command, *tp2_command("demo", *options)], env=environment, check=False).returncode


def _show(box: Sandbox) -> int:
    before = box.laptop.run("nft", "list", "ruleset")
    if _command(box, "curl --silent --show-error --max-time 3 http://web.shop/") == 0:
        raise _unexpected("the cluster could be reached without tp2")
    _say("As expected: without tp2 the name means nothing here. Now with it:")

    up = _up(box)
    for url in (
        "http://web.shop/",
        "http://web.blog/",
        "http://api.shop:9090/",
        "http://web.shop.svc.cluster.local/",
        f"http://{SITE}/",
    ):
        if _command(box, f"curl --silent --show-error --max-time 10 {url}") != 0:
            raise _unexpected(f"{url} was not fetched")
    if _command(box, "getent hosts db.shop") != 0:
        raise _unexpected("db.shop was not resolved")
    _command(box, "tp2 mappings")

    _say("Now tp2 is killed, without a chance to clean up:")
    click.secho(f"laptop$ kill -KILL {up.pid}", bold=True)
    up.kill()
    up.wait()
    deadline = time.monotonic() + PATIENCE
    while (rules := box.laptop.run("nft", "list", "ruleset")) != before:
        if time.monotonic() > deadline:
            raise _unexpected(f"rules were left behind:\n{rules}")
        time.sleep(0.01)
    _command(box, "nft list ruleset")
    _say("No rule is left: the kernel removed them. And what is not the cluster's works as before:")
    if _command(box, f"curl --silent --show-error --max-time 10 http://{SITE}/") != 0:
        raise _unexpected("the laptop was left without its nameserver")
    click.secho("That is the main job.", fg="green")
    return 0


def _shell(box: Sandbox) -> int:
    up = _up(box)
    _say("You are on the laptop. Try: curl http://web.shop/ ; getent hosts db.shop ; tp2 mappings ; exit")
    shell = os.environ.get("SHELL", "/bin/sh")
    # The person's Ctrl-C is for what runs in the shell.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    subprocess.run([*box.laptop.command(), shell, "-i"], env=_environment(box), check=False)
    up.terminate()
    return up.wait(PATIENCE)


def _up(box: Sandbox) -> subprocess.Popen[str]:
    # The endpoint is in the cluster, and kubeconfig and key are where everybody has them: nothing need be said.
    command = box.up_command(installed=True)
    click.secho(f"laptop$ tp2 {' '.join(command[command.index('up') :])} &", bold=True)
    up = box.laptop.start(
        *command,
        env=box.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert up.stdout is not None
    for line in up.stdout:
        click.echo(line, nl=False)
        if line.startswith("ready"):
            return up
    raise _unexpected(f"tp2 up ended with exit code {up.wait()}; its words are above")


def _command(box: Sandbox, line: str) -> int:
    """Run a line as if it had been typed on the laptop; return its exit code."""
    click.secho(f"laptop$ {line}", bold=True)
    sys.stdout.flush()
    command = [*box.laptop.command(), "sh", "-c", line]
    return subprocess.run(
        command, env=_environment(box), stdin=subprocess.DEVNULL, timeout=PATIENCE, check=False
    ).returncode


def _environment(box: Sandbox) -> dict[str, str]:
    # "tp2" means this very one, installed or not.
    directory = box.directory / "bin"
    if not directory.exists():
        directory.mkdir()
        script = directory / "tp2"
        script.write_text(f'#!/bin/sh\nexec {" ".join(tp2_command())} "$@"\n')
        script.chmod(0o755)
    return {**box.environment, "PATH": f"{directory}:{SEARCH_PATH}", "PS1": "laptop$ "}


def _say(words: str) -> None:
    click.secho(f"\n# {words}", fg="cyan")


def _unexpected(why: str) -> Tp2Error:
    return Tp2Error("the demonstration did not go as it should", why, "report it, with all of the output above")
