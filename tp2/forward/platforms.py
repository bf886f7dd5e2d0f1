"""Which rules a machine has: nftables on Linux, pf on macOS and FreeBSD."""

from __future__ import annotations

import sys
from typing import Final, Literal

from tp2.errors import ForwarderError

AUTO: Final = "auto"

#: What ``--forwarder`` takes.
KINDS: Final = (AUTO, "nftables", "pf")


def choose(kind: str = AUTO) -> Literal["nftables", "pf"]:
    """Return which rules to use: *kind*, one of :data:`KINDS`, or what this machine has.

    :raises ForwarderError: this machine has none that tp2 knows.
    :raises ValueError: *kind* is not one of them.
    """
    match kind:
        case "nftables" | "pf":
            return kind
        case "auto" if sys.platform == "linux":
            return "nftables"
        case "auto" if sys.platform == "darwin" or sys.platform.startswith("freebsd"):
            return "pf"
        case "auto":
            raise ForwarderError(
                "cannot capture traffic",
                f"tp2 knows no forwarding rules of {sys.platform}",
                "use tp2 on Linux, macOS or FreeBSD; elsewhere its SOCKS5 proxy is of use",
            )
    raise ValueError(f"not a kind of forwarding rules: {kind[:20]!r}")
