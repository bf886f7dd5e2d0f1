"""``tp2 service``: the whole service, the one before, or none."""

from __future__ import annotations

import os
import plistlib
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.integration.service.managers import Managers
from tp2.cli import cli
from tp2.errors import ExitCode, PrivilegeError, Tp2Error
from tp2.service import service

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root installs services")


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Managers:
    doubles = Managers(tmp_path, "etc/systemd/system/tp2.service")
    monkeypatch.setenv("PATH", f"{doubles.path}:{os.environ['PATH']}")
    monkeypatch.setattr(service, "service_directory", lambda uid: tmp_path / f"run-tp2-{uid}")
    return doubles


@pytest.fixture
def launchd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Managers:
    doubles = Managers(tmp_path, "Library/LaunchDaemons/tp2.daemon.plist")
    monkeypatch.setenv("PATH", f"{doubles.path}:{os.environ['PATH']}")
    monkeypatch.setattr(service, "service_directory", lambda uid: tmp_path / f"run-tp2-{uid}")
    monkeypatch.setattr("sys.platform", "darwin")
    return doubles


def install(managers: Managers, *options: str, start: bool = True) -> list[str]:
    said: list[str] = []
    service.install(options, start=start, trusting=True, say=said.append, root=managers.root)
    return said


def uninstall(managers: Managers) -> list[str]:
    said: list[str] = []
    service.uninstall(say=said.append, root=managers.root)
    return said


@as_root
def test_a_service_is_written_enabled_and_started(systemd: Managers) -> None:
    said = install(systemd, "--remote=me@bastion")
    assert said == [f"systemd runs tp2 for root, as {systemd.unit} says"]
    state = systemd.state
    assert state["enabled"]
    assert state["running"] == systemd.unit.read_text()
    assert "tp2 up --no-detach --remote=me@bastion" in state["running"]
    assert stat.S_IMODE(systemd.unit.stat().st_mode) == 0o644


@as_root
def test_uninstalling_leaves_nothing(systemd: Managers) -> None:
    before = systemd.files()
    install(systemd)
    uninstall(systemd)
    state = systemd.state
    assert systemd.files() == before
    assert (state["enabled"], state["running"], state["known"]) == (False, None, None)
    assert state["calls"][-1].startswith("systemctl reset-failed")


@as_root
def test_it_can_be_installed_without_a_start(systemd: Managers) -> None:
    assert install(systemd, start=False) == [f"systemd will run tp2 for root, as {systemd.unit} says"]
    assert systemd.state["enabled"]
    assert systemd.state["running"] is None


@as_root
def test_new_options_replace_the_former_ones(systemd: Managers) -> None:
    install(systemd, "--remote=me@old")
    install(systemd, "--remote=me@new")
    assert "me@new" in systemd.state["running"]
    assert len(systemd.files()) == 1


@as_root
def test_a_service_that_does_not_start_is_not_there_and_says_why(systemd: Managers) -> None:
    journal = (
        "helper   nftables rules, held by process 12\n"
        "tp2: cannot reach the SSH endpoint bastion:22\n  why: no answer in time\n  try: check that the host is up"
    )
    systemd.fail("systemctl restart", journal)
    with pytest.raises(Tp2Error) as failure:
        install(systemd, "--remote=me@bastion")
    assert failure.value.what == "the service does not start"
    assert failure.value.why == "cannot reach the SSH endpoint bastion:22: no answer in time"
    assert failure.value.remedy == "check that the host is up"
    assert systemd.files() == []
    assert (systemd.state["enabled"], systemd.state["known"]) == (False, None)
    # Only what this start has written counts, and not what an earlier one left in the journal.
    assert any("--after-cursor s=1;i=2" in call for call in systemd.state["calls"])


@as_root
def test_without_words_of_tp2_the_managers_are_passed_on(systemd: Managers) -> None:
    systemd.fail("systemctl restart")
    with pytest.raises(Tp2Error, match="control process exited with error code") as failure:
        install(systemd)
    assert failure.value.remedy == "see 'journalctl -u tp2'"


@as_root
def test_a_service_that_worked_survives_new_options_that_do_not(
    systemd: Managers, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(systemd, "--remote=me@old")
    former = systemd.unit.read_text()
    put = service.Systemd.put

    def fails_with_the_new(self: service.Systemd, *, start: bool) -> None:
        put(self, start=start)
        if "me@new" in self.file.read_text():
            raise Tp2Error("the service does not start", "for a test", "none")

    monkeypatch.setattr(service.Systemd, "put", fails_with_the_new)
    with pytest.raises(Tp2Error, match="for a test"):
        install(systemd, "--remote=me@new")
    assert systemd.unit.read_text() == former
    assert systemd.state["running"] == former


@as_root
def test_somebody_elses_unit_is_left_alone(systemd: Managers) -> None:
    systemd.unit.parent.mkdir(parents=True)
    systemd.unit.write_text("[Service]\nExecStart=/bin/true\n")
    for change in (install, uninstall):
        with pytest.raises(Tp2Error, match="was not written by tp2"):
            change(systemd)
    assert systemd.unit.read_text() == "[Service]\nExecStart=/bin/true\n"
    assert systemd.state["calls"] == []


def test_to_uninstall_nothing_is_no_error(systemd: Managers) -> None:
    assert uninstall(systemd) == [f"there is no service: {systemd.unit} does not exist"]


def test_an_ordinary_user_is_told_to_use_sudo(systemd: Managers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(PrivilegeError) as failure:
        install(systemd)
    assert failure.value.remedy.startswith("run 'sudo /")
    assert systemd.files() == []


def test_without_a_manager_that_it_knows_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(Tp2Error, match="systemd does not run here"):
        service.install((), start=True, trusting=True, say=print, root=tmp_path)
    with pytest.raises(Tp2Error, match="systemd does not run here"):
        service.uninstall(say=print, root=tmp_path)


@as_root
def test_what_others_can_change_is_not_run_as_root_unasked(
    systemd: Managers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "venv"
    prefix.mkdir()
    os.chown(prefix, 1000, 1000)
    monkeypatch.setattr("sys.prefix", str(prefix))
    with pytest.raises(PrivilegeError, match=f"{prefix} can be written by others than root"):
        service.install((), start=True, trusting=False, say=print, root=systemd.root)
    assert systemd.files() == []
    # A directory that everybody may write, but in which nobody can replace what is another's (/tmp), is no reason.
    prefix.chmod(0o1777)
    os.chown(prefix, 0, 0)
    service._check_installation()
    prefix.chmod(0o777)
    with pytest.raises(PrivilegeError):
        service._check_installation()


@as_root
def test_launchd_is_given_a_property_list_and_asked_to_run_it(launchd: Managers) -> None:
    install(launchd, "--remote=me@bastion")
    assert "me@bastion" in plistlib.loads(launchd.state["running"].encode())["ProgramArguments"][2]
    install(launchd, "--remote=me@other")
    assert "me@other" in launchd.state["running"]
    uninstall(launchd)
    assert launchd.state["running"] is None
    assert launchd.files() == []


@as_root
def test_launchd_that_refuses_leaves_nothing(launchd: Managers) -> None:
    launchd.fail("launchctl bootstrap")
    with pytest.raises(Tp2Error, match="launchctl bootstrap system"):
        install(launchd)
    assert launchd.files() == []


def printed(*arguments: str, **environment: str) -> str:
    done = CliRunner().invoke(cli, ["service", "install", "--print", *arguments], env=environment)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_options_of_up_are_handed_on_wherever_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bastion.pub").write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE7 bastion\n")
    unit = printed(
        *("-n", "shop", "--namespace=blog", "--kubeconfig", "config", "--host-key", "bastion.pub", "-v"),
        *("--idle-timeout", "90s"),
        TP2_REMOTE="me@bastion",
        TP2_EXCLUDE="a.example b.example",
        TP2_IDLE_TIMEOUT="5s",
    )
    command = unit.partition("ExecStart=")[2].partition("\n")[0].partition(" up ")[2]
    assert command.split() == [
        "--no-detach",
        f"--kubeconfig={tmp_path}/config",
        "--namespace=shop",
        "--namespace=blog",
        "--exclude=a.example",
        "--exclude=b.example",
        "--remote=me@bastion",
        f"--host-key={tmp_path}/bastion.pub",
        "--idle-timeout=90s",
        "--verbose",
    ]


def test_an_option_that_makes_no_sense_is_refused_before_anything_is_written() -> None:
    done = CliRunner().invoke(cli, ["service", "install", "--print", "--ports", "80"])
    assert done.exit_code == ExitCode.USAGE
    assert "is no range of local ports" in done.output


def test_what_is_understood_by_up_is_understood_by_the_service() -> None:
    up = {param.name for param in cli.commands["up"].params}
    given = cli.commands["service"]
    assert isinstance(given, type(cli))
    assert up - {param.name for param in given.commands["install"].params} == {"detach"}
