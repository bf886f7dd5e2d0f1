"""What the caller of sudo had in the environment, and what of it is used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tp2.forward.caller import environment_of_sudos_caller, merged, parse


def process(proc: Path, name: str, command: str, parent: int, environ: bytes = b"") -> None:
    directory = proc / name
    directory.mkdir()
    (directory / "comm").write_text(f"{command}\n")
    (directory / "stat").write_text(f"9 ({command}) S {parent} 1 1 0\n")
    (directory / "environ").write_bytes(environ)


def test_the_environment_is_that_of_the_nearest_sudo(tmp_path: Path) -> None:
    process(tmp_path, "self", "tp2", 30)
    process(tmp_path, "30", "sh", 29)
    process(tmp_path, "29", "sudo", 28, b"KUBECONFIG=/home/me/staging\0EMPTY=\0PATH=/home/me/bin:/bin\0")
    process(tmp_path, "28", "sudo", 1, b"KUBECONFIG=/root/other\0")
    assert environment_of_sudos_caller(tmp_path) == {
        "KUBECONFIG": "/home/me/staging",
        "EMPTY": "",
        "PATH": "/home/me/bin:/bin",
    }


@pytest.mark.parametrize("command", ["su", "sudoedit", "a) sudo (b"])
def test_without_sudo_there_is_none(tmp_path: Path, command: str) -> None:
    process(tmp_path, "self", "tp2", 30)
    process(tmp_path, "30", command, 1, b"KUBECONFIG=/home/me/staging\0")
    assert environment_of_sudos_caller(tmp_path) == {}


def test_an_ancestor_that_ends_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    process(tmp_path, "self", "tp2", 30)
    assert environment_of_sudos_caller(tmp_path) == {}
    assert environment_of_sudos_caller(tmp_path / "nowhere") == {}


def test_this_very_process_has_ancestors_without_end() -> None:
    environment_of_sudos_caller()


def test_what_sudo_sets_for_root_is_as_the_caller_had_it_and_what_was_said_to_sudo_stays() -> None:
    theirs = {"PATH": "/home/me/bin", "HOME": "/home/elsewhere", "SHELL": "/bin/zsh", "STAGE": "old", "AGENT": "yes"}
    ours = {"PATH": "/usr/bin", "HOME": "/root", "SHELL": "/bin/sh", "USER": "root", "SUDO_UID": "1000", "STAGE": "new"}
    assert merged(ours, theirs, "/home/me", "me") == {
        "PATH": "/home/me/bin",
        "HOME": "/home/elsewhere",
        "SHELL": "/bin/zsh",
        "USER": "me",
        "LOGNAME": "me",
        "STAGE": "new",
        "AGENT": "yes",
        "SUDO_UID": "1000",
    }


def test_without_the_callers_environment_home_and_name_are_those_of_the_user_database() -> None:
    assert merged({"HOME": "/root", "USER": "root"}, {}, "/home/me", "me") == {
        "HOME": "/home/me",
        "USER": "me",
        "LOGNAME": "me",
    }


def test_an_environment_may_hold_anything() -> None:
    assert parse(b"") == {}
    assert parse(b"no equals\0=nameless\0A=b=c\0B=\xff\0") == {"A": "b=c", "B": os.fsdecode(b"\xff")}
