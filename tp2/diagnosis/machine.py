"""This machine as the checks see it: files, programs, limits and sockets, each of which a test can put another for.

Nothing in here changes anything, and nothing needs a privilege; what only root may see is left out for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tp2.forward.routes import Route
from tp2.system import interfaces
from tp2.types import DNS_PORT

#: Seconds that a program has for what takes it a moment.
PROGRAM_TIMEOUT: Final = 3.0


class Ran(NamedTuple):
    """How a program ended."""

    code: int
    output: str
    errors: str


class Process(NamedTuple):
    """A process in this network: its id and its command line."""

    pid: int
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called: its program, or the script that an interpreter runs."""
        words = [Path(word).name for word in self.command[:3] if word and not word.startswith("-")]
        interpreted = len(words) > 1 and words[0].rstrip("0123456789.") in ("python", "sh", "bash", "node", "perl")
        return words[1] if interpreted else words[0] if words else ""


async def run_program(*command: str) -> Ran:
    """Run a program to its end, without a terminal.

    :raises OSError: there is no such program, or it cannot be run.
    :raises TimeoutError: it did not end.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "cat"},
    )
    try:
        async with asyncio.timeout(PROGRAM_TIMEOUT):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ran(process.returncode or 0, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace"))


def try_to_bind(address: str, port: int) -> OSError | None:
    """Return why nothing can listen on TCP *address*:*port*; None if something can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(1)
    except OSError as error:
        return error
    return None


def try_to_route(address: str) -> OSError | None:
    """Return why the kernel knows no way to *address*; None if it does. Nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((address, DNS_PORT))
    except OSError as error:
        return error
    return None


def _routes() -> list[Route]:
    if sys.platform != "linux":
        return []
    from tp2.forward.routes import all_routes

    return all_routes()


@dataclass(frozen=True)
class Machine:
    """What the checks ask of a machine.

    :param root: where its file system is.
    :param limit: gives the limit on open files: what holds, and how far it may be raised (getrlimit(2)).
    """

    root: Path = Path("/")
    platform: str = sys.platform
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    uid: int = field(default_factory=os.geteuid)
    which: Callable[[str], str | None] = shutil.which
    run: Callable[..., asyncio.Future[Ran]] = run_program  # type: ignore[assignment]
    bind: Callable[[str, int], OSError | None] = try_to_bind
    route_to: Callable[[str], OSError | None] = try_to_route
    routes: Callable[[], list[Route]] = _routes
    addresses: Callable[[], list[interfaces.Address]] = interfaces.addresses
    limit: Callable[[], tuple[int, int]] = lambda: resource.getrlimit(resource.RLIMIT_NOFILE)

    def path(self, name: str) -> Path:
        """Return where the file of this absolute name is."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """Return what is in a file; None if it cannot be read."""
        try:
            return self.path(name).read_bytes().decode("utf-8", "replace")
        except OSError:
            return None

    def link(self, name: str) -> str | None:
        """Return where a symbolic link leads, as an absolute name; None if it is none."""
        try:
            target = self.path(name).readlink()
        except OSError:
            return None
        return os.path.normpath(Path(name).parent / target)

    def is_linux(self) -> bool:
        """Whether it runs Linux."""
        return self.platform == "linux"

    def processes(self) -> Iterator[Process]:
        """Give the processes of this machine's network, as far as this user may see them (proc(5))."""
        own = self._network("self")
        for entry in sorted(self.path("/proc").glob("[0-9]*")):
            if not entry.name.isdigit() or entry.name == str(os.getpid()):
                continue
            # Whoever's network may not be seen is taken to be in this one.
            if own is not None and self._network(entry.name) not in (own, None):
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
                if words != [""]:
                    yield Process(int(entry.name), tuple(words))

    def listener(self, address: str, port: int) -> Process | None:
        """Return the process that listens on TCP *address*:*port*, if this user may know."""
        inodes = {
            fields[9]
            for table in ("/proc/net/tcp", "/proc/net/tcp6")
            for line in (self.read(table) or "").splitlines()[1:]
            if len(fields := line.split()) > 9 and fields[3] == "0A" and fields[1].endswith(f":{port:04X}")
        }
        wanted = {f"socket:[{inode}]" for inode in inodes}
        if not wanted:
            return None
        for process in self.processes():
            with contextlib.suppress(OSError):
                for entry in self.path(f"/proc/{process.pid}/fd").iterdir():
                    if str(entry.readlink()) in wanted:
                        return process
        return None

    def _network(self, pid: str) -> str | None:
        try:
            return str(self.path(f"/proc/{pid}/ns/net").readlink())
        except OSError:
            return None
