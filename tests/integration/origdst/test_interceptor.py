"""Who is carried and who is reset: real listeners, and a kernel that says what the test asks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import pytest

from tp2.errors import AddressInUse, ForwarderError, Tp2Error, UsageError
from tp2.origdst.interceptor import Interceptor
from tp2.types import Destination, Redirect, Wanted

WEB = Destination("10.96.1.1", 80)
OTHER = Destination("10.9.9.9", 5432)
MEMORY = 60.0


class CapturedSet:
    def __init__(self) -> None:
        self.addresses = {WEB.address}
        self.refusing = False

    def __contains__(self, address: str) -> bool:
        return address in self.addresses

    def has(self, addresses: Iterable[str]) -> bool:
        return all(address in self.addresses for address in addresses)

    async def ensure(self, addresses: Iterable[str]) -> None:
        if self.refusing:
            raise ForwarderError("refused", "as the test asked", "none")
        self.addresses.update(addresses)

    def why(self, address: str) -> str | None:
        return "that is this machine" if address.startswith("192.") else None


class Rules:
    def __init__(self) -> None:
        self.standing: dict[Destination, int] = {}

    async def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        for destination in remove:
            del self.standing[destination]
        self.standing |= {redirect.destination: redirect.local_port for redirect in add}


class Connection:
    def __init__(self, sock: socket.socket, on_close: Callable[[Any], None]) -> None:
        self.bytes_sent = 10
        self.bytes_received = 20
        self.sock = sock
        self._on_close = on_close

    def abort(self) -> None:
        self.sock.close()
        self._on_close(self)


class Carrier:
    def __init__(self) -> None:
        self.carried: list[tuple[Destination, Connection]] = []
        self.came = asyncio.Event()

    def carry(self, sock: socket.socket, destination: Destination, on_close: Callable[[Any], None]) -> Connection:
        connection = Connection(sock, on_close)
        self.carried.append((destination, connection))
        self.came.set()
        return connection


class Rig:
    def __init__(self) -> None:
        self.now = 0.0
        self.going_to: Destination | None = WEB
        self.captured = CapturedSet()
        self.rules = Rules()
        self.carrier = Carrier()
        self.interceptor = Interceptor(
            self.captured,
            self.rules,
            self.carrier,
            origin=lambda sock: self.going_to,
            name=lambda destination: f"name of {destination.address}",
            memory=MEMORY,
            clock=lambda: self.now,
        )

    async def connect(self, address: str = "127.0.0.1") -> tuple[socket.socket, Connection]:
        self.carrier.came.clear()
        client = socket.create_connection((address, self.interceptor.port))
        await asyncio.wait_for(self.carrier.came.wait(), 10)
        return client, self.carrier.carried[-1][1]

    async def is_reset(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.interceptor.port)
        except ConnectionResetError:
            return True
        try:
            await asyncio.wait_for(reader.read(), 0.5)
        except ConnectionResetError:
            return True
        except TimeoutError:
            pass
        finally:
            writer.close()
        return False


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    rig.interceptor.listen(["127.0.0.1", "::1"], free_ports())
    task = asyncio.create_task(rig.interceptor.run())
    await asyncio.sleep(0)
    yield rig
    for _, connection in rig.carrier.carried:
        connection.sock.close()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def free_ports() -> list[int]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(5):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            found.append(sock.getsockname()[1])
    return found


async def test_a_connection_is_carried_to_where_the_kernel_says_that_it_was_going(rig: Rig) -> None:
    client, _ = await rig.connect()
    assert rig.carrier.carried[-1][0] == WEB
    client.close()


async def test_both_families_are_heard_on_one_port(rig: Rig) -> None:
    rig.captured.addresses.add("fd00:10:96::1")
    rig.going_to = Destination("fd00:10:96::1", 80)
    client, _ = await rig.connect("::1")
    assert rig.carrier.carried[-1][0] == rig.going_to
    (row,) = rig.interceptor.snapshot()
    assert (row["local_address"], row["local_port"]) == ("::1", rig.interceptor.port)
    client.close()


async def test_whoever_connects_to_the_listener_itself_is_reset(rig: Rig) -> None:
    rig.going_to = None
    assert await rig.is_reset()
    assert rig.interceptor.direct == 1
    assert rig.carrier.carried == []


async def test_a_destination_that_is_not_the_clusters_is_reset_and_counted(rig: Rig) -> None:
    for there in (OTHER, OTHER, Destination("127.0.0.1", 22), Destination("192.0.2.10", 22)):
        rig.going_to = there
        assert await rig.is_reset()
    assert rig.carrier.carried == []
    assert rig.interceptor.snapshot() == []
    assert rig.interceptor.take_refused() == {
        OTHER: 2,
        Destination("127.0.0.1", 22): 1,
        Destination("192.0.2.10", 22): 1,
    }
    assert rig.interceptor.take_refused() == {}


async def test_a_destination_that_has_left_the_cluster_is_reset_and_its_connections_go_on(rig: Rig) -> None:
    client, connection = await rig.connect()
    rig.captured.addresses.clear()
    assert await rig.is_reset()
    assert connection.sock.fileno() != -1
    client.close()


async def test_any_port_of_an_address_of_the_cluster_will_do(rig: Rig) -> None:
    rig.going_to = Destination(WEB.address, 12345)
    client, _ = await rig.connect()
    assert rig.carrier.carried[-1][0].port == 12345
    client.close()


async def test_an_answer_leaves_when_its_addresses_are_captured(rig: Rig) -> None:
    wanted = [Wanted("other.ns", OTHER, 5)]
    assert rig.interceptor.renew([Wanted("web.shop", WEB, 5)])
    assert not rig.interceptor.renew(wanted)
    await rig.interceptor.ensure(wanted)
    assert rig.interceptor.renew(wanted)
    rig.captured.refusing = True
    with pytest.raises(Tp2Error):
        await rig.interceptor.ensure([Wanted("x.ns", Destination("10.9.9.8", 1), 5)])


async def test_what_is_in_use_is_shown_with_its_name_and_what_was_for_a_while(rig: Rig) -> None:
    client, connection = await rig.connect()
    (row,) = rig.interceptor.snapshot()
    assert set(row) == {
        *("name", "address", "port", "local_address", "local_port", "state", "connections", "total_connections"),
        *("bytes_sent", "bytes_received", "last_used", "expires_in"),
    }
    assert (row["name"], row["address"], row["port"]) == ("name of 10.96.1.1", *WEB)
    assert (row["state"], row["connections"], row["expires_in"]) == ("active", 1, None)
    assert (row["bytes_sent"], row["bytes_received"]) == (10, 20)
    client.close()
    connection.abort()
    (row,) = rig.interceptor.snapshot()
    assert (row["state"], row["bytes_sent"], row["bytes_received"], row["expires_in"]) == ("idle", 10, 20, MEMORY)
    rig.now = MEMORY
    assert rig.interceptor.live() == 0
    assert rig.interceptor.snapshot() == []


async def test_a_destination_besides_the_cluster_can_be_pinned(rig: Rig) -> None:
    await rig.interceptor.pin([Wanted("db.corp", OTHER, 0)])
    assert rig.rules.standing == {OTHER: rig.interceptor.port}
    rig.going_to = OTHER
    client, connection = await rig.connect()
    (row,) = rig.interceptor.snapshot()
    assert (row["name"], row["state"]) == ("db.corp", "pinned")
    await rig.interceptor.unpin([OTHER])
    assert rig.rules.standing == {}
    assert await rig.is_reset()
    assert connection.sock.fileno() != -1
    client.close()


async def test_another_port_of_a_pinned_address_is_not_pinned(rig: Rig) -> None:
    await rig.interceptor.pin([Wanted("db.corp", OTHER, 0)])
    rig.going_to = Destination(OTHER.address, 22)
    assert await rig.is_reset()


async def test_what_is_to_be_left_alone_cannot_be_pinned(rig: Rig) -> None:
    with pytest.raises(UsageError, match="this machine"):
        await rig.interceptor.pin([Wanted("x", Destination("192.0.2.10", 22), 0)])
    assert rig.rules.standing == {}


async def test_when_the_cluster_is_another_every_connection_and_pin_goes(rig: Rig) -> None:
    await rig.interceptor.pin([Wanted("db.corp", OTHER, 0)])
    client, connection = await rig.connect()
    await rig.interceptor.clear()
    assert rig.rules.standing == {}
    assert connection.sock.fileno() == -1
    client.close()


async def test_a_port_that_another_program_has_is_passed_over_on_both_addresses() -> None:
    rig = Rig()
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        chosen = rig.interceptor.listen(["127.0.0.1", "::1"], [port, *free_ports()])
        assert chosen != port
        with pytest.raises(AddressInUse):
            Rig().interceptor.listen(["127.0.0.1", "::1"], [port, chosen])
    task = asyncio.create_task(rig.interceptor.run())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", chosen)) != 0
