"""What a configuration file says counts, or is refused with the place and a word on how to write it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tp2 import configuration, provenance, settings
from tp2.cli import cli, up
from tp2.errors import ExitCode, UsageError

KUBECONFIG = """
current-context: staging
contexts: [{name: staging, context: {cluster: st, user: me, namespace: shop}}]
clusters: [{name: st, cluster: {server: "https://203.0.113.7:6443"}}]
users: [{name: me, user: {token: secret}}]
"""

Config = Callable[..., dict[str, Any]]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, and nothing of the caller's tp2; returns the default file."""
    for name in list(os.environ):
        if name.startswith(("TP2_", "SUDO_", "XDG_")):
            monkeypatch.delenv(name)
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("TP2_RUNTIME_DIR", str(tmp_path / "run"))
    path = configuration.default_path()
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def config(environment: Path) -> Config:
    """Calls ``tp2 config --json`` with a default file of this content; returns its settings."""

    def call(content: str, *options: str) -> dict[str, Any]:
        environment.write_text(content)
        done = CliRunner().invoke(cli, ["config", "--json", *options], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        rows: dict[str, Any] = json.loads(done.output)["settings"]
        return rows

    return call


def refused(environment: Path, content: str | bytes, *options: str) -> UsageError:
    environment.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = CliRunner().invoke(cli, ["config", *options])
    assert isinstance(done.exception, UsageError), done.output
    assert done.exception.exit_code == ExitCode.USAGE
    return done.exception


def test_flags_go_before_the_environment_and_that_before_the_file_and_that_before_the_default(
    config: Config, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = 'socks = "127.0.0.1:1"\nports = "2001-2009"\nnamespace = ["a", "b"]\n'
    monkeypatch.setenv("TP2_SOCKS", "127.0.0.1:2")
    monkeypatch.setenv("TP2_NAMESPACE", "c d")
    rows = config(content, "--socks", "127.0.0.1:3")

    def came(name: str) -> tuple[Any, ...]:
        return rows[name]["value"], rows[name]["source"], rows[name]["origin"]

    assert came("socks") == ("127.0.0.1:3", "flag", "--socks")
    assert came("namespace") == (["c", "d"], "environment", "TP2_NAMESPACE")
    assert came("ports") == ("2001-2009", "file", f"{environment}:2")
    assert came("idle-timeout") == ("10m", "default", None)
    assert came("context") == ("staging", "discovered", str(environment.parents[2] / "kubeconfig"))
    assert rows["remote"]["words"] == "the one in the cluster, see 'tp2 install'"


def test_a_flag_takes_a_switch_of_the_file_back(config: Config) -> None:
    assert config("verbose = true")["verbose"]["value"] is True
    row = config("verbose = true", "--no-verbose")["verbose"]
    assert (row["value"], row["origin"]) == (False, "--no-verbose")


def test_every_option_of_up_can_be_set_in_the_file(config: Config, environment: Path) -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGhvc3Qga2V5IG9mIGEgdGVzdCwgb25seSB3b3Jkcw=="
    said: dict[str, Any] = {
        "mode": "origdst",
        "kubeconfig": str(environment.parents[2] / "kubeconfig"),
        "context": "staging",
        "namespace": ["shop", "blog"],
        "dns": ["192.0.2.1"],
        "fallback": ["192.0.2.2:53"],
        "cluster-domain": "example.cluster",
        "exclude": ["corp.example", "10.0.0.0/8"],
        "remote": "me@bastion:22",
        "via": "api",
        "endpoint-namespace": "elsewhere",
        "socks-upstream": "bastion:1080",
        "dial-timeout": "5s",
        "identity": "/keys/id",
        "host-key": key,
        "socks": "127.0.0.1:1081",
        "socks-auth": "/keys/password",
        "idle-timeout": "1m30s",
        "metrics": "127.0.0.1:9100",
        "ports": "30000-30007",
        "containers": ["docker0"],
        "forwarder": "nftables",
        "detach": True,
        "verbose": True,
    }
    options = {max(param.opts, key=len)[2:] for param in up.params if param.expose_value}
    rows = config("".join(f"{name} = {json.dumps(value)}\n" for name, value in said.items() if name in options))
    assert options <= said.keys()
    assert {name: row["value"] for name, row in rows.items()} == {name: said[name] for name in options}
    assert {row["source"] for row in rows.values()} == {"file"}


def test_one_text_does_for_a_list_and_a_number_for_a_duration(config: Config) -> None:
    rows = config('namespace = "shop"\nidle-timeout = 90\n')
    assert rows["namespace"]["value"] == ["shop"]
    assert rows["idle-timeout"]["value"] == "1m30s"


def test_files_are_relative_to_the_configuration_and_to_the_users_home(config: Config, environment: Path) -> None:
    rows = config('identity = "~/.ssh/id"\nsocks-auth = "password"\n')
    assert rows["identity"]["value"] == f"{environment.parents[2]}/.ssh/id"
    assert rows["socks-auth"]["value"] == f"{environment.parent}/password"


def test_another_file_is_named_by_a_flag_or_by_the_environment(
    config: Config, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, ports in (("one", "2001-2002"), ("two", "2003-2004")):
        (tmp_path / name).write_text(f'ports = "{ports}"')
    monkeypatch.setenv("TP2_CONFIG", str(tmp_path / "one"))
    assert config('ports = "2005-2006"')["ports"]["value"] == "2001-2002"
    assert config("", "--config", str(tmp_path / "two"))["ports"]["value"] == "2003-2004"
    assert config("", "--config", "/dev/null")["ports"]["value"] == "20000-29999"


@pytest.mark.parametrize(
    ("content", "line", "near"),
    [
        ('remot = "me@bastion"', 1, "remote"),
        ('\nidle_timeout = "10m"', 2, "idle-timeout"),
        ('# of mine\n\n[Name-space]\na = "b"', 3, "namespace"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(environment: Path, content: str, line: int, near: str) -> None:
    error = refused(environment, content)
    assert f"{environment}, line {line}" in error.what
    assert error.remedy == f"did you mean {near!r}?"


def test_an_unknown_key_like_no_other_is_refused_with_all_names(environment: Path) -> None:
    assert "identity, idle-timeout" in refused(environment, "xyzzy = 1").remedy


@pytest.mark.parametrize("key", ["config", "help", "as_json", "json", "namespaces"])
def test_what_is_no_option_of_up_is_no_key(environment: Path, key: str) -> None:
    assert "is no option" in refused(environment, f'{key} = "x"').what


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('idle-timeout = "soon"', ["idle-timeout", "'soon' is no duration", "write it as 90s, 10m or 1h30m"]),
        ("socks = 1080", ["socks", "'1080' has no port", "write it as in 127.0.0.1:1080"]),
        ('mode = "magic"', ["mode", "'magic'", 'mode = "portmap" or mode = "origdst"']),
        ('verbose = "yes"', ["verbose", "it is a text", "verbose = true"]),
        ("remote = true", ["remote", "it is true or false", 'remote = "[USER@]HOST[:PORT]"']),
        ('remote = ["a", "b"]', ["remote", "it is a list", 'remote = "[USER@]HOST[:PORT]"']),
        ('dns = ["192.0.2.1", {}]', ["dns", "it is a table", 'dns = ["IP", ...]']),
        ("ports = 2020-01-01", ["ports", "a date", 'ports = "LOW-HIGH"']),
        ('host-key = "missing.pub"', ["host-key", "cannot read the host key", "public key file"]),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_and_how_to_write_it(
    environment: Path, content: str, words: list[str]
) -> None:
    error = refused(environment, content)
    text = f"{error.what} {error.why} {error.remedy}"
    assert f"{environment}, line 1" in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("content", [b"remote me@bastion", b"\xff\xfe", b"a = " + b"[" * 100_000, b"a = 1\na = 2\n"])
def test_what_is_not_toml_is_refused(environment: Path, content: bytes) -> None:
    error = refused(environment, content)
    assert error.what == f"{environment} is not TOML"
    assert error.why


def test_a_file_that_is_named_has_to_be_there_and_readable(environment: Path, tmp_path: Path) -> None:
    assert "no such file" in refused(environment, "", "--config", str(tmp_path / "missing")).why
    assert "bytes" in refused(environment, "", "--config", "/dev/zero").why


def test_a_broken_file_keeps_nobody_from_the_help(environment: Path) -> None:
    environment.write_text("remot = 1")
    assert CliRunner().invoke(cli, ["up", "--help"]).exit_code == 0


@given(st.binary(max_size=200))
def test_whatever_is_in_the_file_it_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("config", numbered=True) / "any.toml"
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        assert configuration.read(click.Context(up), path).exists


@given(st.integers(1, 10**12 - 1))
def test_durations_are_shown_as_they_can_be_written(milliseconds: int) -> None:
    shown = provenance.duration(milliseconds / 1000)
    assert settings.parse_duration(shown) == pytest.approx(milliseconds / 1000, abs=1e-3)


def test_looking_at_mappings_reads_no_configuration(environment: Path, tmp_path: Path) -> None:
    environment.write_text("broken")
    program = (
        "import sys; from tp2.cli import main\n"
        "try: main()\n"
        "finally: print([name for name in ('tomllib', 'platformdirs', 'difflib', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "mappings"], capture_output=True, text=True, check=False, env=os.environ
    )
    assert "tp2 is not running" in done.stderr
    assert done.stdout.strip() == "[]"
