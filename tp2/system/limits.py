"""How many files this process may have open, and so how many mappings: each takes a socket, as each connection does."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Final

#: Descriptors kept back for the tunnel, the watches, upstream queries and the SOCKS server.
RESERVED: Final = 1024

#: Where Linux says how far any limit can be raised (proc_sys_fs(5)).
_NR_OPEN: Final = Path("/proc/sys/fs/nr_open")

#: What macOS allows where the limit says that there is none (OPEN_MAX of its setrlimit(2)).
_OPEN_MAX: Final = 10240


def raise_open_files() -> int:
    """Raise the limit on open files as far as this process is allowed to, root further than others; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in sorted({_most(hard), hard, _OPEN_MAX}, reverse=True):
        if wanted <= soft:
            break
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
            return wanted
    return soft


def open_files() -> int:
    """Return how many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def most_mappings(open_files: int) -> int:
    """Return how many mappings fit into a limit on open files: three quarters of it, the rest being connections."""
    return max(1, (open_files - min(RESERVED, open_files // 4)) * 3 // 4)


def _most(hard: int) -> int:
    if os.geteuid() == 0:
        with suppress(OSError, ValueError):
            return max(hard, int(_NR_OPEN.read_text(encoding="ascii")))
    return hard
