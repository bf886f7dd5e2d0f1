"""What else is on this machine: VPNs and networks with the cluster's addresses, tools of the kind, leftovers."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from tp2.diagnosis.forwarding import has_table
from tp2.diagnosis.machine import Machine, Process
from tp2.diagnosis.model import Finding, failed, not_applicable, ok, warning
from tp2.diagnosis.running import in_thread
from tp2.forward.routes import Route
from tp2.settings import Settings

if TYPE_CHECKING:
    from tp2.forward.libnftables import Session

#: Programs that capture the same traffic, and what each does to it.
TOOLS: Final = {
    "telepresence": "it captures DNS and has routes to the cluster",
    "sshuttle": "it redirects whole networks",
    "kubefwd": "it writes the hosts file",
    "kubevpn": "it has routes to the cluster and changes DNS",
    "mirrord": "it takes over the DNS and connections of the programs that it runs",
    "ktctl": "it changes resolv.conf and has routes to the cluster",
    "teleproxy": "it captures DNS and redirects the cluster's addresses",
}

_HELPER: Final = "tp2.forward.helper"
_DEVICE: Final = "tp2-stopgap"
_SAVED: Final = ("/etc/nftables.conf", "/etc/sysconfig/nftables.conf", "/var/lib/nftables/rules-save")


class Surroundings:
    """The checks.

    :param status: what a running tp2 says of itself; None if none runs.
    :param services: gives the addresses of the cluster's Services, once they are known.
    :param session: opens libnftables.
    """

    def __init__(
        self,
        machine: Machine,
        settings: Settings,
        status: dict[str, Any] | None,
        services: Callable[[], Sequence[str]],
        session: Callable[[], Session] | None = None,
    ) -> None:
        self._machine = machine
        self._settings = settings
        self._status = status
        self._services = services
        self._session = session

    async def tools(self) -> Finding:
        """Whether other tools of the kind run."""
        running: dict[str, Process] = {}
        for process in await in_thread(lambda: list(self._machine.processes())):
            if process.name in TOOLS:
                running.setdefault(process.name, process)
        if not running:
            return ok("none runs")
        named = "; ".join(f"{name} (process {process.pid}): {TOOLS[name]}" for name, process in running.items())
        return warning(
            f"{' and '.join(running)} {'runs' if len(running) == 1 else 'run'} as well",
            named,
            "end it while tp2 runs, unless it is for another cluster with other addresses and names",
        )

    async def leftovers(self) -> Finding:
        """Whether something of a tp2 is here that is none of the running one's."""
        if self._status is not None:
            return ok("none: what is here is the running tp2's")
        if not self._machine.is_linux():
            return not_applicable("leftovers", "they are looked for on Linux only")
        helpers = [process for process in self._machine.processes() if _HELPER in process.command]
        found = await in_thread(lambda: [name for name in ("tp2", "tp2-probe") if self._has_table(name)])
        if "tp2" in found or helpers:
            who = f"held by the helper, process {helpers[0].pid}" if helpers else "and no helper is seen that holds it"
            return failed(
                "another tp2 captures this machine's traffic",
                f"the nftables table 'inet tp2' is there, {who}",
                "stop that one: 'tp2 down' as the user and with the TP2_RUNTIME_DIR that it was started with"
                + (f"; or end process {helpers[0].pid}, and the kernel removes its rules" if helpers else "")
                + ("" if helpers else "; if none runs, as root: nft delete table inet tp2"),
            )
        if "tp2-probe" in found:
            return warning(
                "a table of a broken-off test is left",
                "the nftables table 'inet tp2-probe' is there",
                "as root: nft delete table inet tp2-probe",
            )
        if self._machine.path(f"/sys/class/net/{_DEVICE}").exists() or self._has_device():
            return warning(
                f"the device {_DEVICE} is left",
                "no tp2 runs that would need it; its routes lead packets nowhere",
                f"as root: ip link delete {_DEVICE}",
            )
        for name in _SAVED:
            if "table inet tp2" in (self._machine.read(name) or ""):
                return warning(
                    "tp2's rules have been saved, and would come back with the next boot",
                    f"{name} has the table 'inet tp2', which leads to a tp2 that does not run",
                    f"remove that table from {name}",
                )
        return ok("none")

    async def networks(self) -> Finding | Sequence[Finding]:
        """Whether this machine has other ways to what the cluster says are its addresses."""
        if not self._services():
            return not_applicable("networks", "the cluster's addresses are not known")
        addresses = [a for a in self._services() if not _excluded(a, self._settings)]
        routes = await in_thread(self._machine.routes)
        return overlaps(addresses, routes)

    def _has_device(self) -> bool:
        try:
            return any(route.device == _DEVICE for route in self._machine.routes())
        except OSError:
            return False

    def _has_table(self, name: str) -> bool:
        if self._session is None:
            return has_table(self._machine, name)
        return has_table(self._machine, name, self._session)


def overlaps(addresses: Iterable[str], routes: Iterable[Route]) -> list[Finding]:
    """Say which of *routes* lead elsewhere with what the cluster says are *addresses* of its Services. Pure."""
    wanted = [ipaddress.ip_address(address) for address in addresses]
    found: list[Finding] = []
    ways = [route for route in routes if route.network.prefixlen and route.device not in ("lo", _DEVICE)]
    for route in ways:
        inside = [str(address) for address in wanted if address in route.network]
        if not inside:
            continue
        some = f"{inside[0]} and {len(inside) - 1} more" if len(inside) > 1 else inside[0]
        device = f"the device {route.device}" if route.device else "this machine's routing"
        if route.connected:
            found.append(
                failed(
                    "services of the cluster have addresses of a network that this machine is on",
                    f"{device} has the network {route.network}, with the cluster's {some}: "
                    "those are left alone, and reach whoever has them there",
                    "leave that network or VPN; or give the cluster, or that network, other addresses",
                )
            )
        elif not route.refuses:
            found.append(
                warning(
                    "a route, of a VPN perhaps, leads elsewhere with addresses of the cluster",
                    f"{device} has a route for {route.network}, with the cluster's {some}: "
                    "while tp2 runs, those go to the cluster",
                    f"if you need what is there, leave it alone: --exclude {route.network}",
                )
            )
    return found or [ok(f"none has one of the {len(wanted)} addresses of the cluster's services")]


def _excluded(address: str, settings: Settings) -> bool:
    parsed = ipaddress.ip_address(address)
    return any(parsed in network for network in settings.excluded_networks)
