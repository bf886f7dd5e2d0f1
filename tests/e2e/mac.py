"""The laptop as a Mac, as far as doubles go: a pf that does what it is told, a resolver that heeds resolver(5)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.doubles import macresolver
from tests.doubles.pfctl import Double
from tests.e2e.conftest import Laptop
from tp2.sandbox.box import NAMESERVER
from tp2.sandbox.namespaces import SEARCH_PATH

#: The options that have tp2 use it.
PF = ("--forwarder", "pf", "--fallback", NAMESERVER)


@contextmanager
def pf_of_a_mac(path: Path) -> Iterator[Double]:
    """Put a pf on the PATH of whatever is started on the laptop meanwhile, with its memory at *path*."""
    machine = Double(path)
    machine.program(
        "pfctl",
        "from tests.doubles.pfctl import main\nfrom tests.doubles.pfkernel import follow\n"
        f"try:\n    main({str(path)!r})\nfinally:\n    if '-a' in sys.argv:\n        follow({str(path)!r})",
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in ("box", "namespaces"):
            patch.setattr(f"tp2.sandbox.{module}.SEARCH_PATH", f"{machine.bin}{os.pathsep}{SEARCH_PATH}")
        yield machine
    assert machine.state["violations"] == []


@contextmanager
def resolver_of_a_mac(laptop: Laptop) -> Iterator[None]:
    """Programs on the laptop ask a resolver that heeds /etc/resolver."""
    process = laptop.host.start(sys.executable, macresolver.__file__, NAMESERVER, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    laptop.host.write_etc("resolv.conf", "nameserver 127.0.0.1\n")
    try:
        yield
    finally:
        laptop.host.write_etc("resolv.conf", f"nameserver {NAMESERVER}\n")
        process.kill()
        process.wait()
