"""Which program listens on a TCP port: asked once, for the error message of a port that is taken.

Linux only, from /proc; elsewhere, and for another user's process, the answer is that it is not known.
"""

from __future__ import annotations

from pathlib import Path

_LISTEN = "0A"
"""TCP_LISTEN in the ``st`` column of /proc/net/tcp (proc(5))."""


def holder_of(port: int, proc: Path = Path("/proc")) -> str | None:
    """Return who listens on TCP *port*, such as ``python3 (pid 4711)``, or ``None`` if that cannot be seen."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening(proc / "net" / table, port)}
    if not inodes:
        return None
    links = {f"socket:[{inode}]" for inode in inodes}
    for process in proc.glob("[0-9]*"):
        try:
            if any(str(descriptor.readlink()) in links for descriptor in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue  # it ended meanwhile, or is another user's
    return None


def _listening(table: Path, port: int) -> list[str]:
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return [f[9] for f in fields if f[3] == _LISTEN and int(f[1].rpartition(":")[2], 16) == port]
