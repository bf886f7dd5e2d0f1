"""What the nftables of a machine must be able to do for tp2; and, where it cannot, what exactly is missing.

Asked only after the kernel has refused the whole: its own answer is often no more than "No such file or directory".
Each need is tried by itself, in a table that exists for the length of one transaction at most.
"""

from __future__ import annotations

from typing import Final

from tp2.errors import ForwarderError
from tp2.forward.libnftables import Session

_PROBE: Final = "inet tp2-probe"
_NAT: Final = f"add chain {_PROBE} nat {{ type nat hook output priority -110; }}"
_FILTER: Final = f"add chain {_PROBE} filter {{ type filter hook output priority -10; }}"
_MAP: Final = f"add map {_PROBE} m {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; }}"

#: What is needed, in the order of what builds on what: in words, the commands that need it, and what helps.
_NEEDS: Final = (
    ("nftables tables for IPv4 and IPv6 together", "", "modprobe nf_tables_inet (CONFIG_NF_TABLES_INET)"),
    ("NAT in nftables", _NAT, "modprobe nft_chain_nat (CONFIG_NFT_NAT)"),
    ("redirection", f"{_NAT}\nadd rule {_PROBE} nat meta l4proto tcp redirect to :1024", "modprobe nft_redir"),
    (
        "redirection to an address and port from a map",
        f"{_NAT}\n{_MAP}\nadd rule {_PROBE} nat dnat ip to ip daddr . tcp dport map @m",
        "modprobe nft_nat; tp2 needs nft 0.9.9 or newer",
    ),
    ("routing lookups in rules", f"{_NAT}\nadd rule {_PROBE} nat fib daddr type local return", "modprobe nft_fib_inet"),
    (
        "refusing connections",
        f"{_FILTER}\nadd rule {_PROBE} filter meta l4proto tcp reject with tcp reset",
        "modprobe nft_reject_inet",
    ),
    ("connection tracking in rules", f"{_FILTER}\nadd rule {_PROBE} filter ct status dnat return", "modprobe nft_ct"),
    (
        "sets with counters that rules fill",
        f"add set {_PROBE} s {{ type ipv4_addr . inet_service; size 8; flags dynamic,timeout; timeout 1h; counter; }}",
        "tp2 needs Linux 5.12 or newer and nft 0.9.9 or newer",
    ),
)


def missing(session: Session, error: str) -> ForwarderError:
    """Return what is missing, as an error for the user; in the words of *error* where it is nothing known."""
    return lack(session) or ForwarderError(
        "cannot capture traffic with nftables", error, "tp2 needs Linux 5.12 or newer and libnftables 0.9.9 or newer"
    )


def lack(session: Session) -> ForwarderError | None:
    """Return what is missing, as an error for the user; None if nothing is. Needs CAP_NET_ADMIN."""
    if session.run(f"add table {_PROBE}\ndelete table {_PROBE}\n") is None and (
        reason := session.run(f"add table {_PROBE} {{ flags owner; }}\ndelete table {_PROBE}\n")
    ):
        # Without the flag, rules would outlive a tp2 that is killed.
        return ForwarderError(
            "cannot capture traffic with nftables",
            f"no table can have an owner here ({reason})",
            "tp2 needs Linux 5.12 or newer and libnftables 0.9.9 or newer: see 'uname -r' and 'nft --version'",
        )
    for what, commands, remedy in _NEEDS:
        if reason := session.run(f"add table {_PROBE}\n{commands}\ndelete table {_PROBE}\n"):
            return ForwarderError(
                "cannot capture traffic with nftables", f"this kernel lacks {what} ({reason})", f"as root: {remedy}"
            )
    return None
