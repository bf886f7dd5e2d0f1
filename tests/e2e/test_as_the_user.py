"""Under sudo, nothing stays root: the daemon is the user, what it makes is theirs, and the helper is nobody else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Laptop
from tp2.forward.capabilities import OWN_USER
from tp2.sandbox.box import tp2_command

NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_under_sudo_the_daemon_runs_as_the_user_and_the_helper_as_a_user_of_its_own(laptop: Laptop) -> None:
    # Their home: a directory of their own, on a path that they can walk.
    laptop.box.directory.chmod(0o755)
    home = laptop.box.directory / "home"
    home.mkdir()
    for source in (laptop.box.kubeconfig, laptop.box.identity, laptop.box.host_key):
        shutil.copy(source, home)
        os.chown(home / source.name, NOBODY, NOBODY)
    os.chown(home, NOBODY, NOBODY)
    # As sudo sets them.
    sudo = {"SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY), "SUDO_USER": "nobody"}
    env = {**laptop.box.environment, **sudo, "TP2_RUNTIME_DIR": str(home / "run")}
    command = [
        *tp2_command("up", "--detach", "--remote", laptop.box.remote),
        *("--kubeconfig", str(home / "kubeconfig")),
        *("--identity", str(home / "identity")),
        *("--host-key", str(home / "host_key.pub")),
    ]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*laptop.host.command(), *arguments], env=env, capture_output=True, text=True, check=False, timeout=60
        )

    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"
    owners = {
        name: Path(f"/proc/{pid}").stat().st_uid
        for pid in laptop.host.processes()
        for name, mark in (("daemon", b"\0up\0--detach"), ("helper", b"tp2.forward.helper"))
        if mark in Path(f"/proc/{pid}/cmdline").read_bytes()
    }
    assert owners == {"daemon": NOBODY, "helper": OWN_USER}
    assert {path.stat().st_uid for path in home.rglob("*")} == {NOBODY}
    assert run(*tp2_command("down")).returncode == 0
    assert laptop.ruleset() == ""
    assert sorted(path.name for path in home.iterdir()) == ["host_key.pub", "identity", "kubeconfig"]
