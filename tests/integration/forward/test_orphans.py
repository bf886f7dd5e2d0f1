"""A captured connection whose own address the machine has lost is ended at once, and no other is."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.integration.forward.kit import Sockets, running
from tp2.forward.protocol import CaptureDns, EndOrphans, Update
from tp2.sandbox.namespaces import Host
from tp2.types import Destination, Redirect


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("laptop") as laptop, Host("router", laptop) as router:
        laptop.link("eth0", "192.0.2.10/24", router, "laptop", "192.0.2.1/24")
        laptop.shell("""
            ip addr add 192.0.2.11/32 dev eth0
            ip addr add 2001:db8::10/64 dev eth0 nodad
            ip route add default via 192.0.2.1
            ip -6 route add default dev eth0""")
        yield laptop


@pytest.mark.parametrize(
    ("source", "prefix", "destination", "other"),
    [("192.0.2.10", "24", "10.96.1.1", "192.0.2.11"), ("2001:db8::10", "64", "fd00::1", None)],
)
def test_a_connection_from_an_address_that_is_gone_is_ended(
    host: Host, source: str, prefix: str, destination: str, other: str | None
) -> None:
    with Sockets(host) as sockets, running(host) as helper:
        listener = sockets.listen("127.0.0.1" if other else "::1", 20001)
        helper.ask(Update((Redirect(Destination(destination, 80), 20001),), ()))
        pairs = []
        for each in filter(None, (source, other)):
            client = sockets.make(socket.SOCK_STREAM, is_ipv6=":" in each)
            client.bind((each, 0))
            client.connect((destination, 80))
            pairs.append((client, listener.accept()[0]))
        helper.ask(EndOrphans())
        for client, accepted in pairs:
            accepted.send(b"!")
            assert client.recv(1) == b"!"
        host.shell(f"ip addr del {source}/{prefix} dev eth0")
        helper.ask(EndOrphans())
        (orphan, _), *others = pairs
        with pytest.raises(ConnectionAbortedError):
            orphan.recv(1)
        for client, accepted in others:
            accepted.send(b"!")
            assert client.recv(1) == b"!"
        for _, accepted in pairs:
            accepted.close()


@pytest.mark.parametrize(
    ("source", "prefix", "nameserver", "other"),
    [("192.0.2.10", "24", "192.0.2.53", "192.0.2.11"), ("2001:db8::10", "64", "2001:db8::53", None)],
)
def test_a_query_from_an_address_that_is_gone_does_not_wait_for_its_timeout(
    host: Host, source: str, prefix: str, nameserver: str, other: str | None
) -> None:
    with Sockets(host) as sockets, running(host) as helper:
        loopback = "::1" if other is None else "127.0.0.1"
        sockets.listen(loopback, 5353)
        server = sockets.udp(loopback, 5353)
        helper.ask(CaptureDns((nameserver,), 5353))
        asking, *others = [sockets.udp(each, 20053) for each in (source, other) if each]
        for each in (asking, *others):
            each.connect((nameserver, 53))
            each.send(b"?")
            assert server.recvfrom(10)[0] == b"?"
        helper.ask(EndOrphans())
        host.shell(f"ip addr del {source}/{prefix} dev eth0")
        helper.ask(EndOrphans())
        with pytest.raises(ConnectionAbortedError):
            asking.recv(10)
        for each in others:
            each.send(b"again")
            question, peer = server.recvfrom(10)
            assert question == b"again"
            server.sendto(b"!", peer)
            assert each.recv(10) == b"!"
