"""A kubeconfig is understood as kubectl understands it, and whatever is wrong with it is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tp2.cluster.kubefile import Selection, select
from tp2.errors import ClusterError, ExitCode


def document(**changes: Any) -> dict[str, Any]:
    return {
        "current-context": "lab",
        "contexts": [
            {"name": "lab", "context": {"cluster": "lab-cluster", "user": "me", "namespace": "shop"}},
            {"name": "plain", "context": {"cluster": "lab-cluster"}},
        ],
        "clusters": [{"name": "lab-cluster", "cluster": {"server": "https://198.51.100.1:6443/"}}],
        "users": [{"name": "me", "user": {"token": "secret"}}],
        **changes,
    }


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def chosen(*paths: Path, context: str | None = None) -> Selection:
    return select(paths, context, all_must_exist=len(paths) == 1)


def refused(*paths: Path, context: str | None = None) -> ClusterError:
    with pytest.raises(ClusterError) as caught:
        chosen(*paths, context=context)
    error = caught.value
    assert error.exit_code == ExitCode.CLUSTER
    assert all((error.what, error.why, error.remedy))
    return error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config"


def test_the_current_context_is_taken(path: Path) -> None:
    selection = chosen(write(path, document()))
    assert (selection.context, selection.namespace, selection.server) == ("lab", "shop", "https://198.51.100.1:6443")
    assert selection.user == {"token": "secret"}


def test_a_context_may_be_named_and_may_lack_user_and_namespace(path: Path) -> None:
    selection = chosen(write(path, document()), context="plain")
    assert (selection.context, selection.namespace, selection.user) == ("plain", "default", {})


def test_the_first_of_several_files_wins(tmp_path: Path) -> None:
    first = write(
        tmp_path / "one" / "config",
        {"clusters": [{"name": "lab-cluster", "cluster": {"server": "https://one", "certificate-authority": "ca"}}]},
    )
    second = write(tmp_path / "two" / "config", document(**{"current-context": "plain"}))
    third = write(tmp_path / "three", document(**{"current-context": "lab"}))
    selection = chosen(first, tmp_path / "missing", write(tmp_path / "empty", ""), second, third)
    assert (selection.context, selection.server) == ("plain", "https://one")
    assert selection.cluster["certificate-authority"] == str(tmp_path / "one" / "ca")


def test_paths_are_relative_to_the_file_that_has_them(path: Path) -> None:
    user = {"client-certificate": "pki/me.crt", "client-key": "/etc/me.key", "exec": {"command": "./bin/login"}}
    selection = chosen(write(path, document(users=[{"name": "me", "user": user}])))
    assert selection.user["client-certificate"] == str(path.parent / "pki/me.crt")
    assert selection.user["client-key"] == "/etc/me.key"
    assert selection.user["exec"] == {"command": str(path.parent / "bin/login")}


def test_a_token_file_goes_before_a_token_and_is_trimmed(path: Path) -> None:
    write(path.parent / "token", "from-the-file\n")
    user = {"token": "from-the-config", "tokenFile": "token"}
    assert chosen(write(path, document(users=[{"name": "me", "user": user}]))).user == {"token": "from-the-file"}


def test_a_token_file_that_is_missing(path: Path) -> None:
    error = refused(write(path, document(users=[{"name": "me", "user": {"tokenFile": "token"}}])))
    assert str(path.parent / "token") in error.why


def test_a_missing_file(path: Path) -> None:
    error = refused(path)
    assert (error.what, error.why) == (f"cannot read the kubeconfig {path}", "no such file")


def test_none_of_several_files_exists(tmp_path: Path) -> None:
    error = refused(tmp_path / "a", tmp_path / "b")
    assert str(tmp_path / "a") in error.why
    assert "$KUBECONFIG" in error.remedy


def test_a_directory_in_place_of_a_file(tmp_path: Path) -> None:
    assert "directory" in refused(tmp_path).why


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(path: Path) -> None:
    write(path, document()).chmod(0)
    assert "denied" in refused(path).why


@pytest.mark.parametrize("content", ["a: [", "\t", "{" * 3000, "a: b: c", "\x00"])
def test_a_file_that_is_not_yaml(path: Path, content: str) -> None:
    assert "not valid YAML" in refused(write(path, content)).why


def test_bytes_that_are_not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\xff")
    assert "not valid YAML" in refused(path).why


@pytest.mark.parametrize("content", ["just words", "[1, 2]", "17"])
def test_a_file_that_is_something_else(path: Path, content: str) -> None:
    assert "not a kubeconfig" in refused(write(path, content)).why


def test_no_current_context_names_those_there_are(path: Path) -> None:
    for nothing in (None, ""):
        error = refused(write(path, document(**{"current-context": nothing})))
        assert "lab, plain" in error.why
        assert "--context" in error.remedy
    assert "no contexts at all" in refused(write(path, "")).why


def test_an_unknown_context_names_those_there_are(path: Path) -> None:
    error = refused(write(path, document()), context="prod")
    assert error.what == "there is no context 'prod' in the kubeconfig"
    assert "lab, plain" in error.why


@pytest.mark.parametrize(("kind", "name"), [("clusters", "lab-cluster"), ("users", "me")])
@pytest.mark.parametrize("entries", [[], None, "?", [None], [{"name": "other"}], [{}]])
def test_a_context_that_refers_to_nothing(path: Path, kind: str, name: str, entries: Any) -> None:
    error = refused(write(path, document(**{kind: entries})))
    assert "'lab'" in error.what
    assert repr(name) in error.why


@pytest.mark.parametrize("server", [None, "", "198.51.100.1:6443", "ftp://x", "https://", "https://[::1", 7])
def test_a_server_that_is_no_url(path: Path, server: Any) -> None:
    error = refused(write(path, document(clusters=[{"name": "lab-cluster", "cluster": {"server": server}}])))
    assert "https://HOST:PORT" in error.remedy


@pytest.mark.parametrize("proxy", ["ftp://me:secret@127.0.0.1:21", "127.0.0.1:3128", "http://", "http://a:b", "x y"])
def test_a_proxy_that_is_none(path: Path, proxy: str) -> None:
    cluster = {"server": "https://198.51.100.1", "proxy-url": proxy}
    error = refused(write(path, document(clusters=[{"name": "lab-cluster", "cluster": cluster}])))
    assert proxy.replace("secret", "...") in error.why
    assert "socks5://HOST:PORT" in error.remedy


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
def test_proxies_that_kubectl_knows(path: Path, scheme: str) -> None:
    cluster = {"server": "https://198.51.100.1", "proxy-url": f"{scheme}://127.0.0.1:3128"}
    assert chosen(write(path, document(clusters=[{"name": "lab-cluster", "cluster": cluster}]))).cluster == cluster


def test_an_auth_provider_that_nobody_has_any_more(path: Path) -> None:
    user = {"auth-provider": {"name": "azure"}}
    assert "kubelogin" in refused(write(path, document(users=[{"name": "me", "user": user}]))).remedy
