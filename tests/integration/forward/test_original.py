"""The kernel remembers where a redirected connection was going, and tp2 reads it."""

from __future__ import annotations

import socket
from contextlib import nullcontext

import pytest

from tests.integration.forward.kit import Sockets, arrives, running
from tp2.forward.original import original_destination
from tp2.forward.protocol import Cluster
from tp2.sandbox.namespaces import Host
from tp2.types import Destination


@pytest.mark.parametrize("destination", [Destination("10.96.1.1", 80), Destination("fd00:10:96::1", 65535)], ids=str)
def test_the_original_destination_of_a_redirected_connection(
    host: Host, sockets: Sockets, destination: Destination
) -> None:
    listener = sockets.listen("::1" if destination.is_ipv6 else "127.0.0.1", 20000)
    with running(host) as helper:
        helper.ask(Cluster((destination.address,), (), 20000))
        client = sockets.connect(destination)
        with arrives(client, listener) as accepted:
            assert original_destination(accepted) == destination


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("tracked", [True, False])
def test_a_connection_to_the_listener_itself_was_going_nowhere_else(
    host: Host, sockets: Sockets, address: str, tracked: bool
) -> None:
    listener = sockets.listen(address, 20000)
    with running(host) if tracked else nullcontext():
        client = sockets.connect(Destination(address, 20000))
        with arrives(client, listener) as accepted:
            assert original_destination(accepted) is None


def test_a_socket_that_is_gone_was_going_nowhere() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert original_destination(ours) is None
