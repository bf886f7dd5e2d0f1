"""Nothing stays root: the daemon is the user, what it makes is theirs, and the helper is nobody else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Laptop
from tp2.forward.capabilities import OWN_USER
from tp2.sandbox.box import tp2_command

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")


@dataclass
class Person:
    """An ordinary user of the laptop, with a home directory of their own."""

    laptop: Laptop
    home: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.laptop.host.command(), *arguments],
            env={**self.laptop.box.environment, "TP2_RUNTIME_DIR": str(self.home / "run"), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @property
    def up_command(self) -> list[str]:
        return [
            *tp2_command("up", "--detach", "--remote", self.laptop.box.remote),
            *("--kubeconfig", str(self.home / "kubeconfig")),
            *("--identity", str(self.home / "identity")),
            *("--host-key", str(self.home / "host_key.pub")),
        ]

    def owners(self) -> dict[str, int]:
        """The users of tp2's processes."""
        found = {}
        for pid in self.laptop.host.processes():
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            # sudo, whose command line ends as the helper's does, is neither.
            if command[0] == os.fsencode(sys.executable) and b"tp2" in command and b"up" in command:
                found["daemon"] = Path(f"/proc/{pid}").stat().st_uid
            elif command[0] == os.fsencode(sys.executable) and b"tp2.forward.helper" in command:
                found["helper"] = Path(f"/proc/{pid}").stat().st_uid
        return found

    def has_tp2(self) -> None:
        """tp2 is up, the helper is a user of its own, and it works."""
        assert self.laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"
        assert self.owners() == {"daemon": NOBODY, "helper": OWN_USER}
        assert {path.stat().st_uid for path in self.home.rglob("*")} == {NOBODY}

    def has_nothing_left(self) -> None:
        assert self.laptop.ruleset() == ""
        assert self.owners() == {}
        assert sorted(path.name for path in self.home.iterdir()) == ["host_key.pub", "identity", "kubeconfig"]


@pytest.fixture
def person(laptop: Laptop) -> Iterator[Person]:
    # Their home: a directory of their own, on a path that they can walk.
    laptop.box.directory.chmod(0o755)
    home = laptop.box.directory / "home"
    home.mkdir()
    for source, name in (
        (laptop.box.kubeconfig, "kubeconfig"),
        (laptop.box.identity, "identity"),
        (laptop.box.host_key, "host_key.pub"),
    ):
        shutil.copy(source, home / name)
        os.chown(home / name, NOBODY, NOBODY)
    os.chown(home, NOBODY, NOBODY)
    yield Person(laptop, home)
    shutil.rmtree(home)


def test_under_sudo_the_daemon_runs_as_the_user_and_the_helper_as_a_user_of_its_own(person: Person) -> None:
    # As sudo sets them.
    sudo = {"SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY), "SUDO_USER": "nobody"}
    done = person.run(*person.up_command, **sudo)
    assert done.returncode == 0, done.stderr
    person.has_tp2()
    assert person.run(*tp2_command("down"), **sudo).returncode == 0
    person.has_nothing_left()


def test_without_root_the_helper_alone_goes_through_sudo(person: Person) -> None:
    if person.run(*AS_NOBODY, sys.executable, "-c", "import tp2.cli").returncode != 0:
        pytest.skip("this Python, or this checkout, is closed to other users")
    person.laptop.host.write_etc("sudoers", "nobody ALL=(root) NOPASSWD: ALL\n")
    done = person.run(*AS_NOBODY, *person.up_command)
    assert done.returncode == 0, done.stderr
    person.has_tp2()
    assert person.run(*AS_NOBODY, *tp2_command("down")).returncode == 0
    person.has_nothing_left()
