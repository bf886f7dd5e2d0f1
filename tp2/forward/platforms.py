"""Which rules a machine has: nftables on Linux, pf on macOS and FreeBSD."""

from __future__ import annotations

import sys
from typing import Final

from tp2.errors import ForwarderError
from tp2.forward.rules import Rules

AUTO: Final = "auto"

#: What ``--forwarder`` takes.
KINDS: Final = (AUTO, "nftables", "pf")


def choose(kind: str = AUTO) -> Rules:
    """Return the rules of *kind*, one of :data:`KINDS`; nothing is claimed yet.

    :raises ForwarderError: this machine has none that tp2 knows.
    :raises ValueError: *kind* is not one of them.
    """
    if kind not in KINDS:
        raise ValueError(f"not a kind of forwarding rules: {kind[:20]!r}")
    if kind == AUTO:
        kind = _of_this_machine()
    # Imported here: each needs what only its own platform has.
    if kind == "pf":
        from tp2.forward.pf import Pf

        return Pf()
    from tp2.forward.nftables import Nftables

    return Nftables()


def _of_this_machine() -> str:
    if sys.platform == "linux":
        return "nftables"
    if sys.platform == "darwin" or sys.platform.startswith("freebsd"):
        return "pf"
    raise ForwarderError(
        "cannot capture traffic",
        f"tp2 knows no forwarding rules of {sys.platform}",
        "use tp2 on Linux, macOS or FreeBSD; elsewhere its SOCKS5 proxy is of use",
    )
