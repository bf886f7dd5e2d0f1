"""A machine of files in a directory, for the checks to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tp2.diagnosis.machine import Machine, Ran
from tp2.forward.routes import Route

ALL_CAPABILITIES = "CapEff:\t000001ffffffffff\n"


def machine(root: Path, files: Mapping[str, str] | None = None, **more: Any) -> Machine:
    """Return a machine that has *files*, on which everything else is well."""
    defaults: dict[str, str] = {
        "/etc/resolv.conf": "nameserver 192.0.2.53\n",
        "/etc/nsswitch.conf": "hosts: files dns\n",
        "/etc/hosts": "127.0.0.1 localhost\n",
        "/proc/self/status": ALL_CAPABILITIES,
        "/dev/net/tun": "",
    }
    for name, content in {**defaults, **(files or {})}.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    settings: dict[str, Any] = {
        "root": root,
        "platform": "linux",
        "environ": {},
        "uid": 0,
        "which": lambda name: None,
        "run": programs({}),
        "bind": lambda address, port: None,
        "route_to": lambda address: None,
        "routes": lambda: list[Route](),
        "limit": lambda: (1024, 65536),
        **more,
    }
    return Machine(**settings)


def programs(known: Mapping[str, Ran | Exception]) -> Callable[..., Any]:
    """Return what runs programs: the outcome of each is known by the last words of its command line."""

    async def run(*command: str) -> Ran:
        words = " ".join(command)
        for name, outcome in known.items():
            if words.endswith(name):
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome
        raise FileNotFoundError(2, "No such file or directory")

    return run


def process(root: Path, pid: int, *command: str) -> None:
    """Have a process run."""
    directory = root / "proc" / str(pid)
    directory.mkdir(parents=True)
    (directory / "cmdline").write_text("\0".join(command) + "\0")
