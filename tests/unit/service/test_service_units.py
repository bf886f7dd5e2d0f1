"""What the service managers are given is understood as it is meant."""

from __future__ import annotations

import configparser
import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tp2.forward.privilege import User
from tp2.service.units import CAPABILITIES, MARK, Service, launchd_plist, systemd_unit

ALICE = User(1000, 1001, "alice", Path("/home/alice"))
ODD = ("/opt/my tp2/bin/python", "-m", "tp2", "up", '--context=a "b" $HOME %h', "--kubeconfig=/x/y\\z", "--identity=é'")


def service(*arguments: str, user: User = ALICE) -> Service:
    command = arguments or (sys.executable, "-I", "-m", "tp2", "up", "--remote=me@bastion")
    return Service(command, user, Path(f"/run/tp2-{user.uid}"), {"KUBECONFIG": "/home/alice/50% off:/b"})


def read(unit: str) -> dict[str, list[str]]:
    """The settings of the section Service; each may be there several times."""
    found: dict[str, list[str]] = {}
    section = unit.partition("[Service]\n")[2].partition("\n[Install]")[0]
    for line in section.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_names_the_user_as_sudo_would() -> None:
    unit = systemd_unit(service())
    environment = read(unit)["Environment"]
    assert {"SUDO_UID=1000", "SUDO_GID=1001", "SUDO_USER=alice", "HOME=/home/alice"} <= set(environment)
    assert '"KUBECONFIG=/home/alice/50%% off:/b"' in environment
    assert "User" not in read(unit)


def test_root_without_a_user_stays_root() -> None:
    settings = read(systemd_unit(service(user=User(0, 0, "root", Path("/root")))))
    assert not any(value.startswith("SUDO_") for value in settings["Environment"])
    assert "TP2_RUNTIME_DIR=/run/tp2-0" in settings["Environment"]


def test_the_runtime_directory_is_the_users() -> None:
    settings = read(systemd_unit(service()))
    assert "install -d -o 1000 -g 1001 -m 0700 /run/tp2-1000" in settings["ExecStartPre"][0]
    assert settings["ExecStopPost"] == ["+/bin/rm -rf /run/tp2-1000"]
    assert "TP2_RUNTIME_DIR=/run/tp2-1000" in settings["Environment"]


def test_it_is_ready_when_tp2_says_so_and_hardened() -> None:
    settings = read(systemd_unit(service()))
    assert settings["Type"] == ["notify"]
    assert settings["CapabilityBoundingSet"] == [" ".join(CAPABILITIES)]
    assert settings["NoNewPrivileges"] == ["yes"]
    # Neither a wrong option nor another tp2 goes away by trying again.
    assert settings["RestartPreventExitStatus"] == ["2 4"]


def test_the_mark_is_the_first_line_of_both() -> None:
    assert systemd_unit(service()).splitlines()[0] == f"# {MARK}"
    assert MARK in launchd_plist(service()).splitlines()[1]


def test_odd_arguments_are_escaped_for_systemd() -> None:
    (command,) = read(systemd_unit(service(*ODD)))["ExecStart"]
    assert command == (
        '"/opt/my tp2/bin/python" -m tp2 up "--context=a \\"b\\" $$HOME %%h" "--kubeconfig=/x/y\\\\z" "--identity=é\'"'
    )
    (command,) = read(systemd_unit(service("/bin/x", "--a=b\nExecStart=/bin/evil", "")))["ExecStart"]
    assert command == '/bin/x "--a=b\\x0aExecStart=/bin/evil" ""'


def test_the_unit_is_one_that_any_reader_of_ini_files_understands() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(systemd_unit(service()))
    assert parser.sections() == ["Unit", "Service", "Install"]
    assert parser["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("arguments", [(), (sys.executable, *ODD[1:])])
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    unit = tmp_path / "tp2.service"
    unit.write_text(systemd_unit(service(*arguments)))
    # Without the manual page, which need not be installed here.
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_calls_its_exposure_low(tmp_path: Path) -> None:
    unit = tmp_path / "tp2.service"
    unit.write_text(systemd_unit(service()))
    # Of 0 to 10, as a hundredfold: a unit without any hardening has 9.6, and below 4 is called OK.
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=40", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_property_list_runs_the_same_command_in_a_directory_of_the_users() -> None:
    description = plistlib.loads(launchd_plist(service(*ODD)).encode())
    shell, option, script = description["ProgramArguments"]
    assert (shell, option) == ("/bin/sh", "-c")
    prepare, _, command = script.partition(" && exec ")
    assert shlex.split(prepare) == ["install", "-d", "-o", "1000", "-g", "1001", "-m", "0700", "/run/tp2-1000"]
    assert tuple(shlex.split(command)) == ODD
    assert description["EnvironmentVariables"]["SUDO_UID"] == "1000"
    assert description["KeepAlive"] == {"SuccessfulExit": False}
    assert description["RunAtLoad"] is True
