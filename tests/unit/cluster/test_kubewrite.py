"""New tokens go into the kubeconfig, and nothing else of it changes; the file is never lost."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tp2.cluster import kubewrite
from tp2.cluster.kubewrite import Unwritten, changed, write_tokens

NEW = {"id-token": "a.new.one", "refresh-token": "next"}

WRITTEN_BY_HAND = """\
# Mine. Do not touch.
apiVersion: v1
kind: Config
current-context: lab
users:
- name: other
  user: {auth-provider: {name: oidc, config: {refresh-token: theirs}}}
- name: me      # that is me
  user:
    auth-provider:
      name: oidc
      config:
        client-id: kubernetes
        id-token: an.old.one  # expires
        refresh-token: 'first'
        idp-issuer-url: https://login.example
"""


def config_of(text: str, user: str) -> dict[str, Any]:
    users = {entry["name"]: entry["user"] for entry in yaml.safe_load(text)["users"]}
    config: dict[str, Any] = users[user]["auth-provider"]["config"]
    return config


def test_comments_order_and_other_users_stay() -> None:
    assert changed(WRITTEN_BY_HAND, "me", NEW) == WRITTEN_BY_HAND.replace("an.old.one", '"a.new.one"').replace(
        "'first'", '"next"'
    )


def test_a_token_that_was_not_there_is_added() -> None:
    text = WRITTEN_BY_HAND.replace("        id-token: an.old.one  # expires\n", "")
    after = changed(text, "me", NEW)
    assert config_of(after, "me") == {**config_of(text, "me"), **NEW}
    assert "# Mine" in after


def test_json_stays_json() -> None:
    document = yaml.safe_load(WRITTEN_BY_HAND)
    after = changed(json.dumps(document, indent=2), "other", NEW)
    assert json.loads(after)["users"][0]["user"]["auth-provider"]["config"] == NEW
    assert after.startswith('{\n  "apiVersion"')


@pytest.mark.parametrize(
    "config",
    [
        "\n        refresh-token: >\n          first\n        id-token: |\n          a\n          b\n",
        "\n        refresh-token: &token first\n        id-token: *token\n",
        "\n        ? refresh-token\n        : first\n",
        "{}",
    ],
)
def test_other_ways_to_write_yaml_say_the_same_afterwards(config: str) -> None:
    text = f"users:\n- name: me\n  user:\n    auth-provider:\n      name: oidc\n      config: {config}\nextra: 1\n"
    before = config_of(text, "me")
    after = changed(text, "me", NEW)
    assert config_of(after, "me") == {**before, **NEW}
    assert yaml.safe_load(after)["extra"] == 1


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_token_is_written_as_it_is(token: str, refresh: str) -> None:
    try:
        after = changed(WRITTEN_BY_HAND, "me", {"id-token": token, "refresh-token": refresh})
    except UnicodeEncodeError:
        return
    config = config_of(after, "me")
    assert (config["id-token"], config["refresh-token"]) == (token, refresh)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(WRITTEN_BY_HAND)
    path.chmod(0o640)
    return path


async def test_the_file_is_replaced_by_one_that_is_the_owners_only(path: Path) -> None:
    before = path.stat().st_ino
    await write_tokens([path], "me", "first", NEW)
    assert config_of(path.read_text(), "me").items() >= NEW.items()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_ino != before
    assert list(path.parent.iterdir()) == [path], "no lock and no temporary file is left"


async def test_the_file_behind_a_link_is_replaced_and_the_link_stays(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    await write_tokens([link], "me", "first", NEW)
    assert link.is_symlink()
    assert config_of(path.read_text(), "me").items() >= NEW.items()


async def test_of_several_files_the_first_that_has_the_user_is_changed(path: Path, tmp_path: Path) -> None:
    first, last = tmp_path / "first", tmp_path / "last"
    first.write_text("users: []\n")
    last.write_text(WRITTEN_BY_HAND)
    await write_tokens([tmp_path / "missing", first, path, last], "me", "first", NEW)
    assert config_of(path.read_text(), "me")["refresh-token"] == "next"
    assert (first.read_text(), last.read_text()) == ("users: []\n", WRITTEN_BY_HAND)


async def test_a_login_of_somebody_else_meanwhile_is_left_alone(path: Path) -> None:
    await write_tokens([path], "me", "another", NEW)
    assert path.read_text() == WRITTEN_BY_HAND


async def test_a_file_that_cannot_be_written_stays_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unwritten, match="No space left"):
        await write_tokens([path], "me", "first", NEW)
    assert path.read_text() == WRITTEN_BY_HAND
    assert list(path.parent.iterdir()) == [path]


async def test_a_lock_that_another_program_holds_is_waited_for(path: Path) -> None:
    lock = path.with_name("config.lock")
    lock.touch()
    writing = asyncio.create_task(write_tokens([path], "me", "first", NEW))
    await asyncio.sleep(0)
    assert path.read_text() == WRITTEN_BY_HAND
    lock.unlink()
    await writing
    assert config_of(path.read_text(), "me")["refresh-token"] == "next"


async def test_a_lock_that_stays_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubewrite, "LOCK_PATIENCE", 0.1)
    lock = path.with_name("config.lock")
    lock.touch()
    with pytest.raises(Unwritten, match=r"config\.lock"):
        await write_tokens([path], "me", "first", NEW)
    assert lock.exists()
    assert path.read_text() == WRITTEN_BY_HAND


@pytest.mark.parametrize("content", ["{", "users: []", "- 1", ""])
async def test_a_file_that_has_no_such_user_any_more(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(Unwritten):
        await write_tokens([path], "me", "first", NEW)
    assert path.read_text() == content
