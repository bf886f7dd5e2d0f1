"""This machine before anything else: rules, privilege, files, ports, the runtime directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.diagnosis.stand_ins import machine, process, programs
from tp2.diagnosis.forwarding import Forwarding, has_table
from tp2.diagnosis.machine import Machine, Ran
from tp2.diagnosis.model import Finding, State
from tp2.errors import ForwarderError
from tp2.runtime import RuntimeDirectory
from tp2.settings import Rules, Settings


class Nft:
    """A libnftables that refuses some commands."""

    def __init__(self, refuses: str = "", have: tuple[str, ...] = ()) -> None:
        self.refuses = refuses
        self.have = have

    def run(self, commands: str) -> str | None:
        if any(f"create table inet {name}\n" in commands for name in self.have):
            return "Could not process rule: File exists"
        return "Operation not supported" if self.refuses and self.refuses in commands else None

    def close(self) -> None:
        pass


def forwarding(
    on: Machine,
    directory: Path | None = None,
    nft: Any = Nft,
    status: dict[str, Any] | None = None,
    settings: Settings | None = None,
) -> Forwarding:
    return Forwarding(
        on, settings or Settings(), RuntimeDirectory(directory or on.root / "run" / "tp2"), status, session=nft
    )


def assert_failed(found: Finding, *words: str, state: State = State.FAILED) -> None:
    assert found.state is state, found
    assert found.why
    assert found.remedy
    for word in words:
        assert word in f"{found.what} {found.why} {found.remedy}", found


async def test_nothing_is_reported_of_a_machine_that_is_well(tmp_path: Path) -> None:
    checks = forwarding(machine(tmp_path))
    (tmp_path / "run").mkdir()
    found = [
        await check()
        for check in (
            checks.forwarder,
            checks.stopgap,
            checks.privilege,
            checks.open_files,
            checks.ports,
            checks.directory,
        )
    ]
    assert [finding.state for finding in found] == [State.OK] * 6, found


async def test_without_libnftables(tmp_path: Path) -> None:
    def missing() -> Any:
        raise ForwarderError("cannot use nftables", "the library could not be loaded", "install it: apt install ...")

    with pytest.raises(ForwarderError, match="could not be loaded"):
        await forwarding(machine(tmp_path), nft=missing).forwarder()


@pytest.mark.parametrize(
    ("refuses", "words"),
    [("flags owner", "Linux 5.12"), ("dnat ip to", "nft_nat"), ("reject with", "nft_reject"), ("ct status", "nft_ct")],
)
async def test_a_kernel_that_lacks_something_of_nftables(tmp_path: Path, refuses: str, words: str) -> None:
    assert_failed(await forwarding(machine(tmp_path), nft=lambda: Nft(refuses)).forwarder(), words)


async def test_pf_that_was_asked_for_is_looked_for_instead(tmp_path: Path) -> None:
    checks = forwarding(machine(tmp_path), settings=Settings(forwarder=Rules.PF))
    assert_failed(await checks.forwarder(), "pfctl", "--forwarder nftables")


async def test_without_a_tun_device(tmp_path: Path) -> None:
    on = machine(tmp_path)
    (tmp_path / "dev/net/tun").unlink()
    assert_failed(await forwarding(on).stopgap(), "/dev/net/tun", "modprobe tun", state=State.WARNING)


async def test_root_without_the_capability(tmp_path: Path) -> None:
    on = machine(tmp_path, {"/proc/self/status": "CapEff:\t00000000a80425fb\n"})
    assert_failed(await forwarding(on).privilege(), "CAP_NET_ADMIN", "NET_ADMIN")


async def test_a_user_without_sudo(tmp_path: Path) -> None:
    assert_failed(await forwarding(machine(tmp_path, uid=1000)).privilege(), "no sudo", "as root")


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Ran(0, "", ""), State.OK),
        (Ran(1, "", "sudo: a password is required\n"), State.OK),
        (Ran(1, "", "sudo: alice is not allowed to run sudo on laptop\n"), State.FAILED),
        (
            Ran(1, "", 'sudo: The "no new privileges" flag is set, which prevents sudo from running as root.'),
            State.FAILED,
        ),
        (TimeoutError(), State.FAILED),
    ],
)
async def test_a_user_with_sudo(tmp_path: Path, outcome: Ran | Exception, state: State) -> None:
    on = machine(tmp_path, uid=1000, which=lambda name: f"/usr/bin/{name}", run=programs({"true": outcome}))
    found = await forwarding(on).privilege()
    assert found.state is state
    if state is State.FAILED:
        assert_failed(found, "sudo")


@pytest.mark.parametrize(("hard", "state"), [(128, State.FAILED), (1024, State.WARNING), (65536, State.OK)])
async def test_a_limit_on_open_files(tmp_path: Path, hard: int, state: State) -> None:
    found = await forwarding(machine(tmp_path, limit=lambda: (min(hard, 1024), hard))).open_files()
    assert found.state is state
    if state is not State.OK:
        assert_failed(found, str(hard), "ulimit", state=state)


async def test_a_port_that_another_program_has_taken_names_it(tmp_path: Path) -> None:
    line = "0: 0100007F:0438 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 777 1 0 100 0 0 10 0"
    on = machine(
        tmp_path,
        {"/proc/net/tcp": f"header\n{line}\n"},
        bind=lambda address, port: OSError(errno.EADDRINUSE, "in use") if port == 1080 else None,
    )
    process(tmp_path, 4711, "/usr/bin/python3", "-u", "/usr/bin/some-proxy")
    descriptors = tmp_path / "proc/4711/fd"
    descriptors.mkdir()
    (descriptors / "3").symlink_to("socket:[777]")
    assert_failed(await forwarding(on).ports(), "127.0.0.1:1080", "4711", "some-proxy", "--socks")


async def test_an_address_that_this_machine_does_not_have(tmp_path: Path) -> None:
    gone = OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
    assert_failed(await forwarding(machine(tmp_path, bind=lambda *_: gone)).ports(), "Cannot assign", "--socks")


async def test_a_runtime_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_failed(await forwarding(machine(tmp_path), tmp_path / "file").directory(), "TP2_RUNTIME_DIR")


async def test_a_runtime_directory_of_somebody_else(tmp_path: Path) -> None:
    on = machine(tmp_path, uid=os.getuid() + 1)
    (tmp_path / "mine").mkdir()
    assert_failed(await forwarding(on, tmp_path / "mine").directory(), "belongs to", "TP2_RUNTIME_DIR")


async def test_what_a_killed_tp2_left(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "lock").write_text("4711\n")
    found = await forwarding(machine(tmp_path), tmp_path / "old").directory()
    assert_failed(found, "killed", "the next 'tp2 up'", state=State.WARNING)


async def test_what_a_running_tp2_has_is_not_looked_for(tmp_path: Path) -> None:
    status = {"forwarder": {"helper_pid": 7}, "socks": {"listen": "127.0.0.1:1080"}}
    taken = OSError(errno.EADDRINUSE, "in use")
    checks = forwarding(machine(tmp_path, uid=1000, bind=lambda *_: taken), nft=lambda: Nft("owner"), status=status)
    assert [(await check()).state for check in (checks.forwarder, checks.privilege, checks.ports)] == [State.OK] * 3


def test_tables_are_asked_for_only_by_those_who_may(tmp_path: Path) -> None:
    have: Any = lambda: Nft(have=("tp2", "filter"))  # noqa: E731
    assert has_table(machine(tmp_path), "tp2", have)
    assert not has_table(machine(tmp_path), "tp2-probe", have)
    assert not has_table(machine(tmp_path, {"/proc/self/status": "CapEff:\t0\n"}), "tp2", have)
