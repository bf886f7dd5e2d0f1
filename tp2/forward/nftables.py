"""Forwarding rules on Linux: one nftables table, owned by this process, spoken to through libnftables.

The table carries the *owner* flag (kernel 5.12): nobody else can change it, and the kernel deletes it when the
netlink socket of its owner closes, which happens however the owner dies. So there is nothing to clean up after a
SIGKILL, and no two tp2 can fight over it. The library is used in process, not the ``nft`` program: a process per
rule costs thirty times as much, and could not own the table.

What changes are elements of maps and sets, each read by one rule: a packet's lookup does not grow with their number,
nor does the cost of a change. The NAT chains sit at priority -110: before Docker's own DNAT of its DNS at -100.
What happens to a connection of this machine, in this order:

=============================================  =======================================================
tp2's own (marked)                             passes
port 53 of a captured nameserver               to tp2's DNS server, on the loopback address
an address of this machine itself              passes
the ip:port of a redirect                      to its local port
an address of the cluster, with a local port   to that port (the original destination: SO_ORIGINAL_DST)
an address of the cluster, without one         refused by a reset, and counted
=============================================  =======================================================

What comes in by an inlet goes the same way, but to the ports of that inlet on the interface's own address; and
those ports take nothing else: a packet that was not redirected to them is dropped. The table itself, with the reasons
for each of its rules, is in :mod:`tp2.forward.nftables_table`.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

from tp2.errors import AlreadyRunning, ForwarderError, PrivilegeError
from tp2.forward import nftables_needs
from tp2.forward.flows import forget_dns
from tp2.forward.libnftables import Session
from tp2.forward.nftables_table import MARK, REDIRECT, REFUSE, SKELETON, TABLE
from tp2.forward.orphans import end_orphans
from tp2.forward.rules import Inlet, loopback
from tp2.forward.stopgap import Stopgap
from tp2.types import DNS_PORT, Destination, Redirect

_OF_INLETS: Final = (
    ("set", "inlets"),
    ("map", "inlet_tcp"),
    ("map", "inlet_dns"),
    ("set", "inlet_ports"),
    ("set", "closed"),
)


class Nftables:
    """A :class:`tp2.forward.rules.Rules` on nftables. Needs CAP_NET_ADMIN in its network namespace.

    :param stopgap: gives a route to captured addresses that have none; None leaves them without.
    """

    kind = "nftables"

    def __init__(self, stopgap: Stopgap | None = None) -> None:
        self._stopgap = stopgap
        self._session: Session | None = None
        self._redirects: dict[Destination, Redirect] = {}
        self._nameservers: set[str] = set()
        self._cluster: set[str] = set()
        # What happens to the cluster's addresses; nothing as yet.
        self._elsewhere = ""
        self._inlets: list[Inlet] = []
        # How many captured things have this address: as long as there is one, it needs a route.
        self._routed: Counter[str] = Counter()

    def open(self) -> None:
        """Load libnftables and create the table.

        :raises ForwarderError: the library or the kernel's support is missing.
        :raises PrivilegeError: CAP_NET_ADMIN is missing.
        :raises AlreadyRunning: the table exists: another tp2 captures this network namespace.
        """
        self._session = Session()
        error = self._session.run(SKELETON)
        if error is None:
            return
        try:
            _explain(self._session, error)
        finally:
            self.close()

    def capture_dns(self, nameservers: Sequence[str], port: int) -> None:
        """See :meth:`tp2.forward.rules.Rules.capture_dns`."""
        commands = [f"flush chain {TABLE} dns", f"flush set {TABLE} dns4", f"flush set {TABLE} dns6"]
        commands += [f"add rule {TABLE} dns {proto} dport 53 redirect to :{port}" for proto in ("udp", "tcp")]
        wanted = set(nameservers)
        commands += _of_family("add element", "dns", wanted)
        self._commit(commands)
        former, self._nameservers = self._nameservers, wanted
        forget_dns(wanted ^ former)
        self._route(filter(_is_elsewhere, wanted - former), filter(_is_elsewhere, former - wanted))

    def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        """See :meth:`tp2.forward.rules.Rules.update`."""
        # Only what changes is looked at: what a change costs must not grow with the number of redirects.
        wanted: dict[Destination, Redirect | None] = dict.fromkeys(remove)
        wanted.update((redirect.destination, redirect) for redirect in add)
        changes = {d: r for d, r in wanted.items() if self._redirects.get(d) != r}
        gone = [d for d in changes if d in self._redirects]
        new = [redirect for redirect in changes.values() if redirect is not None]
        if not changes:
            return
        commands = _keys("delete element", "redirects", gone)
        commands += _elements("add element", "redirects4", (_entry(r) for r in new if not r.destination.is_ipv6))
        commands += _elements("add element", "redirects6", (_entry(r) for r in new if r.destination.is_ipv6))
        if self._inlets:
            commands += _keys("delete element", "captured", gone)
            commands += _keys("add element", "captured", (redirect.destination for redirect in new))
        self._commit(commands)
        for destination in gone:
            del self._redirects[destination]
        self._redirects.update((redirect.destination, redirect) for redirect in new)
        self._route((redirect.destination.address for redirect in new), (d.address for d in gone))

    def cluster(self, add: Sequence[str], remove: Sequence[str], port: int | None) -> None:
        """See :meth:`tp2.forward.rules.Rules.cluster`."""
        gone = self._cluster.intersection(remove).difference(add)
        new = set(add) - self._cluster
        commands = _of_family("delete element", "cluster", gone) + _of_family("add element", "cluster", new)
        elsewhere = REFUSE if port is None else REDIRECT.format(port=port)
        if elsewhere != self._elsewhere:
            commands += [f"flush chain {TABLE} {chain}" for chain in ("cluster_out", "cluster_in", "refuse")]
            commands.append(elsewhere)
        if not commands:
            return
        self._commit(commands)
        redirected, was_redirected = port is not None, self._elsewhere not in ("", REFUSE)
        # A refused connection needs no route: without one it fails at once too.
        if was_redirected and not redirected:
            self._route((), self._cluster)
        self._cluster -= gone
        self._cluster |= new
        if redirected:
            self._route(new if was_redirected else self._cluster, gone if was_redirected else ())
        self._elsewhere = elsewhere

    def containers(self, inlets: Sequence[Inlet]) -> None:
        """See :meth:`tp2.forward.rules.Rules.containers`."""
        commands = [f"flush {kind} {TABLE} {name}" for kind, name in _OF_INLETS]
        commands += _elements("add element", "inlets", (f'"{i.interface}"' for i in inlets))
        commands += _elements("add element", "inlet_tcp", (f'"{i.interface}" : {i.tcp_port}' for i in inlets))
        commands += _elements("add element", "inlet_dns", (f'"{i.interface}" : {i.dns_port}' for i in inlets))
        closed = [
            (inlet.interface, f"{protocol} . {port}")
            for inlet in inlets
            for protocol, port in (("tcp", inlet.tcp_port), ("tcp", inlet.dns_port), ("udp", inlet.dns_port))
        ]
        commands += _elements("add element", "inlet_ports", (f'"{interface}" . {port}' for interface, port in closed))
        commands += _elements("add element", "closed", {port for _, port in closed})
        # A map cannot be asked whether it has a key, so its keys are kept in a set too, while anybody asks.
        if bool(inlets) != bool(self._inlets):
            commands += [f"flush set {TABLE} captured4", f"flush set {TABLE} captured6"]
            if inlets:
                commands += _keys("add element", "captured", self._redirects)
        self._commit(commands)
        self._inlets = list(inlets)

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

    def refused(self) -> dict[Destination, int]:
        """See :meth:`tp2.forward.rules.Rules.refused`; what is refused while this runs may go uncounted."""
        found = {}
        for name in ("refused4", "refused6"):
            answer = self._opened().read(f"list set {TABLE} {name}")
            try:
                found.update(_counts(answer))
            except (LookupError, TypeError, ValueError) as error:
                raise ForwarderError(
                    "cannot read what was refused", f"not as libnftables-json(5) has it: {answer}", "report it"
                ) from error
        if found:
            self._commit([f"flush set {TABLE} refused4", f"flush set {TABLE} refused6"])
        return found

    def end_orphans(self) -> None:
        """See :meth:`tp2.forward.rules.Rules.end_orphans`."""
        try:
            end_orphans(self._is_captured)
        except OSError as error:
            raise ForwarderError(
                "cannot end connections whose address is gone", f"sock_diag: {error.strerror}", "they end by themselves"
            ) from error

    def _is_captured(self, destination: Destination) -> bool:
        return (
            destination in self._redirects
            or destination.address in self._cluster
            or (destination.port == DNS_PORT and destination.address in self._nameservers)
        )

    def close(self) -> None:
        """See :meth:`tp2.forward.rules.Rules.close`; the kernel removes the table with the socket."""
        if self._session is not None:
            self._session.close()
            forget_dns(self._nameservers)
        if self._stopgap is not None:
            self._stopgap.close()
        self._session = None

    def _opened(self) -> Session:
        if self._session is None:
            raise ForwarderError("cannot change nftables", "the table is closed", "restart tp2")
        return self._session

    def _commit(self, commands: Iterable[str]) -> None:
        error = self._opened().run("\n".join(commands) + "\n")
        if error is not None:
            raise ForwarderError(
                "nftables refused a change",
                error,
                "see 'nft list table inet tp2'; restart tp2 if the table is gone",
            )

    def _route(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """See to it that what is captured has a route; an address counts once for each reason to capture it."""
        if self._stopgap is None:
            return
        change = Counter(add)
        change.subtract(remove)
        new, gone = [], []
        for address, difference in change.items():
            before = self._routed[address]
            now = self._routed[address] = before + difference
            if not before and now:
                new.append(address)
            elif not now:
                del self._routed[address]
                gone.append(address)
        self._stopgap.want(new, gone)


def _explain(session: Session, error: str) -> NoReturn:
    """Raise what *error*, which creating the table came to, means to a user."""
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
    raise nftables_needs.missing(session, error)


def _counts(answer: list[dict[str, Any]]) -> dict[Destination, int]:
    """Return the counters of a set's elements, from what listing it came to."""
    elements = [element["elem"] for item in answer for element in item.get("set", {}).get("elem", ())]
    return {
        Destination(str(address), int(port)): int(element["counter"]["packets"])
        for element in elements
        for address, port in [element["val"]["concat"]]
    }


def _is_elsewhere(address: str) -> bool:
    """Whether an address is of another machine, and so needs a route."""
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local)


def _entry(redirect: Redirect) -> str:
    destination, port, address = redirect
    # IPv6 has one loopback address, to which 'redirect' leads by itself.
    target = port if destination.is_ipv6 else f"{address or loopback(False)} . {port}"
    return f"{destination.address} . {destination.port} : {target}"


def _keys(verb: str, name: str, destinations: Iterable[Destination]) -> list[str]:
    keys = [(d.is_ipv6, f"{d.address} . {d.port}") for d in destinations]
    return [
        *_elements(verb, f"{name}4", (key for is_ipv6, key in keys if not is_ipv6)),
        *_elements(verb, f"{name}6", (key for is_ipv6, key in keys if is_ipv6)),
    ]


def _of_family(verb: str, name: str, addresses: Iterable[str]) -> list[str]:
    addresses = list(addresses)
    return [
        *_elements(verb, f"{name}4", (address for address in addresses if ":" not in address)),
        *_elements(verb, f"{name}6", (address for address in addresses if ":" in address)),
    ]


def _elements(verb: str, name: str, elements: Iterable[str]) -> list[str]:
    joined = ", ".join(elements)
    return [f"{verb} {TABLE} {name} {{ {joined} }}"] if joined else []


def _owned_by_another(error: str) -> bool:
    """Whether EPERM came for an existing table of another owner, and not for a missing capability.

    The kernel says "Operation not permitted" to both; but without the capability the library already fails while
    it reads the rules, with "cache initialization failed" or "you must be root".
    """
    return "Could not process rule: Operation not permitted" in error
