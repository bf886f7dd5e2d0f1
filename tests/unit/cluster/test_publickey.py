"""The endpoint lets in the key that tp2 will offer, and it is found without being named."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import asyncssh
import pytest

from tp2.cluster.publickey import normalized, own_public_key
from tp2.errors import UsageError


def new_key(path: Path, algorithm: str = "ssh-ed25519") -> str:
    """Write a private key to *path*, nothing beside it; return its public line."""
    key = asyncssh.generate_private_key(algorithm, comment=path.name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(key.export_private_key())
    return key.export_public_key().decode().strip()


def home_with(home: Path, *names: str) -> dict[str, str]:
    algorithms = {"id_ed25519": "ssh-ed25519", "id_ecdsa": "ecdsa-sha2-nistp256", "id_rsa": "ssh-rsa"}
    lines = {}
    for name in names:
        lines[name] = new_key(home / ".ssh" / name, algorithms[name])
        (home / ".ssh" / f"{name}.pub").write_text(lines[name] + "\n")
    return lines


@contextlib.asynccontextmanager
async def agent_with(path: Path, keys: Sequence[bytes]) -> AsyncIterator[str]:
    """An ssh-agent that lists *keys* (the public blobs), and does nothing else."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                size = struct.unpack(">I", await reader.readexactly(4))[0]
                await reader.readexactly(size)
                entries = b"".join(
                    struct.pack(">I", len(blob)) + blob + struct.pack(">I", 4) + b"mine" for blob in keys
                )
                answer = b"\x0c" + struct.pack(">I", len(keys)) + entries
                writer.write(struct.pack(">I", len(answer)) + answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield str(path)


async def test_the_identitys_public_half_lies_beside_it(tmp_path: Path) -> None:
    line = new_key(tmp_path / "id_work")
    (tmp_path / "id_work.pub").write_text(line + "\n")
    (tmp_path / "id_work").write_text("nobody reads this")
    assert await own_public_key(tmp_path / "id_work", agent="", home=tmp_path) == line


async def test_an_identity_alone_is_enough(tmp_path: Path) -> None:
    line = new_key(tmp_path / "id_work")
    assert await own_public_key(tmp_path / "id_work", agent="", home=tmp_path) == line


async def test_an_identity_that_is_a_public_key_is_that(tmp_path: Path) -> None:
    line = new_key(tmp_path / "id_work")
    (tmp_path / "token.pub").write_text(line)
    assert await own_public_key(tmp_path / "token.pub", agent="", home=tmp_path) == line


async def test_an_identity_with_a_passphrase_says_what_to_do(tmp_path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(tmp_path / "id_work")]
    subprocess.run(command, check=True, timeout=30)
    (tmp_path / "id_work.pub").unlink()
    with pytest.raises(UsageError) as raised:
        await own_public_key(tmp_path / "id_work", agent="", home=tmp_path)
    assert "passphrase" in raised.value.why
    assert "ssh-keygen -y -f" in raised.value.remedy


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
async def test_an_identity_that_is_none_is_an_error_in_words(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "id_work").write_bytes(content)
    home_with(tmp_path, "id_ed25519")
    with pytest.raises(UsageError) as raised:
        await own_public_key(tmp_path / "id_work", agent="", home=tmp_path)
    assert "id_work" in raised.value.what


async def test_the_agents_first_key_goes_before_files(tmp_path: Path) -> None:
    home_with(tmp_path, "id_ed25519")
    first, second = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    async with agent_with(tmp_path / "agent", [first.public_data, second.public_data]) as agent:
        line = await own_public_key(None, agent=agent, home=tmp_path)
    assert line.split()[:2] == first.export_public_key().decode().split()[:2]


async def test_a_certificate_in_the_agent_is_no_key_of_its_own(tmp_path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    authority = asyncssh.generate_private_key("ssh-ed25519")
    certificate = authority.generate_user_certificate(key, "me").public_data
    async with agent_with(tmp_path / "agent", [certificate, key.public_data]) as agent:
        line = await own_public_key(None, agent=agent, home=tmp_path)
    assert line.split()[:2] == key.export_public_key().decode().split()[:2]


async def test_an_empty_agent_or_none_at_all_leaves_it_to_files(tmp_path: Path) -> None:
    line = home_with(tmp_path, "id_ed25519")["id_ed25519"]
    async with agent_with(tmp_path / "agent", []) as agent:
        assert await own_public_key(None, agent=agent, home=tmp_path) == line
    assert await own_public_key(None, agent=str(tmp_path / "gone"), home=tmp_path) == line


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("id_rsa", "id_ecdsa", "id_ed25519"), "id_ed25519"),
        (("id_rsa", "id_ecdsa"), "id_ecdsa"),
        (("id_rsa",), "id_rsa"),
    ],
)
async def test_the_newest_kind_of_key_is_taken(tmp_path: Path, names: tuple[str, ...], chosen: str) -> None:
    lines = home_with(tmp_path, *names)
    assert await own_public_key(None, agent="", home=tmp_path) == lines[chosen]


async def test_without_any_key_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        await own_public_key(None, agent="", home=tmp_path)
    assert "ssh-keygen -t ed25519" in raised.value.remedy
    assert str(tmp_path / ".ssh") in raised.value.why


BLOB = "AAAAC3NzaC1lZDI1NTE5AAAAIGp5dGhvbnB5dGhvbnB5dGhvbnB5dGhvbnB5dGhv"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"ssh-ed25519 {BLOB}", f"ssh-ed25519 {BLOB}"),
        (f"# mine\n\n  ssh-ed25519 {BLOB} me@laptop \r\n", f"ssh-ed25519 {BLOB} me@laptop"),
        (f"sk-ssh-ed25519@openssh.com {BLOB} yubi key", f"sk-ssh-ed25519@openssh.com {BLOB} yubi key"),
        (f"ssh-ed25519 {BLOB} a\x1b[2Jb", f"ssh-ed25519 {BLOB} a[2Jb"),
        (f'command="sh" ssh-ed25519 {BLOB}', None),
        (f"ssh-dss {BLOB}", None),
        ("ssh-ed25519 not-base64", None),
        ("", None),
    ],
)
def test_only_a_plain_public_key_is_taken(text: str, line: str | None) -> None:
    assert normalized(text) == line
