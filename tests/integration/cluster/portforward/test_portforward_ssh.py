"""SSH inside a port-forward, with the real sshd and the real tunnel: nothing is lost, and an end is a reconnect."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.portforward.rig import Rig, echo, open_files, pod, running
from tests.integration.socks.rig import Portal, ending_of, portal, started, tunnel_to
from tests.integration.socks.rig import eventually as eventually_
from tests.integration.socks.sshd import Sshd, write_key
from tp2.errors import ClusterError, EndpointError, Tp2Error
from tp2.sandbox.kubeapi_resources import PODS
from tp2.socks.dial import Way
from tp2.socks.tunnel import Tunnel
from tp2.types import Destination

MEGABYTE = 1 << 20
BLOCK = os.urandom(MEGABYTE)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


def tunnel_through(rig: Rig, sshd: Sshd, *names: str, **options: object) -> Tunnel:
    """A tunnel over port-forwards to the first of the pods *names* that there is."""

    async def connect(_host: str, port: int) -> Way:
        there = [name for name in names or ("db-1",) if rig.api.store.has(PODS, "shop", name)]
        return Way(await rig.forward(port, there[0] if there else "gone"))

    return tunnel_to(sshd, **{"connect": connect, **options})


async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send as many megabytes as a first line says."""
    for _ in range(int(await reader.readline())):
        writer.write(BLOCK)
        await writer.drain()
    writer.write_eof()
    await reader.read()


async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the end of file with a digest of what came before."""
    sha = hashlib.sha256()
    while data := await reader.read(1 << 18):
        sha.update(data)
    writer.write(sha.digest())
    writer.write_eof()


async def download(entrance: Portal, megabytes: int) -> bytes:
    """The digest of *megabytes* from :func:`source`."""
    reader, writer = await entrance.connect()
    writer.write(b"%d\n" % megabytes)
    sha = hashlib.sha256()
    while data := await reader.read(1 << 18):
        sha.update(data)
    writer.close()
    return sha.digest()


async def upload(entrance: Portal, megabytes: int) -> bytes:
    """What :func:`digest` says of *megabytes*."""
    reader, writer = await entrance.connect()
    for _ in range(megabytes):
        writer.write(BLOCK)
        await writer.drain()
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def sha_of(megabytes: int) -> bytes:
    sha = hashlib.sha256()
    for _ in range(megabytes):
        sha.update(BLOCK)
    return sha.digest()


async def works(tunnel: Tunnel, destination: Destination) -> None:
    """Say hello to an echo through *tunnel*."""
    async with portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()


async def test_a_hundred_megabytes_arrive_as_they_were_sent(rig: Rig, endpoint: Sshd) -> None:
    expected = sha_of(100)
    async with (
        started(tunnel_through(rig, endpoint)) as tunnel,
        running(source) as from_here,
        running(digest) as to_here,
        portal(tunnel, Destination("127.0.0.1", from_here)) as down,
        portal(tunnel, Destination("127.0.0.1", to_here)) as up,
    ):
        assert await download(down, 100) == expected
        assert await upload(up, 100) == expected
        assert len(rig.streams) == 1
        assert tunnel.peer_addresses == (("127.0.0.1", rig.api.port),)


async def test_two_at_once_arrive_as_they_were_sent(rig: Rig, endpoint: Sshd) -> None:
    async with (
        started(tunnel_through(rig, endpoint)) as tunnel,
        running(source) as from_here,
        running(digest) as to_here,
        portal(tunnel, Destination("127.0.0.1", from_here)) as down,
        portal(tunnel, Destination("127.0.0.1", to_here)) as up,
    ):
        answers = await asyncio.gather(download(down, 30), upload(up, 20), download(down, 10))
        assert list(answers) == [sha_of(30), sha_of(20), sha_of(10)]


async def test_a_slow_reader_does_not_stop_the_other(rig: Rig, endpoint: Sshd) -> None:
    async with (
        started(tunnel_through(rig, endpoint)) as tunnel,
        running(source) as port,
        portal(tunnel, Destination("127.0.0.1", port)) as entrance,
    ):
        slow, asking = await entrance.connect()
        asking.write(b"20\n")
        sha = hashlib.sha256(await slow.readexactly(MEGABYTE))
        assert await download(entrance, 20) == sha_of(20)
        while data := await slow.read(1 << 18):
            sha.update(data)
        assert sha.digest() == sha_of(20)
        asking.close()


@pytest.mark.parametrize("how", ["cut", "api killed"])
async def test_a_websocket_that_dies_is_a_reset_and_a_reconnect(rig: Rig, endpoint: Sshd, how: str) -> None:
    async with started(tunnel_through(rig, endpoint)) as tunnel, running(echo) as port:
        async with portal(tunnel, Destination("127.0.0.1", port)) as entrance:
            reader, writer = await entrance.connect()
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            if how == "cut":
                rig.api.port_forwards.cut()
            else:
                await rig.api.kill()
            assert await ending_of(reader) == "reset"
            if how == "api killed":
                await eventually_(lambda: "connection refused" in (tunnel.status()["last_error"] or ""))
                await rig.api.start()
        await works(tunnel, Destination("127.0.0.1", port))
        status = tunnel.status()
        assert status["reconnects"] == 1
        assert status["last_error"]
        assert len([stream for stream in rig.streams if not stream.is_closing()]) == 1


async def test_a_pod_that_is_replaced_is_left_for_the_next(rig: Rig, endpoint: Sshd) -> None:
    async with (
        started(tunnel_through(rig, endpoint, "db-1", "db-2")) as tunnel,
        running(echo) as port,
    ):
        rig.api.store.create(PODS, "shop", pod("db-2"))
        rig.api.store.delete(PODS, "shop", "db-1")
        rig.api.port_forwards.cut()
        await eventually_(lambda: tunnel.status()["reconnects"] == 1)
        await works(tunnel, Destination("127.0.0.1", port))
    assert "/pods/db-2/portforward" in rig.api.requests[-1]


async def failure(tunnel: Tunnel) -> Tp2Error:
    with pytest.raises(Tp2Error) as caught:
        await tunnel.start(30.0)
    await tunnel.close()
    return caught.value


async def test_what_stands_in_the_way_is_said_as_it_is(rig: Rig, endpoint: Sshd) -> None:
    gone = await failure(tunnel_through(rig, endpoint, "nowhere"))
    assert isinstance(gone, EndpointError)
    assert gone.what == "the pod shop/gone is gone"
    rig.api.port_forwards.kubelet = False
    assert "error dialing backend" in (await failure(tunnel_through(rig, endpoint))).why
    rig.api.forbid("pods/portforward", verbs=("create",))
    forbidden = await failure(tunnel_through(rig, endpoint))
    assert isinstance(forbidden, ClusterError)
    assert "create on pods/portforward is not granted" in forbidden.why


async def test_no_sshd_in_the_pod_is_said_in_the_nodes_words(rig: Rig, tmp_path: Path) -> None:
    sshd = Sshd(tmp_path)
    try:
        error = await failure(tunnel_through(rig, sshd))
    finally:
        sshd.stop()
        sshd._reservation.close()
    assert isinstance(error, EndpointError)
    assert error.what == f"nothing listens on port {sshd.port} of pod shop/db-1"


async def test_a_right_that_is_taken_away_fails_new_connections_until_it_is_given_back(
    rig: Rig, endpoint: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tp2.socks.tunnel.FAILED_RETRY", 0.1)
    async with started(tunnel_through(rig, endpoint)) as tunnel, running(echo) as port:
        rig.api.forbid("pods/portforward")
        rig.api.port_forwards.cut()
        await eventually_(lambda: tunnel.status()["state"] == "failed")
        assert "pods/portforward" in (tunnel.status()["last_error"] or "")
        rig.api.allow("pods/portforward")
        await eventually_(lambda: tunnel.status()["state"] == "connected")
        await works(tunnel, Destination("127.0.0.1", port))


async def test_the_key_that_the_api_vouches_for_is_the_only_one_trusted(
    rig: Rig, endpoint: Sshd, tmp_path: Path
) -> None:
    other = write_key(tmp_path / "other")

    def vouching(*keys: str) -> Tunnel:
        async def connect(_host: str, port: int) -> Way:
            return Way(await rig.forward(port), keys, "the log of pod shop/db-1")

        return tunnel_to(endpoint, connect=connect, host_key=other)

    async with started(vouching(other, endpoint.host_key)) as tunnel:
        assert tunnel.status()["state"] == "connected"
    wrong = await failure(vouching(other))
    assert isinstance(wrong, EndpointError)
    assert not wrong.lasting
    assert "the log of pod shop/db-1 says its key is ssh-ed25519 SHA256:" in wrong.why
    garbage = await failure(vouching("garbage"))
    assert "the log of pod shop/db-1 gives one that cannot be read" in garbage.why


async def test_a_closed_tunnel_leaves_nothing_behind(rig: Rig, endpoint: Sshd, tmp_path: Path) -> None:
    wrong = write_key(tmp_path / "other")
    files = open_files()
    for _ in range(2):
        async with started(tunnel_through(rig, endpoint)), running(echo):
            pass
        await failure(tunnel_through(rig, endpoint, host_key=wrong))
    await eventually_(lambda: not len(rig.api.port_forwards))
    await eventually_(lambda: open_files() == files)
