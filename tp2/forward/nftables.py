"""Forwarding rules on Linux: one nftables table, owned by this process, spoken to through libnftables.

The table carries the *owner* flag (kernel 5.12): nobody else can change it, and the kernel deletes it when the
netlink socket of its owner closes, which happens however the owner dies. So there is nothing to clean up after a
SIGKILL, and no two tp2 can fight over it. The library is used in process, not the ``nft`` program: a process per
rule costs thirty times as much, and could not own the table.

All mappings live in two maps (one a family) with one rule each, so a packet's lookup does not grow with their
number. The chain sits at priority -110 of the output hook: before Docker's own DNAT of its DNS at -100.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Iterable, Sequence

from tp2.errors import AlreadyRunning, ForwarderError, PrivilegeError
from tp2.forward.rules import Inlet
from tp2.types import Destination, Redirect

#: Marks the packets of exempted sockets: ASCII "tp", away from the low bits that VPNs and Kubernetes use.
MARK = 0x7470

LIBRARY = "libnftables.so.1"

_TABLE = "inet tp2"

# Each line is a command of nft(8); together they are one transaction.
_SKELETON = f"""\
create table {_TABLE} {{ flags owner; }}
add map {_TABLE} redirects4 {{ type ipv4_addr . inet_service : inet_service; }}
add map {_TABLE} redirects6 {{ type ipv6_addr . inet_service : inet_service; }}
add set {_TABLE} dns4 {{ type ipv4_addr; }}
add set {_TABLE} dns6 {{ type ipv6_addr; }}
add chain {_TABLE} dns
add chain {_TABLE} output {{ type nat hook output priority -110; policy accept; }}
add rule {_TABLE} output meta mark {MARK:#x} return
add rule {_TABLE} output meta l4proto tcp redirect to :ip daddr . tcp dport map @redirects4
add rule {_TABLE} output meta l4proto tcp redirect to :ip6 daddr . tcp dport map @redirects6
add rule {_TABLE} output ip daddr @dns4 jump dns
add rule {_TABLE} output ip6 daddr @dns6 jump dns
"""


class Nftables:
    """A :class:`tp2.forward.rules.Rules` on nftables. Needs CAP_NET_ADMIN in its network namespace."""

    kind = "nftables"

    def __init__(self) -> None:
        self._library: ctypes.CDLL | None = None
        self._context: int | None = None
        self._redirects: dict[Destination, int] = {}

    def open(self) -> None:
        """Load libnftables and create the table.

        :raises ForwarderError: the library or the kernel's support is missing.
        :raises PrivilegeError: CAP_NET_ADMIN is missing.
        :raises AlreadyRunning: the table exists: another tp2 captures this network namespace.
        """
        self._library = _load()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise ForwarderError(
                "cannot use nftables",
                "libnftables could not open a netlink socket",
                "check that the kernel has nftables (modprobe nf_tables)",
            )
        self._library.nft_ctx_buffer_error(self._context)
        error = self._run(_SKELETON)
        if error is None:
            return
        self.close()
        if "File exists" in error or _owned_by_another(error):
            raise AlreadyRunning(
                "cannot capture traffic",
                "the nftables table 'inet tp2' exists already: another tp2 captures in this network namespace",
                "stop the other one with 'tp2 down' (with its TP2_RUNTIME_DIR), "
                "or, if 'nft list table inet tp2' shows no owner, remove it: nft delete table inet tp2",
            )
        if "not permitted" in error or "must be root" in error:
            raise PrivilegeError(
                "cannot capture traffic",
                f"nftables refused: {error}",
                "run tp2 up as root or through sudo; in a container, grant CAP_NET_ADMIN",
            )
        raise ForwarderError(
            "cannot capture traffic with nftables",
            error,
            "tp2 needs Linux 5.12 or newer with nf_tables, nft_chain_nat and nft_redir (modprobe nft_redir)",
        )

    def capture_dns(self, nameservers: Sequence[str], port: int) -> None:
        """See :meth:`tp2.forward.rules.Rules.capture_dns`."""
        commands = [f"flush chain {_TABLE} dns", f"flush set {_TABLE} dns4", f"flush set {_TABLE} dns6"]
        commands += [f"add rule {_TABLE} dns {proto} dport 53 redirect to :{port}" for proto in ("udp", "tcp")]
        commands += _elements("add element", "dns4", (a for a in nameservers if ":" not in a))
        commands += _elements("add element", "dns6", (a for a in nameservers if ":" in a))
        self._commit(commands)

    def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        """See :meth:`tp2.forward.rules.Rules.update`."""
        wanted = dict(self._redirects)
        for destination in remove:
            wanted.pop(destination, None)
        for redirect in add:
            wanted[redirect.destination] = redirect.local_port
        touched = {*remove, *(redirect.destination for redirect in add)}
        gone = [d for d in touched if d in self._redirects and wanted.get(d) != self._redirects[d]]
        new = [d for d in touched if d in wanted and wanted[d] != self._redirects.get(d)]
        commands = []
        for name, is_ipv6 in (("redirects4", False), ("redirects6", True)):
            keys = (f"{d.address} . {d.port}" for d in gone if d.is_ipv6 is is_ipv6)
            commands += _elements("delete element", name, keys)
        for name, is_ipv6 in (("redirects4", False), ("redirects6", True)):
            pairs = (f"{d.address} . {d.port} : {wanted[d]}" for d in new if d.is_ipv6 is is_ipv6)
            commands += _elements("add element", name, pairs)
        if commands:
            self._commit(commands)
        self._redirects = wanted

    def cluster(self, add: Sequence[str], remove: Sequence[str], port: int | None) -> None:
        """See :meth:`tp2.forward.rules.Rules.cluster`."""
        raise _not_built()

    def containers(self, inlets: Sequence[Inlet]) -> None:
        """See :meth:`tp2.forward.rules.Rules.containers`."""
        raise _not_built()

    def refused(self) -> dict[Destination, int]:
        """See :meth:`tp2.forward.rules.Rules.refused`."""
        raise _not_built()

    def steer_dns(self, domains: Sequence[str], search: Sequence[str], port: int) -> None:
        """See :meth:`tp2.forward.rules.Rules.steer_dns`; Linux has no such thing that every machine has."""
        raise ForwarderError(
            "cannot steer DNS by domain", "Linux has no /etc/resolver", "capture the nameservers instead"
        )

    def exempt(self, sock: socket.socket) -> None:
        """See :meth:`tp2.forward.rules.Rules.exempt`; sets SO_MARK (socket(7))."""
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        except OSError as error:
            raise ForwarderError(
                "cannot exempt tp2's own queries",
                f"SO_MARK: {error.strerror}",
                "run tp2 up as root or through sudo",
            ) from error

    def close(self) -> None:
        """See :meth:`tp2.forward.rules.Rules.close`; the kernel removes the table with the socket."""
        if self._library is not None and self._context:
            self._library.nft_ctx_free(self._context)
        self._context = None
        self._redirects = {}

    def _commit(self, commands: Iterable[str]) -> None:
        error = self._run("\n".join(commands) + "\n")
        if error is not None:
            raise ForwarderError(
                "nftables refused a change",
                error,
                "see 'nft list table inet tp2'; restart tp2 if the table is gone",
            )

    def _run(self, commands: str) -> str | None:
        """Run one transaction; return None, or the reason in one line."""
        if self._library is None or not self._context:
            return "the table is closed"
        if self._library.nft_run_cmd_from_buffer(self._context, commands.encode("ascii")) == 0:
            return None
        text = self._library.nft_ctx_get_error_buffer(self._context) or b""
        # The library quotes the failing command and underlines it: the first line carries the reason.
        lines = text.decode("utf-8", "replace").strip().splitlines()
        return lines[0].removeprefix("Error: ") if lines else "no reason given"


def _not_built() -> ForwarderError:
    return ForwarderError("cannot do this with nftables", "it is not built yet", "use a newer tp2")


def _elements(verb: str, name: str, elements: Iterable[str]) -> list[str]:
    joined = ", ".join(elements)
    return [f"{verb} {_TABLE} {name} {{ {joined} }}"] if joined else []


def _owned_by_another(error: str) -> bool:
    """Whether EPERM came for an existing table of another owner, and not for a missing capability.

    The kernel says "Operation not permitted" to both; but without the capability the library already fails while
    it reads the rule set ("cache initialization failed", "you must be root").
    """
    return "Could not process rule: Operation not permitted" in error


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        library.nft_ctx_free.restype = None
        library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    except (OSError, AttributeError) as error:
        raise ForwarderError(
            "cannot use nftables",
            f"the library {LIBRARY} could not be loaded ({error})",
            "install it: apt install libnftables1 (Debian, Ubuntu), dnf install nftables (Fedora)",
        ) from error
    return library
