"""What listens on a bridge, and in which order: real sockets, with the loopback interface in the place of a bridge."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from tp2.containers.bridges import Link
from tp2.containers.inlets import Inlets, Ports
from tp2.errors import AddressInUse, ForwarderError
from tp2.types import Destination

LO = Link(1, "lo", "bridge", ipv4="127.0.0.1", ipv6="::1")
WEB = Destination("10.96.1.1", 80)


class Dns:
    def __init__(self) -> None:
        self.listening: dict[str, tuple[str, ...]] = {}
        self.refusing = False

    async def listen_on(self, device: str, addresses: Sequence[str]) -> int:
        if self.refusing:
            raise AddressInUse("cannot listen", "as the test asked", "none")
        self.listening[device] = tuple(addresses)
        return 5353

    async def leave(self, device: str) -> None:
        del self.listening[device]


class Rig:
    def __init__(self) -> None:
        self.dns = Dns()
        self.announced: list[list[Ports]] = []
        self.refusing = False
        self.going_to: Destination | None = WEB
        self.captured = {WEB}
        self.accepted: list[tuple[Destination, socket.socket]] = []
        self.refused: list[Destination] = []
        self.came = asyncio.Event()
        self.inlets = Inlets(
            self._announce, self.dns, origin=lambda sock: self.going_to, accept=self._accept, refuse=self._refuse
        )

    async def _announce(self, inlets: Sequence[Ports]) -> None:
        if self.refusing:
            raise ForwarderError("refused", "as the test asked", "none")
        for _, tcp_port, _ in [*inlets, *(self.announced[-1] if self.announced else [])]:
            # Before a rule leads there, and until it does not any more, somebody listens.
            with socket.socket(socket.AF_INET6) as probe, pytest.raises(OSError, match="in use"):
                # Any address, of IPv4 as well (ipv6(7)).
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind(("::", tcp_port))
        self.announced.append(list(inlets))

    def _accept(self, destination: Destination, sock: socket.socket) -> bool:
        self.came.set()
        if destination in self.captured:
            self.accepted.append((destination, sock))
            return True
        return False

    def _refuse(self, destination: Destination, sock: socket.socket) -> None:
        self.refused.append(destination)
        sock.close()

    async def connect(self, address: str = "127.0.0.1") -> None:
        self.came.clear()
        (_, port, _) = self.announced[-1][0]
        _, writer = await asyncio.open_connection(address, port)
        await asyncio.wait_for(self.came.wait(), 10)
        writer.close()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.inlets.close()
    for _, sock in rig.accepted:
        sock.close()


async def test_an_inlet_hears_tcp_and_dns_on_both_addresses_of_its_bridge(rig: Rig) -> None:
    await rig.inlets.use([LO])
    ((name, tcp_port, dns_port),) = rig.announced[-1]
    assert (name, dns_port) == ("lo", 5353)
    assert rig.dns.listening == {"lo": ("127.0.0.1", "::1")}
    for address in ("127.0.0.1", "::1"):
        await rig.connect(address)
    assert tcp_port > 1023
    assert [destination for destination, _ in rig.accepted][-2:] == [WEB, WEB]
    assert rig.inlets.names == ["lo"]


async def test_a_connection_to_what_is_not_captured_is_refused(rig: Rig) -> None:
    await rig.inlets.use([LO])
    rig.going_to = Destination("10.9.9.9", 22)
    await rig.connect()
    assert rig.refused == [rig.going_to]


async def test_a_connection_that_no_rule_has_sent_is_reset(rig: Rig) -> None:
    await rig.inlets.use([LO])
    rig.going_to = None
    (_, port, _) = rig.announced[-1][0]
    with pytest.raises(ConnectionResetError):  # as it connects, or as it reads
        reader, _ = await asyncio.open_connection("127.0.0.1", port)
        await reader.readexactly(1)
    assert rig.refused == []


async def test_rules_come_after_their_listeners_and_go_before_them(rig: Rig) -> None:
    await rig.inlets.use([LO])
    (_, port, _) = rig.announced[-1][0]
    await rig.inlets.use([])
    assert rig.announced[-1] == []
    assert rig.dns.listening == {}
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_what_has_not_changed_is_left_alone(rig: Rig) -> None:
    await rig.inlets.use([LO])
    await rig.inlets.use([LO])
    assert len(rig.announced) == 1


async def test_a_bridge_with_another_address_is_heard_there(rig: Rig) -> None:
    await rig.inlets.use([LO])
    await rig.inlets.use([replace(LO, ipv4="127.0.0.2")])
    assert rig.dns.listening == {"lo": ("127.0.0.2", "::1")}
    # First without, then with.
    assert rig.announced[-2] == []


async def test_an_address_that_cannot_be_used_yet_is_left_out_until_it_can(rig: Rig) -> None:
    await rig.inlets.use([replace(LO, ipv6="fd00:17::1")])
    assert rig.dns.listening == {"lo": ("127.0.0.1",)}
    await rig.inlets.use([LO])
    assert rig.dns.listening == {"lo": ("127.0.0.1", "::1")}


async def test_when_the_rules_are_refused_nothing_is_left_listening(rig: Rig) -> None:
    rig.refusing = True
    with pytest.raises(ForwarderError):
        await rig.inlets.use([LO])
    assert rig.dns.listening == {}
    assert rig.inlets.names == []
    rig.refusing = False
    await rig.inlets.use([LO])
    assert rig.inlets.names == ["lo"]


async def test_an_inlet_that_cannot_be_opened_does_not_keep_others_from_it(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.inlets.use([replace(LO, name="nosuch0"), LO])
    assert rig.inlets.names == ["lo"]
    assert "containers on nosuch0 do not reach the cluster" in caplog.text
    assert set(rig.dns.listening) == {"lo"}


async def test_without_dns_there_is_no_inlet(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.dns.refusing = True
    await rig.inlets.use([LO])
    assert rig.inlets.names == []
    assert rig.announced == []
    assert "containers on lo do not reach the cluster: cannot listen: as the test asked" in caplog.text


async def test_what_waits_can_be_accepted_at_once(rig: Rig) -> None:
    await rig.inlets.use([LO])
    (_, port, _) = rig.announced[-1][0]
    before = len(rig.accepted)
    with socket.create_connection(("127.0.0.1", port)):
        rig.inlets.accept_pending()
        assert len(rig.accepted) > before
