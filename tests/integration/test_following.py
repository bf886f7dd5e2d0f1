"""What follows a change of the kubeconfig, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tp2.cluster.kubeconfig import Access, load
from tp2.errors import ClusterError
from tp2.following import SETTLING, follow

PATIENCE = 20.0


class Daemon:
    """What is followed, and what was done about it. ``hold`` keeps attaching from succeeding."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.refusal: ClusterError | None = None
        self._news = asyncio.Event()

    def write(self, context: str = "one", user: str = "a", namespace: str = "shop", **changes: Any) -> Access:
        content: dict[str, Any] = {
            "current-context": context,
            "contexts": [
                {"name": name, "context": {"cluster": name, "user": "me", "namespace": namespace}}
                for name in ("one", "two")
            ],
            "clusters": [{"name": name, "cluster": {"server": f"https://{name}.example"}} for name in ("one", "two")],
            "users": [{"name": "me", "user": {"token": user}}],
            **changes,
        }
        self.replace(json.dumps(content))
        return load(self.path, None)

    def replace(self, text: str) -> None:
        """Put another file in its place, as editors do."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)

    def note(self, what: str) -> None:
        self.done.append(what)
        self._news.set()

    async def leave(self, access: Access) -> None:
        self.note(f"leave for {access.context}")

    async def attach(self, access: Access) -> None:
        self.note(f"attach {access.context}")
        await self.hold.wait()
        if self.refusal is not None:
            raise self.refusal
        self.note(f"attached {access.context}")

    async def renew(self) -> None:
        self.note("renew")

    def rename(self, access: Access) -> None:
        self.note(f"rename {access.namespace}")

    async def until(self, *done: str) -> None:
        """Wait until exactly this was done."""
        await self.when(lambda: self.done == list(done))

    async def when(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._news.clear()
                await self._news.wait()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        current = self.write()
        task = asyncio.create_task(
            follow(
                [self.path],
                lambda: load(self.path, None),
                current,
                leave=self.leave,
                attach=self.attach,
                renew=self.renew,
                rename=self.rename,
            )
        )
        try:
            # The first look at the file may come before the watch is there: see that it does no harm.
            await asyncio.sleep(0.1)
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path / "config")


async def test_another_context_is_left_for_at_once_and_attached(daemon: Daemon) -> None:
    async with daemon.running():
        daemon.write("two")
        await daemon.until("leave for two", "attach two", "attached two")


async def test_another_server_in_the_same_context_is_another_cluster(daemon: Daemon) -> None:
    async with daemon.running():
        daemon.write(clusters=[{"name": "one", "cluster": {"server": "https://elsewhere.example"}}])
        await daemon.until("leave for one", "attach one", "attached one")


async def test_new_credentials_are_a_new_login_and_nothing_else(daemon: Daemon) -> None:
    async with daemon.running():
        daemon.write(user="b")
        await daemon.until("renew")


async def test_another_namespace_is_another_meaning_of_short_names(daemon: Daemon) -> None:
    async with daemon.running():
        daemon.write(namespace="blog")
        await daemon.until("rename blog")


async def test_credentials_that_are_mended_while_the_first_login_hangs_are_tried_at_once(daemon: Daemon) -> None:
    async with daemon.running():
        daemon.hold.clear()
        daemon.write("two")
        await daemon.until("leave for two", "attach two")
        daemon.write("two", user="b")
        await daemon.when(lambda: daemon.done[2:] == ["leave for two", "attach two"])
        daemon.hold.set()
        await daemon.when(lambda: daemon.done[-1] == "attached two")


async def test_a_cluster_that_cannot_be_had_is_tried_again_until_the_file_names_another(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    async with daemon.running():
        daemon.refusal = ClusterError("cannot reach it", "refused", "wait")
        daemon.write("two")
        await daemon.when(lambda: daemon.done.count("attach two") > 2)
        assert caplog.text.count("cannot reach it: refused") == 1
        daemon.refusal = None
        daemon.write("one")
        await daemon.when(lambda: daemon.done[-1] == "attached one")
        assert "attached two" not in daemon.done


async def test_a_broken_file_is_told_once_and_changes_nothing(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    async with daemon.running():
        for _ in range(3):
            daemon.replace("{")
            await asyncio.sleep(2 * SETTLING)
        daemon.write(namespace="blog")
        await daemon.until("rename blog")
    assert caplog.text.count("the kubeconfig as it was stays in use") == 1


async def test_a_file_that_is_emptied_before_it_is_written_is_not_complained_about(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    """As kubectl does it."""
    async with daemon.running():
        whole = daemon.path.read_text()
        for context in ("two", "one", "two"):
            with daemon.path.open("w") as file:
                await asyncio.sleep(0)
                file.write(whole.replace('"current-context": "one"', f'"current-context": "{context}"'))
            await daemon.when(lambda context=context: daemon.done[-1:] == [f"attached {context}"])  # type: ignore[misc]
    assert "stays in use" not in caplog.text
