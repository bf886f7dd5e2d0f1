"""What a SOCKS5 client may rely on, whatever it sends and however it is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tp2.socks.messages import (
    TRANSITIONS,
    Close,
    Connect,
    Credentials,
    Event,
    Reply,
    Send,
    Server,
    State,
    encode_reply,
)

GREETING = b"\x05\x01\x00"
ALICE = Credentials("alice", "wonderland")


def connect_request(address: bytes, port: int = 80) -> bytes:
    return b"\x05\x01\x00" + address + port.to_bytes(2, "big")


def domain(name: bytes) -> bytes:
    return b"\x03" + bytes([len(name)]) + name


def login(username: bytes, password: bytes) -> bytes:
    return b"\x01" + bytes([len(username)]) + username + bytes([len(password)]) + password


REQUESTS = {
    "10.96.0.10": connect_request(b"\x01\x0a\x60\x00\x0a"),
    "fd00::1": connect_request(b"\x04\xfd" + bytes(14) + b"\x01"),
    "web.shop": connect_request(domain(b"web.shop")),
}


def feed(server: Server, data: bytes, cuts: list[int] | None = None) -> list[Event]:
    edges = [0, *sorted(cut for cut in cuts or [] if cut < len(data)), len(data)]
    return [event for start, end in pairwise(edges) for event in server.receive(data[start:end])]


@pytest.mark.parametrize("host", REQUESTS)
def test_a_connect_request_names_its_destination(host: str) -> None:
    server = Server()
    assert feed(server, GREETING + REQUESTS[host]) == [Send(b"\x05\x00"), Connect(host, 80)]
    assert server.reply(Reply.SUCCEEDED) == b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    assert server.state is State.ESTABLISHED


def test_a_message_in_single_bytes_is_the_same_message() -> None:
    data = GREETING + REQUESTS["web.shop"]
    assert feed(Server(), data, list(range(len(data)))) == feed(Server(), data)


def test_bytes_after_the_request_are_kept_for_the_destination() -> None:
    server = Server()
    feed(server, GREETING + REQUESTS["web.shop"] + b"GET / HTTP/1.1\r\n")
    assert server.early == b"GET / HTTP/1.1\r\n"


@pytest.mark.parametrize("code", [code for code in Reply if code is not Reply.SUCCEEDED])
def test_a_failed_attempt_is_told_by_its_code_and_ends_the_conversation(code: Reply) -> None:
    server = Server()
    feed(server, GREETING + REQUESTS["web.shop"] + b"too early")
    assert server.reply(code) == bytes([5, code, 0, 1]) + bytes(6)
    assert server.state is State.CLOSED
    assert server.early == b""


@pytest.mark.parametrize("command", [0, 2, 3, 9])
def test_bind_and_udp_associate_are_not_supported(command: int) -> None:
    request = b"\x05" + bytes([command]) + REQUESTS["10.96.0.10"][2:]
    events = feed(Server(), GREETING + request)
    assert events[1] == Send(encode_reply(Reply.COMMAND_NOT_SUPPORTED))
    assert isinstance(events[2], Close)


def test_an_unknown_address_type_is_answered() -> None:
    events = feed(Server(), GREETING + connect_request(b"\x02\x01\x02\x03"))
    assert events[1] == Send(encode_reply(Reply.ADDRESS_TYPE_NOT_SUPPORTED))


@pytest.mark.parametrize("name", [b"", b"a b", b"a\x00b", b"caf\xe9", b"line\nbreak"])
def test_a_name_that_is_none_is_refused(name: bytes) -> None:
    events = feed(Server(), GREETING + connect_request(domain(name)))
    assert events[1] == Send(encode_reply(Reply.GENERAL_FAILURE))


def test_port_zero_is_refused() -> None:
    events = feed(Server(), GREETING + connect_request(domain(b"web"), port=0))
    assert events[1] == Send(encode_reply(Reply.GENERAL_FAILURE))


def test_a_client_without_an_acceptable_method_is_told_so() -> None:
    assert feed(Server(), b"\x05\x01\x02")[0] == Send(b"\x05\xff")
    assert feed(Server(ALICE), b"\x05\x01\x00")[0] == Send(b"\x05\xff")
    assert feed(Server(), b"\x05\x00")[0] == Send(b"\x05\xff")


def test_the_right_password_opens() -> None:
    events = feed(Server(ALICE), b"\x05\x02\x00\x02" + login(b"alice", b"wonderland") + REQUESTS["web.shop"])
    assert events == [Send(b"\x05\x02"), Send(b"\x01\x00"), Connect("web.shop", 80)]


@pytest.mark.parametrize(
    ("username", "password"),
    [(b"alice", b"wonder"), (b"bob", b"wonderland"), (b"", b""), (b"alice", b"wonderland\x00")],
)
def test_a_wrong_password_does_not(username: bytes, password: bytes) -> None:
    server = Server(ALICE)
    events = feed(server, b"\x05\x01\x02" + login(username, password) + REQUESTS["web.shop"])
    assert events[:2] == [Send(b"\x05\x02"), Send(b"\x01\x01")]
    assert isinstance(events[2], Close)
    assert server.state is State.CLOSED


@pytest.mark.parametrize("data", [b"\x04\x01\x00\x50\x0a\x00\x00\x01\x00", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"])
def test_another_protocol_is_recognised_by_its_first_byte(data: bytes) -> None:
    events = feed(Server(), data)
    assert len(events) == 1
    assert isinstance(events[0], Close)


def test_every_state_that_waits_for_something_has_a_way_out() -> None:
    for state, ways in TRANSITIONS.items():
        assert bool(ways) is (state not in (State.ESTABLISHED, State.CLOSED))


# Bytes that are SOCKS for some way and then are not, so that every state is reached with garbage.
SOCKS_LIKE = st.builds(
    lambda parts, tail: b"".join(parts) + tail,
    st.lists(
        st.sampled_from(
            [GREETING, b"\x05\x02\x00\x02", login(b"alice", b"wonderland"), login(b"eve", b""), *REQUESTS.values()]
        )
        | st.binary(max_size=6),
        max_size=5,
    ),
    st.binary(max_size=600),
)


@settings(max_examples=300, deadline=None)
@given(data=SOCKS_LIKE, cuts=st.lists(st.integers(0, 700), max_size=12), secured=st.booleans())
def test_any_bytes_in_any_fragments_end_the_same_way(data: bytes, cuts: list[int], secured: bool) -> None:
    credentials = ALICE if secured else None
    whole, cut = Server(credentials), Server(credentials)
    events = feed(whole, data)
    assert feed(cut, data, cuts) == events
    assert cut.state is whole.state
    assert cut.early == whole.early
    endings = [event for event in events if isinstance(event, Connect | Close)]
    assert len(endings) <= 1
    assert endings == [] or events[-1] is endings[0]
    assert bool(endings) is (whole.state in (State.CONNECTING, State.CLOSED))
    if whole.state is not State.CONNECTING:
        assert len(whole.early) <= 513


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
def test_a_closed_conversation_stays_closed_and_keeps_nothing(data: bytes) -> None:
    server = Server()
    feed(server, b"GET")
    assert feed(server, data) == []
    assert server.early == b""
