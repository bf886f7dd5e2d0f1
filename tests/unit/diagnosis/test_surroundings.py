"""What else is on a machine: other tools, leftovers, and routes to the cluster's addresses."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest

from tests.unit.diagnosis.stand_ins import machine, process
from tests.unit.diagnosis.test_forwarding import Nft, assert_failed
from tp2.diagnosis.machine import Machine, Process
from tp2.diagnosis.model import State
from tp2.diagnosis.surroundings import TOOLS, Surroundings, overlaps
from tp2.forward.routes import Route, all_routes
from tp2.settings import Settings

SERVICES = ("10.96.0.1", "10.96.1.1", "fd00:96::1")


def around(on: Machine, *have: str, status: dict[str, Any] | None = None, **settings: Any) -> Surroundings:
    return Surroundings(on, Settings(**settings), status, lambda: SERVICES, session=lambda: Nft(have=have))  # type: ignore[arg-type,return-value]


def route(network: str, device: str = "tun0", **more: Any) -> Route:
    return Route(ipaddress.ip_network(network), device, **more)


async def test_nothing_is_reported_of_a_machine_that_is_well(tmp_path: Path) -> None:
    process(tmp_path, 1, "/sbin/init")
    process(tmp_path, 2, "")
    routes = [
        route("0.0.0.0/0", "eth0"),
        route("192.0.2.0/24", "eth0", connected=True),
        route("10.96.0.1/32", "tp2-stopgap"),
    ]
    checks = around(machine(tmp_path, routes=lambda: routes[:2]), "filter")
    assert (await checks.tools()).state is State.OK
    assert (await checks.leftovers()).state is State.OK
    assert [finding.state for finding in overlaps(SERVICES, routes)] == [State.OK]


@pytest.mark.parametrize(
    "command",
    [
        ("/usr/local/bin/telepresence", "connect"),
        ("/usr/bin/python3", "/usr/bin/sshuttle", "--method", "nft"),
        ("kubefwd", "svc", "-n", "shop"),
        ("/opt/kubevpn", "daemon"),
        ("mirrord", "exec", "--", "app"),
        ("ktctl", "connect"),
        ("teleproxy",),
    ],
)
async def test_other_tools_of_the_kind(tmp_path: Path, command: tuple[str, ...]) -> None:
    process(tmp_path, 4711, *command)
    found = await around(machine(tmp_path)).tools()
    assert_failed(found, "process 4711", "end it", state=State.WARNING)
    assert any(tool in found.what for tool in TOOLS)


def test_a_program_is_known_by_its_own_name() -> None:
    assert Process(1, ("/usr/bin/vim", "sshuttle")).name == "vim"
    assert Process(1, ("python3.11", "-u", "/x/sshuttle")).name == "sshuttle"
    assert Process(1, ("",)).name == ""


async def test_a_table_of_another_tp2(tmp_path: Path) -> None:
    process(tmp_path, 99, "python3", "-I", "-m", "tp2.forward.helper")
    assert_failed(await around(machine(tmp_path), "tp2").leftovers(), "another tp2", "process 99", "tp2 down")


async def test_a_table_that_nobody_holds(tmp_path: Path) -> None:
    assert_failed(await around(machine(tmp_path), "tp2").leftovers(), "nft delete table inet tp2")


async def test_a_table_of_a_broken_off_test(tmp_path: Path) -> None:
    found = await around(machine(tmp_path), "tp2-probe").leftovers()
    assert_failed(found, "nft delete table inet tp2-probe", state=State.WARNING)


async def test_a_device_that_is_left(tmp_path: Path) -> None:
    (tmp_path / "sys/class/net/tp2-stopgap").mkdir(parents=True)
    found = await around(machine(tmp_path)).leftovers()
    assert_failed(found, "ip link delete tp2-stopgap", state=State.WARNING)


async def test_rules_that_were_saved_for_the_next_boot(tmp_path: Path) -> None:
    on = machine(tmp_path, {"/etc/nftables.conf": "table inet tp2 {\n}\n"})
    assert_failed(await around(on).leftovers(), "/etc/nftables.conf", "next boot", state=State.WARNING)


async def test_what_a_running_tp2_has_is_no_leftover(tmp_path: Path) -> None:
    assert (await around(machine(tmp_path), "tp2", status={"pid": 1}).leftovers()).state is State.OK


def test_a_route_of_a_vpn_over_the_clusters_addresses() -> None:
    found = overlaps(SERVICES, [route("10.0.0.0/8")])
    assert_failed(found[0], "10.0.0.0/8", "tun0", "10.96.0.1 and 1 more", "--exclude 10.0.0.0/8", state=State.WARNING)


def test_a_network_that_this_machine_is_on_with_the_clusters_addresses() -> None:
    assert_failed(overlaps(SERVICES, [route("10.96.0.0/16", "eth1", connected=True)])[0], "left alone", "eth1")
    assert_failed(overlaps(SERVICES, [route("fd00:96::/64", "eth1", connected=True)])[0], "fd00:96::1")


async def test_a_network_that_is_excluded_is_meant_to_be_elsewhere(tmp_path: Path) -> None:
    on = machine(tmp_path, routes=lambda: [route("10.0.0.0/8")])
    found = await around(on, exclude=(ipaddress.ip_network("10.0.0.0/8"),)).networks()
    assert [finding.state for finding in found] == [State.OK]  # type: ignore[union-attr]


async def test_without_the_clusters_addresses_no_route_is_judged(tmp_path: Path) -> None:
    nothing = Surroundings(machine(tmp_path), Settings(), None, list)
    found = await nothing.networks()
    assert found.state is State.NOT_APPLICABLE  # type: ignore[union-attr]


def test_the_kernel_tells_its_routes() -> None:
    assert all(found.network.prefixlen <= found.network.max_prefixlen for found in all_routes())
