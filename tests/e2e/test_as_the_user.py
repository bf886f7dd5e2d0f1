"""Nothing stays root, with sudo before tp2 and without: everything but the helper is the user's, and done as the user.

The sudo is the real one, with Debian's configuration. The user has what sudo does not pass on: a kubeconfig that
KUBECONFIG names, a credential plugin on a PATH of their own, and a variable that it wants.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Ended, Laptop, eventually
from tests.e2e.kubelet import Kubelet
from tp2.sandbox.box import tp2_command
from tp2.sandbox.contents import OBJECTS
from tp2.sandbox.objects import service

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

#: Says who runs it and with what, keeps its token in a cache as such plugins do, and gives it to tp2.
PLUGIN = """\
#!/bin/sh
set -e
mkdir -p "$HOME/.cache/plugin"
echo "$(id -u) $(id -g) $HOME $STAGE $USER" >>"$HOME/.cache/plugin/calls"
cat "{token}" >"$HOME/.cache/plugin/token"
printf '{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{{"token":"%s"}}}}' \\
    "$(cat "$HOME/.cache/plugin/token")"
"""


class User:
    """Somebody at the laptop who is not root, and may call sudo without a password."""

    def __init__(self, laptop: Laptop, home: Path) -> None:
        self.laptop = laptop
        self.home = home
        self.calls = home / ".cache" / "plugin" / "calls"

    def take(self, kubeconfig: Path, token: Path) -> None:
        """Use the cluster of *kubeconfig*, by way of a plugin that reads *token*."""
        content: dict[str, Any] = yaml.safe_load(kubeconfig.read_text())
        content["users"][0]["user"] = {
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": "login-plugin",
                "interactiveMode": "IfAvailable",
            }
        }
        self._write(self.home / "staging", json.dumps(content), 0o600)
        self._write(self.home / "bin" / "login-plugin", PLUGIN.format(token=token), 0o755)
        self.calls.unlink(missing_ok=True)

    def run(self, *command: str) -> Ended:
        """Run a command as them, in their environment and in nobody else's."""
        environment = {
            "HOME": str(self.home),
            "USER": "nobody",
            "LOGNAME": "nobody",
            "SHELL": "/bin/sh",
            "PATH": f"{self.home}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "KUBECONFIG": str(self.home / "staging"),
            "STAGE": "staging",
            "TP2_RUNTIME_DIR": str(self.home / "run"),
            # Of the machine, not of the user: where this checkout's Python looks for byte code.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", "-i"]
        assignments = [f"{name}={value}" for name, value in environment.items()]
        return self.laptop.run(*become, *assignments, *command)

    def owners(self) -> set[int]:
        """Whose the things below their home are."""
        return {path.lstat().st_uid for path in self.home.rglob("*")}

    def _write(self, path: Path, text: str, mode: int) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        for entry in (path, path.parent):
            os.chown(entry, NOBODY, NOBODY)


@pytest.fixture(scope="module")
def user(laptop: Laptop) -> User:
    box = laptop.box
    # A path that they can walk to their home, to the cluster's token, and to Python.
    for directory in (box.directory, box.directory / "api"):
        directory.chmod(0o755)
    open_the_way_to_python(laptop)
    laptop.host.shell("""
        echo 'nobody ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/nobody
        chmod 440 /etc/sudoers.d/nobody""")
    one = User(laptop, box.directory / "home")
    one.home.mkdir()
    (one.home / ".ssh").mkdir()
    for name in ("id_ed25519", "id_ed25519.pub"):
        (one.home / ".ssh" / name).write_bytes((box.identity.parent / name).read_bytes())
    for path in (one.home, *one.home.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    (one.home / ".ssh" / "id_ed25519").chmod(0o600)
    token = box.directory / "api" / "token"
    token.chmod(0o644)
    one.take(box.kubeconfig, token)
    return one


def open_the_way_to_python(laptop: Laptop) -> None:
    """Let everybody on the laptop walk to this Python, which may lie in root's home."""
    for path in {Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2]}:
        for directory in reversed(path.parents):
            if directory.stat().st_mode & 0o001 or not path.is_dir():
                continue
            # Of the closed directory, only what leads to Python is left; the machine's own is as it was.
            laptop.host.shell(f"""
                mkdir -p /run/python
                mount --bind {path} /run/python
                mount -t tmpfs -o mode=755 tmpfs {directory}
                mkdir -p {path}
                mount --move /run/python {path}""")
            break


def processes(laptop: Laptop) -> dict[str, int]:
    """Whose the daemon and the helper are."""
    found = {}
    for pid in laptop.host.processes():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        owner = Path(f"/proc/{pid}").stat().st_uid
        if b"tp2.forward.helper" in words and words[0].endswith(b"python"):
            found["helper"] = owner
        elif b"--detach" in words and words[0].endswith(b"python"):
            found["daemon"] = owner
    return found


SUDO = ("sudo", "-n")


@pytest.mark.parametrize("prefix", [SUDO, ()], ids=["sudo tp2 up", "tp2 up"])
def test_plugin_keys_and_files_are_the_users(user: User, prefix: tuple[str, ...]) -> None:
    laptop = user.laptop
    done = user.run(*prefix, *tp2_command("up", "--detach"))
    assert done.code == 0, done.stderr
    try:
        assert laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"
        helper = processes(laptop).pop("helper")
        assert processes(laptop)["daemon"] == NOBODY
        # Root's, or of a user of its own that root has made it: not the person's in any case.
        assert helper != NOBODY
        _expire(user)
        wanted = f"{NOBODY} {NOBODY} {user.home} staging nobody"
        eventually(lambda: len(user.calls.read_text().splitlines()) > 1)
        new = service("shop", "after", "10.96.1.1", {"http": 80})
        laptop.box.create(new)
        eventually(lambda: laptop.lookup("after.shop.svc.cluster.local") == ["10.96.1.1"])
        laptop.box.delete(new)
        assert set(user.calls.read_text().splitlines()) == {wanted}
        assert user.owners() == {NOBODY}
        assert user.run(*tp2_command("status")).code == 0
    finally:
        assert user.run(*prefix, *tp2_command("down")).code == 0
    assert laptop.ruleset() == ""
    assert user.owners() == {NOBODY}
    assert not (user.home / "run").exists() or list((user.home / "run").iterdir()) == []


@pytest.mark.parametrize("prefix", [SUDO, ()], ids=["sudo tp2 doctor", "tp2 doctor"])
def test_what_the_doctor_runs_is_run_as_the_user(user: User, prefix: tuple[str, ...]) -> None:
    user.calls.unlink(missing_ok=True)
    done = user.run(*prefix, *tp2_command("doctor", "--json"))
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    for check in ("forwarder", "privilege", "plugin", "login", "API", "handshake", "forwarding"):
        assert findings[check]["state"] == "ok", findings[check]
    assert set(user.calls.read_text().splitlines()) == {f"{NOBODY} {NOBODY} {user.home} staging nobody"}
    assert user.owners() == {NOBODY}


def _expire(user: User) -> None:
    """The token is good no more; the plugin has the next one."""
    box = user.laptop.box
    token = box.directory / "api" / "token"
    text = f"{token.read_text()}x"
    token.write_text(text)
    content = json.loads(box.kubeconfig.read_text())
    content["users"][0]["user"]["token"] = text
    box.kubeconfig.write_text(json.dumps(content))
    os.kill(box.api.pid, signal.SIGHUP)


@pytest.mark.parametrize("prefix", [SUDO, ()], ids=["sudo tp2 install", "tp2 install"])
def test_installing_is_done_as_the_user_too(user: User, prefix: tuple[str, ...]) -> None:
    laptop = user.laptop
    name = "with-sudo" if prefix else "without"
    api = laptop.box.start_api(OBJECTS, name, 6447)
    directory = laptop.box.directory / name
    directory.chmod(0o755)
    (directory / "token").chmod(0o644)
    user.take(directory / "kubeconfig", directory / "token")
    try:
        with Kubelet(laptop.box, directory / "kubeconfig", "10.244.9.81"):
            done = user.run(*prefix, *tp2_command("install"))
            assert done.code == 0, done.stderr
            assert user.run(*prefix, *tp2_command("up", "--detach")).code == 0
            assert laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"
            assert user.run(*prefix, *tp2_command("down")).code == 0
            assert user.run(*prefix, *tp2_command("uninstall")).code == 0
    finally:
        api.kill()
        api.wait()
    assert set(user.calls.read_text().splitlines()) == {f"{NOBODY} {NOBODY} {user.home} staging nobody"}
    assert user.owners() == {NOBODY}


def test_what_is_set_on_sudos_command_line_stays(user: User) -> None:
    """As ``sudo TP2_IDLE_TIMEOUT=... tp2 up`` says."""
    done = user.run(*SUDO, "TP2_IDLE_TIMEOUT=soon", *tp2_command("up"))
    assert done.code == 2
    assert "soon" in done.stderr


@pytest.mark.parametrize("prefix", [SUDO, ()], ids=["sudo tp2 config", "tp2 config"])
def test_the_configuration_is_the_users(user: User, prefix: tuple[str, ...]) -> None:
    file = user.home / ".config" / "tp2" / "config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('identity = "~/.ssh/id_ed25519"\n')
    for path in (file, file.parent, file.parent.parent):
        os.chown(path, NOBODY, NOBODY)
    try:
        done = user.run(*prefix, *tp2_command("config", "--json"))
        assert done.code == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["file"] == {"path": str(file), "exists": True}
        assert answer["settings"]["identity"]["value"] == str(user.home / ".ssh" / "id_ed25519")
        assert answer["settings"]["kubeconfig"]["value"] == str(user.home / "staging")

        # What root alone may read is not quoted to the user.
        file.unlink()
        secret = user.laptop.box.directory / "secret"
        secret.write_text("root's own")
        secret.chmod(0o600)
        file.symlink_to(secret)
        done = user.run(*prefix, *tp2_command("config"))
        assert (done.code, "permission denied" in done.stderr, "root's own" in done.stderr) == (2, True, False)
    finally:
        file.unlink()
