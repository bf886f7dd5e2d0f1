"""An endpoint with several addresses is reached by any one that works."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tp2.socks.dial import dial


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    async def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


@pytest.fixture
def dead() -> Iterator[tuple[str, int]]:
    """An address where nothing listens, and that nobody else is given meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()


async def test_a_dead_first_address_is_passed_over(monkeypatch: pytest.MonkeyPatch, dead: tuple[str, int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        resolve_to(monkeypatch, dead, listener.getsockname())
        with await dial("endpoint", 22) as sock:
            assert sock.getpeername() == listener.getsockname()
            assert sock.gettimeout() == 0


async def test_when_all_addresses_fail_the_error_is_theirs(
    monkeypatch: pytest.MonkeyPatch, dead: tuple[str, int]
) -> None:
    resolve_to(monkeypatch, dead, dead)
    with pytest.raises(ConnectionRefusedError):
        await dial("endpoint", 22)


async def test_a_name_without_addresses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch)
    with pytest.raises(OSError, match="no address"):
        await dial("endpoint", 22)
