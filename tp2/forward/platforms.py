"""Which rules a machine has: nftables on Linux, pf on macOS and FreeBSD."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final, Literal

from tp2.errors import ForwarderError

AUTO: Final = "auto"

#: What ``--forwarder`` takes.
KINDS: Final = (AUTO, "nftables", "pf")


def choose(kind: str = AUTO) -> Literal["nftables", "pf"]:
    """Return which rules to use: *kind*, one of :data:`KINDS`, or what this machine has.

    :raises ForwarderError: this machine has none that tp2 knows, or cannot have those.
    :raises ValueError: *kind* is not one of them.
    """
    match kind:
        case "nftables" if sys.platform != "linux":
            raise ForwarderError(
                "cannot capture traffic with nftables",
                f"nftables is a part of Linux, and this is {sys.platform}",
                "leave --forwarder out: tp2 takes what the machine has",
            )
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


@dataclass(frozen=True, slots=True)
class Platform:
    """How one operating system's pf is used; see the table of :mod:`tp2.forward.pfctl`.

    ``hook``: the anchor that the main ruleset must call, twice. ``counts_references``: -E and -X exist.
    """

    name: str
    anchor: str
    hook: str
    counts_references: bool


MACOS: Final = Platform("macOS", "com.apple/tp2", "com.apple/*", counts_references=True)
FREEBSD: Final = Platform("FreeBSD", "tp2", "tp2", counts_references=False)


def this_platform() -> Platform:
    """Return the platform of this machine; macOS' where it has no pf of its own (a test double's, then)."""
    return FREEBSD if sys.platform.startswith("freebsd") else MACOS
