"""resolv.conf followed through whatever keeps it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.integration.dns.world import PATIENCE
from tp2.dns.resolvconf import ResolvConf, chain_directories, watch


class Followed:
    """What a watch has told."""

    def __init__(self, path: Path) -> None:
        self.told: asyncio.Queue[ResolvConf] = asyncio.Queue()
        self.task = asyncio.ensure_future(self._follow(path))

    async def _follow(self, path: Path) -> None:
        async with aclosing(watch(path)) as changes:
            async for conf in changes:
                self.told.put_nowait(conf)

    async def next(self) -> tuple[str, ...]:
        return (await asyncio.wait_for(self.told.get(), PATIENCE)).nameservers


@pytest.fixture
async def follow(tmp_path: Path) -> AsyncIterator[Followed]:
    (tmp_path / "resolv.conf").write_text("nameserver 10.0.0.1\n")
    followed = Followed(tmp_path / "resolv.conf")
    assert await followed.next() == ("10.0.0.1",)
    yield followed
    followed.task.cancel()
    await asyncio.gather(followed.task, return_exceptions=True)


async def test_a_file_written_in_place_is_told_within_a_second(follow: Followed, tmp_path: Path) -> None:
    for n in range(2, 5):
        started = time.monotonic()
        (tmp_path / "resolv.conf").write_text(f"nameserver 10.0.0.{n}\n")
        assert await follow.next() == (f"10.0.0.{n}",)
        assert time.monotonic() - started < 1


async def test_a_file_replaced_by_a_rename_is_told_again_and_again(follow: Followed, tmp_path: Path) -> None:
    for n in range(2, 6):
        (tmp_path / "new").write_text(f"nameserver 10.0.0.{n}\n")
        (tmp_path / "new").rename(tmp_path / "resolv.conf")
        assert await follow.next() == (f"10.0.0.{n}",)


async def test_a_file_that_is_gone_or_says_nothing_is_waited_for(follow: Followed, tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").unlink()
    (tmp_path / "resolv.conf").write_text("# being written\n")
    (tmp_path / "resolv.conf").write_text("nameserver 10.0.0.2\n")
    assert await follow.next() == ("10.0.0.2",)


async def test_a_change_that_changes_no_meaning_is_not_told(follow: Followed, tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("# touched\nnameserver   10.0.0.1\n")
    (tmp_path / "other").write_text("x")
    (tmp_path / "resolv.conf").write_text("nameserver 10.0.0.1\nsearch corp.example\n")
    assert (await asyncio.wait_for(follow.told.get(), PATIENCE)).search == ("corp.example",)


async def test_every_link_of_a_chain_is_followed(tmp_path: Path) -> None:
    for directory in ("etc", "run", "run/stub", "run/real"):
        (tmp_path / directory).mkdir()
    (tmp_path / "run/stub/resolv.conf").write_text("nameserver 127.0.0.53\n")
    (tmp_path / "run/real/resolv.conf").write_text("nameserver 10.0.0.1\n")
    (tmp_path / "run/link").symlink_to("stub/resolv.conf")
    (tmp_path / "etc/resolv.conf").symlink_to("../run/link")
    followed = Followed(tmp_path / "etc/resolv.conf")
    assert await followed.next() == ("127.0.0.53",)

    (tmp_path / "run/new").symlink_to("real/resolv.conf")
    (tmp_path / "run/new").rename(tmp_path / "run/link")
    assert await followed.next() == ("10.0.0.1",)
    (tmp_path / "run/real/resolv.conf").write_text("nameserver 10.0.0.2\n")
    assert await followed.next() == ("10.0.0.2",)
    (tmp_path / "etc/resolv.conf").unlink()
    (tmp_path / "etc/resolv.conf").symlink_to(tmp_path / "run/late/resolv.conf")
    (tmp_path / "run/late").mkdir()
    (tmp_path / "run/late/resolv.conf").write_text("nameserver 10.0.0.3\n")
    assert await followed.next() == ("10.0.0.3",)
    followed.task.cancel()
    await asyncio.gather(followed.task, return_exceptions=True)


def test_the_directories_of_a_chain_are_those_of_every_link(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/resolv.conf").symlink_to("../b/resolv.conf")
    assert chain_directories(tmp_path / "a/resolv.conf") == (tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/resolv.conf").symlink_to(tmp_path / "c/d/resolv.conf")
    assert chain_directories(tmp_path / "a/resolv.conf") == (tmp_path / "a", tmp_path / "b", tmp_path)


def test_links_in_a_circle_come_to_an_end(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    assert chain_directories(tmp_path / "one") == (tmp_path,)
