"""What processes cost, by the kernel's account (proc(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_TICK: Final = os.sysconf("SC_CLK_TCK")


def cpu(pids: Iterable[int]) -> float:
    """Return the CPU seconds that processes have used, all their threads and those of their children that have ended.

    A process that is gone counts nothing. What the kernel does for them outside of their own time (the receiving end
    of a packet, often) is nobody's, and so not among it.
    """
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            # utime, stime, cutime, cstime: fields 14 to 17, counted from the end of the command, field 2.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICK


def kibibytes(file: Path, field: str) -> float:
    """Return what a line of a file of proc(5) says, such as ``VmRSS`` of /proc/PID/status.

    :raises OSError, LookupError: there is no such file, or no such line in it.
    """
    match = re.search(rf"^{field}:\s+(\d+) kB", file.read_text(encoding="ascii"), re.M)
    if match is None:
        raise LookupError(f"{file} does not say {field}")
    return float(match[1])


def status(pid: int, field: str) -> float:
    """Return the megabytes (10^6 octets) that a line of a process' status says; as :func:`kibibytes`."""
    return kibibytes(Path(f"/proc/{pid}/status"), field) * 1024 / 1e6


def descriptors(pid: int) -> int:
    """Return how many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory(pids: Iterable[int]) -> float:
    """Return the megabytes (10^6 octets) that processes have in memory; what they share is divided among them (PSS).

    :raises OSError: a process is somebody else's.
    """
    total = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            total += sum(int(number) for number in re.findall(r"^Pss:\s+(\d+) kB", rollup, re.M))
    return total * 1024 / 1e6
