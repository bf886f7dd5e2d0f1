"""The environment in which somebody called sudo, which sudo does not pass on.

sudo hands its command a new environment: without KUBECONFIG, SSH_AUTH_SOCK, AWS_PROFILE or HTTPS_PROXY, and with a
PATH of its own, on which credential plugins below the user's home are not found. What sudo itself was called with can
be read by root for as long as sudo runs, which is as long as its command does (proc_pid_environ(5)). Where it cannot
(sudo replaced itself by the command, or this was not sudo), what sudo has left is what there is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: How many ancestors are looked at: sudo, its monitor on a terminal of its own, and a shell or two below it.
DEPTH: Final = 16

#: What sudo sets for root, and what is right for the user only as they had it.
_SETS: Final = ("HOME", "LOGNAME", "MAIL", "PATH", "SHELL", "USER", "USERNAME")

PROC: Final = Path("/proc")


def environment_of_sudos_caller(proc: Path = PROC) -> dict[str, str]:
    """Return the environment that the sudo above this process was called in; empty if there is none to be read."""
    try:
        for ancestor in _ancestors(proc):
            if (ancestor / "comm").read_bytes().strip() == b"sudo":
                return parse((ancestor / "environ").read_bytes())
    except OSError:
        # An ancestor has ended, or /proc is not to be had.
        pass
    return {}


def merged(ours: dict[str, str], theirs: dict[str, str], home: str, name: str) -> dict[str, str]:
    """Return the environment to go on with as the user.

    :param ours: as sudo has made it. What it has kept, and what was set on its command line, stays.
    :param theirs: that of the caller.
    :param home: the user's home directory, unless *theirs* names it.
    """
    whole = {**theirs, **ours, "HOME": home, "USER": name, "LOGNAME": name}
    return {**whole, **{key: theirs[key] for key in _SETS if key in theirs}}


def parse(environ: bytes) -> dict[str, str]:
    """Return what ``/proc/PID/environ`` says: ``NAME=VALUE``, each ended by a zero byte."""
    pairs = (entry.decode("utf-8", "surrogateescape").partition("=") for entry in environ.split(b"\0"))
    return {name: value for name, equals, value in pairs if name and equals}


def _ancestors(proc: Path) -> list[Path]:
    found: list[Path] = []
    here = proc / "self"
    while len(found) < DEPTH:
        # Field 4 of stat (proc_pid_stat(5)); field 2, the command, may hold spaces and parentheses.
        parent = int((here / "stat").read_bytes().rpartition(b")")[2].split()[1])
        if parent <= 1:
            break
        here = proc / str(parent)
        found.append(here)
    return found
