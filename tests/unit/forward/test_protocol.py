"""The helper understands what the daemon says, and nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tp2.errors import AlreadyRunning, ExitCode, ForwarderError, PrivilegeError, Tp2Error
from tp2.forward import protocol
from tp2.forward.protocol import (
    CaptureDns,
    Cluster,
    Containers,
    EndOrphans,
    Exempt,
    ProtocolError,
    Refused,
    Request,
    SteerDns,
    Update,
)
from tp2.forward.rules import Inlet
from tp2.types import Destination, Redirect

ports = st.integers(1, 65535)
local_ports = st.integers(1024, 65535)
addresses = st.sampled_from(["10.96.0.1", "192.0.2.53", "fd00:10:96::1", "203.0.113.7"])
destinations = st.builds(Destination, addresses, ports)
redirects = st.builds(Redirect, destinations, local_ports, st.none()) | st.builds(
    Redirect,
    destinations.filter(lambda d: not d.is_ipv6),
    local_ports,
    st.ip_addresses(network="127.0.0.0/8").map(str).filter(lambda a: a not in ("127.0.0.0", "127.255.255.255")),
)
inlets = st.builds(Inlet, st.sampled_from(["docker0", "br-0a1b2c3d4e5f", "vmbr0.7"]), local_ports, local_ports)
domains = st.sampled_from(["cluster.local", "svc", "shop", "default.svc.cluster.local"])
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(CaptureDns, st.lists(addresses, max_size=3).map(tuple), local_ports),
    st.builds(
        Update,
        st.lists(redirects, max_size=5).map(tuple),
        st.lists(destinations, max_size=5).map(tuple),
    ),
    st.builds(
        Cluster,
        st.lists(addresses, max_size=5).map(tuple),
        st.lists(addresses, max_size=5).map(tuple),
        st.none() | local_ports,
    ),
    st.builds(Containers, st.lists(inlets, max_size=3).map(tuple)),
    st.builds(
        SteerDns, st.lists(domains, max_size=3).map(tuple), st.lists(domains, max_size=3).map(tuple), local_ports
    ),
    st.just(Exempt()),
    st.just(Refused()),
    st.just(EndOrphans()),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | addresses,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["op", "add", "port", "x"]), inner),
    max_leaves=10,
)


@given(requests)
def test_what_the_daemon_says_is_what_the_helper_hears(request: Request) -> None:
    line = protocol.encode_request(request)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert protocol.decode_request(line) == request


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_a_protocol_error(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_request(line)


@pytest.mark.parametrize(
    "message",
    [
        {"op": "update", "add": [["10.96.0.1", 80, 22, None]], "remove": []},  # a system service's port
        {"op": "update", "add": [["127.0.0.1", 80, 20000, None]], "remove": []},  # the machine itself
        {"op": "update", "add": [["::1", 80, 20000, None]], "remove": []},
        {"op": "update", "add": [["::ffff:127.0.0.1", 80, 20000, None]], "remove": []},
        {"op": "update", "add": [["0.0.0.0", 80, 20000, None]], "remove": []},
        {"op": "update", "add": [["224.0.0.1", 80, 20000, None]], "remove": []},
        {"op": "update", "add": [["169.254.1.1", 80, 20000, None]], "remove": []},
        {"op": "update", "add": [["255.255.255.255", 80, 20000, None]], "remove": []},
        {"op": "update", "add": [["fe80::1%eth0", 80, 20000, None]], "remove": []},
        {"op": "update", "add": [["10.96.0.1; flush ruleset", 80, 20000, None]], "remove": []},
        {"op": "update", "add": [["10.96.0.1", "80", 20000, None]], "remove": []},
        {"op": "update", "add": [["10.96.0.1", True, 20000, None]], "remove": []},
        {"op": "update", "add": [["10.96.0.1", 80, 20000, None, 1]], "remove": []},
        {"op": "update", "add": [["10.96.0.1", 65536, 20000, None]], "remove": []},
        {"op": "update", "add": [["10.96.0.1", 80, 20000]], "remove": []},
        {"op": "update", "add": [["10.96.0.1", 80, 20000, "192.0.2.10"]], "remove": []},  # not loopback
        {"op": "update", "add": [["10.96.0.1", 80, 20000, "127.255.255.255"]], "remove": []},
        {"op": "update", "add": [["10.96.0.1", 80, 20000, "::1"]], "remove": []},
        {"op": "update", "add": [["fd00:10:96::1", 80, 20000, "127.0.0.2"]], "remove": []},
        {"op": "update", "add": []},
        {"op": "update", "add": [], "remove": [], "also": 1},
        {"op": "dns", "nameservers": ["192.0.2.53"], "port": 53},
        {"op": "dns", "nameservers": "192.0.2.53", "port": 5353},
        {"op": "cluster", "add": ["127.0.0.1"], "remove": [], "port": 20000},
        {"op": "cluster", "add": ["10.96.0.0/16"], "remove": [], "port": 20000},
        {"op": "cluster", "add": ["10.96.0.1"], "remove": [], "port": 22},
        {"op": "cluster", "add": ["10.96.0.1"], "remove": []},
        {"op": "containers", "inlets": [["lo", 20000, 20001]]},
        {"op": "containers", "inlets": [["*", 20000, 20001]]},
        {"op": "containers", "inlets": [["br*", 20000, 20001]]},
        {"op": "containers", "inlets": [['br0"', 20000, 20001]]},
        {"op": "containers", "inlets": [["a-name-of-16-byte", 20000, 20001]]},
        {"op": "containers", "inlets": [["br0", 22, 20001]]},
        {"op": "containers", "inlets": [["br0", 20000]]},
        {"op": "steer", "domains": ["../hosts"], "search": [], "port": 5353},
        {"op": "steer", "domains": ["svc"], "search": ["svc\nnameserver 192.0.2.1"], "port": 5353},
        {"op": "steer", "domains": ["svc"], "search": [], "port": 53},
        {"op": "steer", "domains": ["local"], "search": [], "port": 5353},  # Bonjour's
        {"op": "refused", "all": True},
        {"op": "run", "command": "reboot"},
    ],
)
def test_the_helper_refuses_what_is_no_redirect_to_a_loopback_listener(message: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_request(json.dumps(message).encode())


def test_a_nameserver_may_be_on_this_machine() -> None:
    line = protocol.encode_request(CaptureDns(("127.0.0.53",), 5353))
    assert protocol.decode_request(line) == CaptureDns(("127.0.0.53",), 5353)


@pytest.mark.parametrize("kind", [PrivilegeError, AlreadyRunning, ForwarderError])
def test_an_error_crosses_the_boundary_whole(kind: type[Tp2Error]) -> None:
    with pytest.raises(kind) as caught:
        protocol.decode_reply(protocol.encode_reply(kind("what", "why", "remedy")))
    assert (caught.value.what, caught.value.why, caught.value.remedy) == ("what", "why", "remedy")
    assert caught.value.exit_code is kind.exit_code is not ExitCode.OK


@given(st.dictionaries(destinations, st.integers(0, 2**63), max_size=4))
def test_refused_connections_cross_the_boundary(refused: dict[Destination, int]) -> None:
    assert protocol.decode_refused(protocol.encode_reply(refused=refused)) == refused


@pytest.mark.parametrize(
    "told", [None, {}, [[]], [["10.96.0.1", 80]], [["10.96.0.1", 80, -1]], [["10.96.0.1", 80, True]], [["x", 80, 1]]]
)
def test_anything_else_is_no_list_of_refused_connections(told: object) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_refused(json.dumps({"ok": True, "refused": told}).encode())


@given(st.binary(max_size=100))
def test_no_bytes_break_the_daemons_side(line: bytes) -> None:
    with pytest.raises((ProtocolError, Tp2Error)):
        protocol.decode_reply(line)
