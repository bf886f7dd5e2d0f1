"""A Kubernetes API in this process, and a Cluster that follows it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import kubernetes_asyncio.client  # noqa: F401 - it takes seconds to import, which no test should count as its own
import pytest

from tp2.cluster.catalog import Catalog
from tp2.cluster.kubeconfig import Access, load
from tp2.cluster.stream import Pace
from tp2.cluster.watch import Cluster
from tp2.sandbox.kubeapi_resources import NAMESPACES, SERVICES, Object
from tp2.sandbox.kubeapi_server import KubeApi
from tp2.sandbox.kubeapi_store import Store
from tp2.sandbox.tls import KeyPair, new_authority

DEADLINE = 40.0
PACE = Pace(connect=5.0, answer=5.0, watch=300.0, margin=5.0)


def service(name: str, **fields: Any) -> Object:
    return {"metadata": {"name": name, **fields}, "spec": {"ports": [{"port": 80}]}}


def shop(*names: str) -> Store:
    """A cluster with a namespace ``shop`` and these services in it."""
    store = Store()
    store.create(NAMESPACES, "", {"metadata": {"name": "shop"}})
    for name in names:
        store.create(SERVICES, "shop", service(name))
    return store


class Lab:
    """A server, its kubeconfig, and ways to follow it."""

    def __init__(self, api: KubeApi, path: Path) -> None:
        self.api = api
        self.path = path

    def write(self) -> Path:
        """Write the kubeconfig that is valid now."""
        self.path.write_text(json.dumps(self.api.kubeconfig("shop")))
        return self.path

    def access(self) -> Access:
        return load(self.write(), None)

    @contextlib.asynccontextmanager
    async def followed(
        self, *namespaces: str, pace: Pace = PACE, access: Access | None = None
    ) -> AsyncIterator[Followed]:
        followed = Followed(access or self.access(), namespaces, pace)
        try:
            await followed.cluster.start(DEADLINE)
            yield followed
        finally:
            await followed.cluster.close()
        assert not [task for task in asyncio.all_tasks() if "tp2/cluster" in str(task.get_coro())]


class Followed:
    """A cluster with what it published."""

    def __init__(self, access: Access, namespaces: tuple[str, ...], pace: Pace) -> None:
        self.cluster = Cluster(access, namespaces=namespaces, on_change=self._note, pace=pace)
        self.published: list[Catalog] = []
        self._news = asyncio.Event()

    def _note(self, catalog: Catalog) -> None:
        self.published.append(catalog)
        self._news.set()

    async def has(self, *names: str, namespace: str = "shop") -> None:
        """Wait until exactly these services are in the catalog."""
        wanted = set(names)
        async with asyncio.timeout(DEADLINE):
            while {name for space, name in self.cluster.catalog.services if space == namespace} != wanted:
                self._news.clear()
                await self._news.wait()

    async def status(self, synced: bool) -> str:
        """Wait until the status says so; return its last error, or an empty text."""
        await eventually(lambda: self.cluster.status()["synced"] == synced)
        return self.cluster.status()["last_error"] or ""


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what has no event."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def authority() -> KeyPair:
    return new_authority()


@pytest.fixture
def lab_on_any_loop(authority: KeyPair, tmp_path: Path) -> Callable[[], contextlib.AbstractAsyncContextManager[Lab]]:
    """Makes a lab on the loop that runs then."""

    @contextlib.asynccontextmanager
    async def make() -> AsyncIterator[Lab]:
        api = KubeApi(shop("web"), authority, "secret")
        await api.start()
        try:
            yield Lab(api, tmp_path / "kubeconfig")
        finally:
            await api.stop()

    return make


@pytest.fixture
async def lab(lab_on_any_loop: Callable[[], contextlib.AbstractAsyncContextManager[Lab]]) -> AsyncIterator[Lab]:
    async with lab_on_any_loop() as lab:
        yield lab
