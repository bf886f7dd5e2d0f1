"""A descriptor belongs to one connection, however that ends; and when it does not, nothing goes on as if it did."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from tp2.errors import Tp2Error
from tp2.socks.relay import reset_on_close
from tp2.socks.tunnel import Endpoint, Tunnel
from tp2.system.eventloop import DescriptorLost, Loop


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def accept_and_reset(listener: socket.socket) -> None:
    """Be a server that is killed with a connection in its queue."""
    connection, _ = listener.accept()
    reset_on_close(connection)
    connection.close()


async def connected_and_reset(listener: socket.socket) -> socket.socket:
    """A socket whose connection stood for a moment."""
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
    accept_and_reset(listener)
    return sock


class Talker(asyncio.Protocol):
    """Speaks first, as a client of TLS and of SSH does."""

    def connection_made(self, transport: Any) -> None:
        transport.write(b"hello")


class Quitter(asyncio.Protocol):
    """Hangs up first."""

    def connection_made(self, transport: Any) -> None:
        transport.abort()


@pytest.mark.parametrize("protocol", [Talker, Quitter])
async def test_a_socket_has_no_descriptor_once_its_transport_closed_even_before_it_was_handed_over(
    listener: socket.socket, protocol: Callable[[], asyncio.Protocol]
) -> None:
    sock = await connected_and_reset(listener)
    descriptor = sock.fileno()
    with contextlib.suppress(OSError):
        transport, _ = await asyncio.get_running_loop().create_connection(protocol, sock=sock)
        transport.abort()
    await asyncio.sleep(0.01)
    assert sock.fileno() == -1
    assert not is_open(descriptor)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


async def a_kubernetes_client(address: tuple[str, int]) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=ssl.create_default_context())) as session:
        await session.get(f"https://{address[0]}:{address[1]}/")


async def an_ssh_client(address: tuple[str, int]) -> None:
    await Tunnel(Endpoint(*address, "me"), identity=None, host_key=None).start(10)


@pytest.mark.parametrize("client", [a_kubernetes_client, an_ssh_client])
async def test_a_server_that_is_killed_in_a_handshake_costs_nobody_else_a_descriptor(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, client: Callable[[tuple[str, int]], Awaitable[None]]
) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.sock_connect

    async def connect_and_be_reset(sock: socket.socket, address: Any) -> None:
        await connect(sock, address)
        accept_and_reset(listener)

    monkeypatch.setattr(loop, "sock_connect", connect_and_be_reset)
    # What is left of a failure is freed when the collector runs, by which time others have the descriptor.
    gc.disable()
    try:
        with pytest.raises((aiohttp.ClientError, OSError, Tp2Error)):
            await client(listener.getsockname())
        await asyncio.sleep(0.01)
        others = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
        gc.collect()
    finally:
        gc.enable()
    assert [other for other in others if not is_open(other)] == []
    for other in others:
        os.close(other)


async def test_a_descriptor_that_was_closed_behind_a_connections_back_is_reported(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    if not isinstance(loop, Loop):
        pytest.skip("uvloop only: asyncio's own loop keeps Python's sockets, which know whether they are open")
    reported: list[BaseException | None] = []
    loop.set_exception_handler(lambda _, context: reported.append(context.get("exception")))
    victim = socket.create_connection(listener.getsockname())
    victim.setblocking(False)
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=victim)
    number = transport.get_extra_info("socket").fileno()
    os.close(number)

    with socket.socket() as sock:
        assert sock.fileno() == number
        sock.setblocking(False)
        with pytest.raises(RuntimeError):
            await loop.sock_connect(sock, listener.getsockname())
    sock = socket.socket()
    assert sock.fileno() == number
    with pytest.raises(RuntimeError):
        loop.add_reader(sock, print)
    sock.connect(listener.getsockname())
    with pytest.raises(FileExistsError):
        await loop.connect_accepted_socket(asyncio.Protocol, sock)
    assert [type(error) for error in reported] == [DescriptorLost] * 3
    # Which of the two closes it is all the same now, as long as the other one does not.
    transport.abort()
    sock.detach()
