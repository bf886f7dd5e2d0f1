"""A stream to a port of a pod, through the API server: every byte, in bounded memory, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import os

import aiohttp
import pytest

from tests.integration.cluster.conftest import Lab, eventually
from tests.integration.cluster.portforward.rig import PATIENCE, End, Rig, echo, nothing, open_files, pod, running
from tp2.cluster import portforward
from tp2.cluster.portforward import HIGH_WATER
from tp2.errors import ClusterError, EndpointError, Tp2Error
from tp2.sandbox.kubeapi_resources import PODS

MEGABYTE = 1 << 20
#: More than the buffers on the way hold: the stream's own, TLS's, and those of two TCP connections.
MUCH = 32 * MEGABYTE


async def refusal(rig: Rig, port: int = 9000, name: str = "db-1") -> Tp2Error:
    with pytest.raises(Tp2Error) as caught:
        await rig.forward(port, name)
    return caught.value


async def test_what_is_sent_comes_back(rig: Rig) -> None:
    async with running(echo) as port:
        end = await rig.connect(port)
        for data in (b"hello", b"", os.urandom(3 * MEGABYTE + 1)):
            end.received.clear()
            end.transport.write(data)
            await end.has(data)


async def test_two_streams_to_a_port_are_two_connections(rig: Rig) -> None:
    async with running(echo) as port:
        one, other = await rig.connect(port), await rig.connect(port)
        one.transport.write(b"one")
        other.transport.write(b"other")
        await one.has(b"one")
        await other.has(b"other")
        one.transport.abort()
        await one.end()
        other.transport.write(b" still")
        await other.has(b"other still")


async def test_what_was_written_before_the_close_arrives(rig: Rig) -> None:
    received = asyncio.get_running_loop().create_future()

    async def keep(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        received.set_result(await reader.read())

    async with running(keep) as port:
        end = await rig.connect(port)
        data = os.urandom(4 * MEGABYTE)
        end.transport.write(data)
        end.transport.close()
        end.transport.write(b"too late")
        assert await end.end() is None
        async with asyncio.timeout(PATIENCE):
            assert await received == data


async def test_a_pod_that_does_not_read_holds_the_writer_back(rig: Rig) -> None:
    may_read = asyncio.Event()
    digest = hashlib.sha256()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_read.wait()
        left = MUCH
        while left:
            data = await reader.read(65536)
            digest.update(data)
            left -= len(data)
        writer.write(b"done")
        await writer.drain()
        await reader.read()

    async with running(late) as port:
        end = await rig.connect(port)
        sent, block, left = hashlib.sha256(), os.urandom(65536), MUCH
        while left:
            if end.paused and not may_read.is_set():
                assert end.transport.get_write_buffer_size() <= HIGH_WATER + len(block)
                if await stays_paused(end):
                    may_read.set()
            await end.until(lambda: not end.paused or not may_read.is_set())
            if not end.paused:
                end.transport.write(block)
                sent.update(block)
                left -= len(block)
        assert may_read.is_set(), "the writer was never held back"
        await end.has(b"done")
        assert digest.digest() == sent.digest()


async def stays_paused(end: End) -> bool:
    """Whether nothing moves any more: the buffers on the way are full."""
    try:
        async with asyncio.timeout(0.3):
            await end.until(lambda: not end.paused)
    except TimeoutError:
        return True
    return False


async def test_a_reader_that_pauses_holds_the_pod_back(rig: Rig) -> None:
    sent = 0
    digest = hashlib.sha256()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        block = os.urandom(65536)
        while sent < MUCH:
            writer.write(block)
            digest.update(block)
            sent += len(block)
            await writer.drain()
        await reader.read()

    async with running(pour) as port:
        end = await rig.connect(port)
        end.transport.pause_reading()
        assert not end.transport.is_reading()
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.3)
        assert 0 < sent < MUCH
        assert end.received == b""
        end.transport.resume_reading()
        await end.until(lambda: len(end.received) == MUCH)
        assert hashlib.sha256(end.received).digest() == digest.digest()


async def test_nobody_listening_is_said_in_the_nodes_words(rig: Rig) -> None:
    with nothing() as port:
        reason = await (await rig.connect(port)).end()
    assert isinstance(reason, EndpointError)
    assert reason.what == f"nothing listens on port {port} of pod shop/db-1"
    assert "connection refused" in reason.why


async def test_a_program_that_ends_ends_the_stream_with_an_error(rig: Rig) -> None:
    async def farewell(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"goodbye")

    async with running(farewell) as port:
        end = await rig.connect(port)
        reason = await end.end()
    assert end.received == b"goodbye"
    assert isinstance(reason, EndpointError)
    assert "closed it with WebSocket code 1000" in reason.why


async def test_an_api_server_that_dies_ends_the_stream_with_an_error(rig: Rig) -> None:
    async with running(echo) as port:
        end = await rig.connect(port)
        end.transport.write(b"hello")
        await end.has(b"hello")
        await rig.api.kill()
        reason = await end.end()
        assert isinstance(reason, EndpointError)
        assert "the connection to the Kubernetes API was lost" in reason.why
        end.transport.write(b"nobody hears this")
        assert end.transport.is_closing()


async def test_a_path_that_has_died_is_noticed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portforward, "PING_INTERVAL", 0.1)
    async with running(echo) as port:
        end = await rig.connect(port)
        rig.api.port_forwards.hold()
        reason = await end.end()
        rig.api.port_forwards.hold(False)
    assert isinstance(reason, EndpointError)
    assert "silent for 0.4 s" in reason.why


async def test_a_dead_path_is_noticed_while_much_waits_to_be_sent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portforward, "PING_INTERVAL", 0.1)
    async with running(echo) as port:
        end = await rig.connect(port)
        rig.api.port_forwards.hold()
        end.transport.write(bytes(MUCH))
        reason = await end.end()
        rig.api.port_forwards.hold(False)
    assert isinstance(reason, EndpointError)
    assert "silent" in reason.why


async def test_a_stream_without_traffic_lives_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portforward, "PING_INTERVAL", 0.1)
    async with running(echo) as port:
        idle, paused = await rig.connect(port), await rig.connect(port)
        paused.transport.pause_reading()
        await asyncio.sleep(1.0)
        paused.transport.resume_reading()
        for end in (idle, paused):
            end.transport.write(b"still there")
            await end.has(b"still there")


async def test_new_credentials_do_not_end_a_stream(rig: Rig) -> None:
    async with running(echo) as port:
        end = await rig.connect(port)
        client = rig.session.lend()
        await rig.session.take_back(client)
        await rig.session.renew(rig.session.login)
        end.transport.write(b"hello")
        await end.has(b"hello")
        assert not client.rest_client.pool_manager.closed
        end.transport.abort()
        await end.end()
        await eventually(lambda: client.rest_client.pool_manager.closed)


async def test_expired_credentials_are_renewed_for_a_new_stream(rig: Rig, lab: Lab) -> None:
    lab.api.token = "another"
    lab.write()
    async with running(echo) as port:
        end = await rig.connect(port)
        end.transport.write(b"hello")
        await end.has(b"hello")
    assert rig.session.login == 2


async def test_credentials_that_are_not_accepted_are_an_error_that_lasts(rig: Rig, lab: Lab) -> None:
    lab.api.token = "another"
    error = await refusal(rig)
    assert isinstance(error, ClusterError)
    assert "does not accept the credentials of context 'sandbox'" in error.what
    assert error.lasting


@pytest.mark.parametrize(
    ("verb", "why"),
    [("get", 'cannot get resource "pods/portforward"'), ("create", "create on pods/portforward is not granted")],
)
async def test_a_missing_right_is_named(rig: Rig, verb: str, why: str) -> None:
    rig.api.forbid("pods/portforward", verbs=(verb,))
    error = await refusal(rig)
    assert isinstance(error, ClusterError)
    assert why in error.why
    assert "get and create on pods/portforward in the namespace 'shop'" in error.remedy
    assert error.lasting


async def test_a_pod_that_is_not_there_or_does_not_run_is_named(rig: Rig) -> None:
    rig.api.store.create(PODS, "shop", pod("done", phase="Succeeded"))
    assert (await refusal(rig, name="nowhere")).what == "the pod shop/nowhere is gone"
    assert (await refusal(rig, name="done")).what == "the pod shop/done does not run"


async def test_a_node_that_cannot_be_reached_is_named(rig: Rig) -> None:
    rig.api.port_forwards.kubelet = False
    error = await refusal(rig)
    assert isinstance(error, EndpointError)
    assert "error dialing backend" in error.why
    assert "node is up" in error.remedy
    assert not error.lasting


async def test_an_api_server_that_is_not_there_is_said_to_be_so(rig: Rig) -> None:
    await rig.api.stop()
    error = await refusal(rig)
    assert isinstance(error, ClusterError)
    assert error.what == f"cannot reach the Kubernetes API at {rig.api.url}"
    assert error.why == "connection refused"


async def test_an_api_server_that_does_not_answer_is_not_waited_for_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portforward, "OPEN_TIMEOUT", 0.5)
    rig.api.fall_silent()
    error = await refusal(rig)
    assert "did not open the port-forward within 0.5 s" in error.why


async def test_a_server_that_speaks_something_else_is_found_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sending = aiohttp.web.WebSocketResponse.send_bytes

    async def text(socket: aiohttp.web.WebSocketResponse, data: bytes) -> None:
        await socket.send_str("hello")

    async def wrong(socket: aiohttp.web.WebSocketResponse, data: bytes) -> None:
        await sending(socket, bytes([data[0]]) + b"\xff\xff")

    async with running(echo) as port:
        for behaviour, words in ((text, "a text message"), (wrong, "a port number that was not asked for")):
            monkeypatch.setattr(aiohttp.web.WebSocketResponse, "send_bytes", behaviour)
            reason = await (await rig.connect(port)).end()
            assert words in str(reason)


async def test_a_cancelled_attempt_leaves_nothing(rig: Rig) -> None:
    rig.api.fall_silent()
    files = open_files()
    attempt = asyncio.create_task(rig.forward(9000))
    await eventually(lambda: any("portforward" in request for request in rig.api.requests))
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    rig.api.fall_silent(False)
    await eventually(lambda: open_files() == files)


async def test_a_stream_that_nobody_took_can_be_ended(rig: Rig) -> None:
    files = open_files()
    async with running(echo) as port:
        stream = await rig.forward(port)
        assert stream.peer == ("127.0.0.1", rig.api.port)
        assert stream.local == "127.0.0.1"
        stream.close()
        stream.abort()
        await stream.wait_closed()
        await eventually(lambda: not len(rig.api.port_forwards))
    await eventually(lambda: open_files() == files)


async def test_what_is_ended_from_within_ends_once(rig: Rig) -> None:
    class Rash(End):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.abort()

    async with running(echo) as port:
        stream = await rig.forward(port)
        _, end = await stream.create_connection(Rash, "", 0)
        assert await end.end() is None
        stream.abort()
        await stream.wait_closed()


async def test_it_is_a_transport_without_half_close(rig: Rig) -> None:
    async with running(echo) as port:
        end = await rig.connect(port)
        assert not end.transport.can_write_eof()
        with pytest.raises(NotImplementedError):
            end.transport.write_eof()
        assert end.transport.get_protocol() is end
        end.transport.set_write_buffer_limits(high=10)
        assert end.transport.get_write_buffer_limits() == (2, 10)
        end.transport.write(b"more than ten bytes")
        assert end.paused
        await end.until(lambda: not end.paused)
        other = End()
        end.transport.set_protocol(other)
        end.transport.write(b"for the other")
        await other.until(lambda: b"for the other" in other.received)
