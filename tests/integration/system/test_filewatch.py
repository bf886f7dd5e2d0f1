"""A watched file is known to have changed, whatever keeps it and however that writes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tp2.system.filewatch import chain_directories, watching

#: Seconds after which a change that should be known at once is not.
PATIENCE = 20.0


async def until(path: Path, content: str, changed: asyncio.Event) -> None:
    """Return when *path* is known to have *content*: after an event, or else never."""
    async with asyncio.timeout(PATIENCE):
        while True:
            changed.clear()
            if path.exists() and path.read_text() == content:
                return
            await changed.wait()


async def test_a_file_written_in_place_is_told_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("0")
    async with watching([path]) as changed:
        for n in range(1, 5):
            path.write_text(str(n))
            await until(path, str(n), changed)


async def test_a_file_replaced_by_a_rename_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("0")
    async with watching([path]) as changed:
        for n in range(1, 5):
            (tmp_path / "new").write_text(str(n))
            (tmp_path / "new").rename(path)
            await until(path, str(n), changed)


async def test_a_file_that_does_not_exist_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "later" / "still" / "file"
    async with watching([path]) as changed:
        waiting = asyncio.create_task(until(path, "here", changed))
        await asyncio.sleep(0)
        path.parent.mkdir(parents=True)
        path.write_text("here")
        await waiting
        path.unlink()
        path.parent.rmdir()
        path.parent.mkdir()
        path.write_text("back")
        await until(path, "back", changed)


async def test_every_link_of_a_chain_is_followed(tmp_path: Path) -> None:
    for directory in ("etc", "run", "run/stub", "run/real"):
        (tmp_path / directory).mkdir()
    (tmp_path / "run/stub/file").write_text("stub")
    (tmp_path / "run/real/file").write_text("real")
    (tmp_path / "run/link").symlink_to("stub/file")
    path = tmp_path / "etc/file"
    path.symlink_to("../run/link")
    async with watching([path]) as changed:
        await until(path, "stub", changed)
        (tmp_path / "run/new").symlink_to("real/file")
        (tmp_path / "run/new").rename(tmp_path / "run/link")
        await until(path, "real", changed)
        (tmp_path / "run/real/file").write_text("changed")
        await until(path, "changed", changed)
        path.unlink()
        path.symlink_to(tmp_path / "run/late/file")
        (tmp_path / "run/late").mkdir()
        (tmp_path / "run/late/file").write_text("late")
        await until(path, "late", changed)


async def test_a_hard_link_elsewhere_changes_the_file_as_a_bind_mount_does(tmp_path: Path) -> None:
    # The file is written by a path in a directory that nobody watches, as one mounted into a container is.
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path, other = tmp_path / "here/file", tmp_path / "elsewhere/file"
    path.write_text("0")
    other.hardlink_to(path)
    async with watching([path]) as changed:
        for n in range(1, 4):
            other.write_text(str(n))
            await until(path, str(n), changed)
        (tmp_path / "here/new").write_text("new")
        (tmp_path / "here/new").rename(path)
        await until(path, "new", changed)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
async def test_a_file_that_is_mounted_over_is_seen(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_text("below")
    other.write_text("above")
    async with watching([path]) as changed:
        await until(path, "below", changed)
        subprocess.run(["mount", "--bind", other, path], check=True)
        try:
            await until(path, "above", changed)
        finally:
            subprocess.run(["umount", path], check=True)
        await until(path, "below", changed)


async def test_reading_the_file_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("0")
    async with watching([path]) as changed:
        changed.clear()
        for _ in range(100):
            path.read_text()
        # A change of another file in the directory comes after whatever the reading would have caused.
        (tmp_path / "other").touch()
        async with asyncio.timeout(PATIENCE):
            await changed.wait()
        changed.clear()
        await asyncio.sleep(0)
        assert not changed.is_set()


async def test_nothing_is_left_running_afterwards(tmp_path: Path) -> None:
    before = threading.active_count()
    async with watching([tmp_path / "file"]):
        assert threading.active_count() > before
    # The thread that waited for the observer's end is the loop's own, and idle.
    assert not [thread for thread in threading.enumerate() if "observer" in type(thread).__name__.lower()]


def test_the_directories_of_a_chain_are_those_of_every_link(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/file").symlink_to("../b/file")
    assert chain_directories(tmp_path / "a/file") == (tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/file").symlink_to(tmp_path / "c/d/file")
    assert chain_directories(tmp_path / "a/file") == (tmp_path / "a", tmp_path / "b", tmp_path)


def test_links_in_a_circle_come_to_an_end(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    assert chain_directories(tmp_path / "one") == (tmp_path,)


async def test_a_file_that_is_moved_away_is_told_at_once(tmp_path: Path) -> None:
    """watchdog by itself waits half a second for the other half of a rename, and holds back what comes after it."""
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc/file"
    took = []
    async with watching([path]) as changed:
        for _ in range(3):
            path.touch()
            await quiet(changed)
            began = time.monotonic()
            path.rename(tmp_path / "elsewhere")
            await changed.wait()
            took.append(time.monotonic() - began)
    assert min(took) < 0.4, took


async def quiet(changed: asyncio.Event) -> None:
    """Return when what has happened has been told."""
    while True:
        changed.clear()
        try:
            async with asyncio.timeout(0.2):
                await changed.wait()
        except TimeoutError:
            return
