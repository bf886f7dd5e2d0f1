"""The file with the SOCKS server's username and password."""

from __future__ import annotations

from pathlib import Path

import pytest

from tp2.errors import UsageError
from tp2.socks.auth import read_credentials
from tp2.socks.messages import Credentials


def written(path: Path, content: bytes, mode: int = 0o600) -> Path:
    file = path / "auth"
    file.write_bytes(content)
    file.chmod(mode)
    return file


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\nmore\n"])
def test_the_first_line_is_username_and_password(tmp_path: Path, end: bytes) -> None:
    assert read_credentials(written(tmp_path, b"me:s\xc3\xa9cret:1" + end)) == Credentials("me", "sécret:1")


@pytest.mark.parametrize("content", [b"", b"me", b":secret", b"me:", b"m" * 256 + b":s", b"me:\xff", b"\nme:secret"])
def test_anything_else_is_refused_without_being_shown(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        read_credentials(written(tmp_path, content))
    assert str(tmp_path / "auth") in caught.value.what
    assert "secret" not in str(caught.value)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="others may read it"):
        read_credentials(written(tmp_path, b"me:secret", 0o640))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_credentials(tmp_path / "nothing")
