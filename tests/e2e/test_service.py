"""A service of a real systemd: ready when tp2 is, hardened, the user's; and gone when it is uninstalled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Laptop, eventually
from tests.e2e.machine import REPOSITORY, UID, USER, Machine, cannot_boot
from tp2.errors import ExitCode
from tp2.forward.capabilities import OWN_USER
from tp2.sandbox.box import NODE, SSH_PORT, tp2_command

WHY_NOT = cannot_boot()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

HOME = f"/home/{USER}"
UNIT = "/etc/systemd/system/tp2.service"


@pytest.fixture(scope="module")
def machine(laptop: Laptop) -> Iterator[Machine]:
    with Machine(laptop) as machine:
        if REPOSITORY.is_relative_to("/tmp"):
            # Or else the service would not see the tp2 under test.
            machine.write(f"{UNIT}.d/test.conf", "[Service]\nPrivateTmp=no\n")
        yield machine


def options(remote: str) -> list[str]:
    return ["--remote", remote, "--identity", f"{HOME}/.ssh/id_ed25519", "--host-key", f"{HOME}/host_key.pub"]


def processes(laptop: Laptop) -> dict[str, int]:
    """The user of each process of tp2 on the laptop."""
    found = {}
    for pid in laptop.host.processes():
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        for name, mark in (("daemon", b"\0tp2\0up\0"), ("helper", b"tp2.forward.helper")):
            if mark in command:
                found[name] = Path(f"/proc/{pid}").stat().st_uid
    return found


def test_a_service_that_cannot_reach_its_endpoint_is_not_installed_and_says_why(machine: Machine) -> None:
    done = machine.run(*tp2_command("service", "install", "--trust-installation", *options(f"root@{NODE}:1")))
    assert done.code == ExitCode.FAILURE
    assert "tp2: the service does not start" in done.stderr
    assert f"cannot reach the SSH endpoint root@{NODE}:1: the connection is refused" in done.stderr
    assert not machine.exists(UNIT)
    assert machine.show("tp2.service", "ActiveState") == "inactive"
    assert processes(machine.laptop) == {}
    assert machine.laptop.ruleset() == ""


def test_a_service_is_up_when_it_has_been_installed(machine: Machine) -> None:
    laptop = machine.laptop
    done = machine.run(*tp2_command("service", "install", "--trust-installation", *options(f"root@{NODE}:{SSH_PORT}")))
    assert done.code == 0, done.stderr + machine.run("journalctl", "--no-pager", "--unit", "tp2").stdout
    assert laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"
    assert machine.show("tp2.service", "StatusText").startswith("ready in ")
    # Root is the helper's alone, and the helper has given up being root.
    assert processes(laptop) == {"daemon": UID, "helper": OWN_USER}
    assert machine.run("systemctl", "is-enabled", "tp2.service").stdout == "enabled\n"


def test_its_user_asks_it_without_being_told_where_it_is(machine: Machine) -> None:
    done = machine.run(*tp2_command("status", "--json"), user=True)
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "ready"
    assert machine.run("stat", "-c", "%U %a", f"/run/tp2-{UID}").stdout == f"{USER} 700\n"


def test_it_holds_under_its_hardening(machine: Machine) -> None:
    pid = machine.show("tp2.service", "MainPID")
    status = machine.run("cat", f"/proc/{pid}/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert int(fields["CapEff"], 16) == 0
    # Every kind of name and connection that the service has to carry, it carries.
    assert machine.laptop.lookup("db-1.db.shop.svc.cluster.local") == ["10.244.1.11"]
    assert machine.laptop.curl("http://api.shop:8080/", "http://web.blog/") != ""


def test_it_is_started_again_when_it_was_killed(machine: Machine) -> None:
    pid = machine.show("tp2.service", "MainPID")
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "tp2.service")
    eventually(lambda: machine.show("tp2.service", "MainPID") not in (pid, "0"), within=60)
    eventually(lambda: machine.show("tp2.service", "ActiveState") == "active", within=60)
    assert machine.laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"


def test_uninstalled_it_leaves_nothing(machine: Machine) -> None:
    done = machine.run(*tp2_command("service", "uninstall"))
    assert done.code == 0, done.stderr
    assert processes(machine.laptop) == {}
    assert machine.laptop.ruleset() == ""
    assert not machine.exists(UNIT)
    assert not machine.exists(f"/run/tp2-{UID}")
    assert not machine.exists("/etc/systemd/system/multi-user.target.wants/tp2.service")
    assert machine.show("tp2.service", "ActiveState") == "inactive"
    assert machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "tp2.service").stdout == ""
