"""Who runs as whom: the helper as root, everything else as the user.

``sudo tp2 up`` starts as root: the helper keeps root, and the daemon becomes the user who called sudo, so that
kubeconfig, credential plugins and SSH keys are that user's and nothing that root owns is left in their home. It gets
that user's environment back as well (:mod:`tp2.forward.caller`), without which a plugin may not even be found.
``tp2 up`` without root starts the helper through sudo, which may ask for a password on the terminal, before
anything has been changed. Root without a sudo user (a container, a server) stays root.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tp2.errors import PrivilegeError
from tp2.forward.caller import environment_of_sudos_caller, merged

# -I: the root process takes no modules from the working directory or from the user's PYTHONPATH.
# -B: it leaves no byte code of its own where the user has installed tp2.
_HELPER = [sys.executable, "-I", "-B", "-m", "tp2.forward.helper"]


@dataclass(frozen=True, slots=True)
class User:
    """The person tp2 works for. ``home`` is their home directory."""

    uid: int
    gid: int
    name: str
    home: Path


def calling_user() -> User:
    """Return the user who called: of sudo if this is root through sudo, else of this process."""
    uid = os.getuid()
    if uid == 0:
        with_sudo = os.environ.get("SUDO_UID", "")
        if with_sudo.isdecimal():
            uid = int(with_sudo)
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return User(uid, os.getgid() if uid == os.getuid() else uid, str(uid), Path(os.environ.get("HOME", "/")))
    return User(uid, entry.pw_gid, entry.pw_name, Path(entry.pw_dir))


def become(user: User) -> None:
    """Give up root for good and become *user*, with their groups, home and environment.

    Does nothing when already them.
    """
    if os.geteuid() != 0 or user.uid == 0:
        return
    # While it may still be read; it takes effect when root is gone.
    theirs = environment_of_sudos_caller()
    os.initgroups(user.name, user.gid)
    # Of root's, these set the saved ids too (POSIX, setuid(2)); macOS has no setresuid(2).
    os.setgid(user.gid)
    os.setuid(user.uid)
    os.environ.update(merged(dict(os.environ), theirs, str(user.home), user.name))


@contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Open files as *user* would, for a while: root is given up, and taken back. Does nothing when already them.

    No other thread may run meanwhile: it would be them too.
    """
    if os.geteuid() != 0 or user.uid == 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.initgroups(user.name, user.gid)
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def start_helper(kind: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the helper, through sudo if this process is not root.

    :param kind: which rules it is to set, one of :data:`tp2.forward.platforms.KINDS`.

    Returns its process and our end of the socket pair, on which it speaks first (see :mod:`tp2.forward.protocol`).

    :raises PrivilegeError: not root, and there is no sudo.
    """
    command = [*_HELPER, kind]
    stderr = None
    if os.geteuid() != 0:
        sudo = shutil.which("sudo")
        if sudo is None:
            raise PrivilegeError(
                "cannot capture traffic",
                "changing forwarding rules needs root, this is an ordinary user, and there is no sudo",
                "run tp2 up as root, or install sudo and allow this user to run it",
            )
        # Without a terminal sudo could only hang on its question: let it refuse instead.
        options = ["--prompt=[tp2] password for %p, to set forwarding rules: "]
        if not sys.stdin.isatty():
            options.append("--non-interactive")
            stderr = subprocess.PIPE
        command = [sudo, *options, "--", *command]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=stderr)
    return process, ours
