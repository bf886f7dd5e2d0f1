"""A machine that systemd has booted: the laptop of a sandbox with an init of its own, in namespaces.

Its files are the machine's, seen through an overlay that is thrown away; its processes are in a PID namespace that ends
with its init; its cgroups are below one of their own. Of what a boot does, only the journal is left: everything else
would change the kernel that it shares with the machine under test.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.e2e.conftest import Ended, Laptop, eventually
from tp2.sandbox.namespaces import SEARCH_PATH

SYSTEMD = Path("/lib/systemd/systemd")
REPOSITORY = Path(__file__).parents[2]
USER, UID = "alice", 1742

_BOOT = """
set -eu
echo $$ >"$CGROUP/cgroup.procs"
exec unshare --mount --pid --fork --uts --ipc --cgroup --kill-child --propagation private -- sh -euc '
    overlay=$DIRECTORY/overlay root=$DIRECTORY/overlay/root
    mkdir -p "$overlay" && mount -t tmpfs tmpfs "$overlay"
    mkdir "$overlay/upper" "$overlay/work" "$root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$overlay/upper,workdir=$overlay/work" "$root"
    cd "$root"
    # Where the files of the tests are, if that is not the root file system.
    for path in "$REPOSITORY" "$PREFIX"; do
        [ -n "$(ls -A ".$path" 2>/dev/null)" ] || { mkdir -p ".$path"; mount --rbind "$path" ".$path"; }
    done
    mount -t proc proc proc
    mount --bind proc/sys proc/sys
    mount -o remount,bind,ro proc/sys
    mount --rbind /sys sys
    umount --recursive sys/fs/cgroup 2>/dev/null || true
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount --rbind /dev dev
    mount -t tmpfs tmpfs run
    for name in resolv.conf hosts nsswitch.conf; do
        rm -f "etc/$name"
        cp "/etc/$name" "etc/$name"
    done
    for unit in usr/lib/systemd/system/*.wants/* etc/systemd/system/*.wants/* lib/systemd/system/*.wants/*; do
        case ${unit##*/} in
            systemd-journald* | *.target) ;;
            *) ln -sf /dev/null "etc/systemd/system/${unit##*/}" ;;
        esac
    done
    rm -rf usr/lib/systemd/system-generators etc/systemd/system/multi-user.target.wants
    sed -i "/^$USER_NAME:/d" etc/passwd
    echo "$USER_NAME:x:$USER_ID:$USER_ID:a person:/home/$USER_NAME:/bin/sh" >>etc/passwd
    mkdir -p "home/$USER_NAME"
    cp -rL "$DIRECTORY/.kube" "$DIRECTORY/.ssh" "$DIRECTORY/host_key.pub" "home/$USER_NAME/"
    chown -R "$USER_ID:$USER_ID" "home/$USER_NAME"
    exec chroot . env -i container=tp2-test SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=1 PATH=/usr/bin \
        /lib/systemd/systemd --system --unit=basic.target --log-target=null --show-status=0
'
"""


class Machine:
    """The laptop with systemd as its init; entering boots it, leaving ends it and leaves nothing."""

    def __init__(self, laptop: Laptop) -> None:
        self.laptop = laptop

    def __enter__(self) -> Self:
        self._cgroup = _cgroup2() / f"tp2-test-{os.getpid()}"
        self._cgroup.mkdir()
        box = self.laptop.box
        environment = {
            "PATH": SEARCH_PATH,
            "CGROUP": str(self._cgroup),
            "DIRECTORY": str(box.directory),
            "REPOSITORY": str(REPOSITORY),
            "PREFIX": sys.prefix,
            "USER_NAME": USER,
            "USER_ID": str(UID),
        }
        self._process: subprocess.Popen[Any] = self.laptop.host.start("sh", "-c", _BOOT, env=environment)
        try:
            eventually(lambda: self.run("systemctl", "is-system-running", "--wait").stdout.strip() == "running")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # With its init, the kernel ends the whole PID namespace.
        self.laptop.host.kill(*self.laptop.host.family(self._process.pid)[:2])
        self._process.wait()
        eventually(self._cgroups_removed)

    def run(self, *arguments: str, user: bool = False, timeout: float = 60.0) -> Ended:
        """Run a command on this machine to its end: as root who came by sudo, or as the *user*."""
        init = self.laptop.host.family(self._process.pid)[1:2]
        if not init:
            return Ended(1, "", "there is no init")
        home = f"/home/{USER}"
        environment = {"HOME": home, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        if user:
            arguments = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--", *arguments)
        else:
            environment |= {"SUDO_UID": str(UID), "SUDO_GID": str(UID), "SUDO_USER": USER}
        command = ["nsenter", f"--target={init[0]}", "--all", "--root", "--wd", "--", *arguments]
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def exists(self, path: str) -> bool:
        """Whether there is such a file on this machine."""
        return self.run("test", "-e", path).code == 0

    def write(self, path: str, content: str) -> None:
        """Write a file as root."""
        done = self.run("sh", "-euc", 'mkdir -p "${1%/*}"; printf %s "$2" >"$1"', "sh", path, content)
        assert done.code == 0, done.stderr

    def _cgroups_removed(self) -> bool:
        for directory, _, _ in os.walk(self._cgroup, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
        return not self._cgroup.exists()


def _cgroup2() -> Path:
    """Return where the unified hierarchy of control groups is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise OSError("there is no cgroup2")


def cannot_boot() -> str | None:
    """Return why no machine can be booted here, or None."""
    if os.geteuid() != 0:
        return "only root can boot an init of its own"
    if not SYSTEMD.exists():
        return "systemd is not installed"
    try:
        where = _cgroup2()
    except OSError as error:
        return str(error)
    return (
        None if os.access(where, os.W_OK) and os.statvfs(where).f_flag & os.ST_RDONLY == 0 else f"{where} is read-only"
    )
