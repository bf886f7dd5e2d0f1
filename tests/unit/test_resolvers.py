"""Which nameservers are captured and asked: by options, resolv.conf, behind systemd-resolved, and when they change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tp2.errors import Tp2Error
from tp2.resolvers import Resolvers, discover, flush_system_cache, follow
from tp2.settings import Settings, SocketAddress


def at(*addresses: str) -> tuple[SocketAddress, ...]:
    return tuple(SocketAddress(address, 53) for address in addresses)


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.53\nnameserver fe80::1%eth0\nsearch corp.example\n")
    return path


@pytest.fixture
def uplinks(tmp_path: Path) -> Path:
    return tmp_path / "uplinks.conf"


def test_the_nameservers_of_resolv_conf_are_captured_and_asked(resolv_conf: Path, uplinks: Path) -> None:
    assert discover(Settings(), resolv_conf, uplinks) == Resolvers(
        ("192.0.2.53", "fe80::1"), at("192.0.2.53", "fe80::1%eth0"), ("corp.example",)
    )


def test_options_come_first(resolv_conf: Path, uplinks: Path) -> None:
    named = Settings(dns=("198.51.100.53",))
    assert discover(named, resolv_conf, uplinks) == Resolvers(
        ("198.51.100.53",), at("198.51.100.53"), ("corp.example",), systems=False
    )
    elsewhere = Settings(fallback=(SocketAddress("203.0.113.53", 5353),))
    assert discover(elsewhere, resolv_conf, uplinks).fallback == (SocketAddress("203.0.113.53", 5353),)
    assert discover(elsewhere, resolv_conf, uplinks).captured == ("192.0.2.53", "fe80::1")


def test_a_nameserver_of_this_machines_programs_is_known_as_such_whatever_its_scope(
    resolv_conf: Path, uplinks: Path
) -> None:
    resolv_conf.write_text("nameserver fe80::1%eth0\n")
    assert discover(Settings(), resolv_conf, uplinks).systems
    assert discover(Settings(dns=("fe80::1",)), resolv_conf, uplinks).systems
    assert not discover(Settings(dns=("fe80::2",)), resolv_conf, uplinks).systems


def test_behind_systemd_resolveds_stub_its_servers_are_captured_and_asked(resolv_conf: Path, uplinks: Path) -> None:
    resolv_conf.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\n")
    uplinks.write_text("nameserver 192.0.2.1\nnameserver 192.0.2.2\n")
    assert discover(Settings(), resolv_conf, uplinks) == Resolvers(
        ("127.0.0.53", "192.0.2.1", "192.0.2.2"), at("192.0.2.1", "192.0.2.2")
    )


def test_a_stub_that_does_not_tell_its_servers_is_asked_itself(resolv_conf: Path, uplinks: Path) -> None:
    resolv_conf.write_text("nameserver 127.0.0.53\n")
    assert discover(Settings(), resolv_conf, uplinks) == Resolvers(("127.0.0.53",), at("127.0.0.53"))


def test_a_machine_without_resolv_conf_can_be_told_its_nameserver(tmp_path: Path, uplinks: Path) -> None:
    assert discover(Settings(dns=("192.0.2.1",)), tmp_path / "none", uplinks) == Resolvers(
        ("192.0.2.1",), at("192.0.2.1"), systems=False
    )
    with pytest.raises(Tp2Error, match="cannot read"):
        discover(Settings(), tmp_path / "none", uplinks)


@pytest.mark.parametrize("content", ["", "search corp.example\n", "nameserver nonsense\n"])
def test_without_a_nameserver_the_remedy_is_named(resolv_conf: Path, uplinks: Path, content: str) -> None:
    resolv_conf.write_text(content)
    with pytest.raises(Tp2Error, match="names no nameserver") as caught:
        discover(Settings(), resolv_conf, uplinks)
    assert "--dns" in caught.value.remedy


def replace(path: Path, content: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(content)
    new.rename(path)


@contextlib.asynccontextmanager
async def following(path: Path, uplinks: Path, grace: float) -> AsyncIterator[asyncio.Queue[Resolvers]]:
    seen: asyncio.Queue[Resolvers] = asyncio.Queue()
    settings = Settings()
    task = asyncio.create_task(
        follow(settings, discover(settings, path, uplinks), seen.put, path=path, uplinks=uplinks, grace=grace)
    )
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_replaced_nameserver_is_followed_and_the_former_one_stays_captured_for_a_while(
    resolv_conf: Path, uplinks: Path
) -> None:
    replace(resolv_conf, "nameserver 192.0.2.53\n")
    async with following(resolv_conf, uplinks, grace=0.3) as seen, asyncio.timeout(20):
        replace(resolv_conf, "nameserver 198.51.100.53\n")
        assert await seen.get() == Resolvers(("198.51.100.53", "192.0.2.53"), at("198.51.100.53"))
        assert await seen.get() == Resolvers(("198.51.100.53",), at("198.51.100.53"))


async def test_a_file_that_is_gone_for_a_moment_changes_nothing(resolv_conf: Path, uplinks: Path) -> None:
    replace(resolv_conf, "nameserver 192.0.2.53\n")
    async with following(resolv_conf, uplinks, grace=30) as seen, asyncio.timeout(20):
        resolv_conf.unlink()
        resolv_conf.write_text("")
        resolv_conf.write_text("nameserver 192.0.2.54\n")
        assert await seen.get() == Resolvers(("192.0.2.54", "192.0.2.53"), at("192.0.2.54"))


async def test_new_servers_behind_the_stub_are_followed(resolv_conf: Path, uplinks: Path) -> None:
    replace(resolv_conf, "nameserver 127.0.0.53\n")
    replace(uplinks, "nameserver 192.0.2.1\n")
    async with following(resolv_conf, uplinks, grace=30) as seen, asyncio.timeout(20):
        replace(uplinks, "nameserver 192.0.2.2\n")
        assert await seen.get() == Resolvers(("127.0.0.53", "192.0.2.2", "192.0.2.1"), at("192.0.2.2"))


async def test_systemd_resolveds_cache_is_flushed_where_it_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    program = tmp_path / "resolvectl"
    program.write_text(f'#!/bin/sh\necho "$@" >>{calls}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    await flush_system_cache(Resolvers(("192.0.2.53",), at("192.0.2.53")))
    assert not calls.exists()
    await flush_system_cache(Resolvers(("127.0.0.53",), at("192.0.2.53")))
    assert calls.read_text() == "flush-caches\n"
