"""What is asked of a SOCKS5 proxy, and what is made of its answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tp2.socks.messages import Close, Connect, Reply, Send, Server, encode_reply
from tp2.socks.request import GREETING, Client, NotSocks

hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{2,5}){0,3}", fullmatch=True),
)


@given(host=hosts, port=st.integers(1, 65535), reply=st.sampled_from(Reply), early=st.binary(max_size=20))
def test_our_own_server_understands_it_and_is_understood(host: str, port: int, reply: Reply, early: bytes) -> None:
    client, server = Client(host, port), Server()
    (greeted,) = server.receive(client.start())
    assert isinstance(greeted, Send)
    request = client.receive(greeted.data)
    assert isinstance(request, bytes)
    (wanted,) = server.receive(request)
    assert wanted == Connect(host, port)
    assert client.receive(server.reply(reply) + early) is reply
    assert client.early == early


def test_an_answer_in_single_bytes_is_the_same_answer() -> None:
    client = Client("10.0.0.1", 80)
    said = [client.receive(bytes((byte,))) for byte in b"\x05\x00" + encode_reply(Reply.HOST_UNREACHABLE)]
    assert [word for word in said if word is not None] == [
        b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50",
        Reply.HOST_UNREACHABLE,
    ]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request", "no SOCKS5 proxy"),
        (b"\x05\xff", "wants a login"),
        (b"\x05\x02", "wants a login"),
        (b"\x05\x00\x05\x00\x00\x09\x00\x00", "an address of type 9"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_said_to_be_none(answer: bytes, words: str) -> None:
    client = Client("10.0.0.1", 80)
    with pytest.raises(NotSocks, match=words):
        if client.receive(answer[:2]) and len(answer) > 2:
            client.receive(answer[2:])


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_any_bytes_end_in_an_answer_in_nothing_or_in_a_complaint(chunks: list[bytes]) -> None:
    client = Client("db.shop", 5432)
    assert client.start() == GREETING
    for chunk in chunks:
        try:
            said = client.receive(chunk)
        except NotSocks:
            return
        if isinstance(said, Reply):
            return


def test_a_server_that_closes_says_so_in_its_own_words() -> None:
    # The two sides agree on what is no SOCKS.
    events = Server().receive(b"\x04\x01")
    assert any(isinstance(event, Close) for event in events)
