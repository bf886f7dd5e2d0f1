"""What the tunnel says and does when the endpoint is not as it should be."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from tests.integration.socks.rig import (
    PATIENCE,
    echo,
    ending_of,
    eventually,
    nothing_there,
    open_files,
    portal,
    serving,
    started,
    tunnel_to,
)
from tests.integration.socks.sshd import Sshd, write_key
from tp2.errors import EndpointError, Tp2Error, UsageError
from tp2.socks import login
from tp2.socks.dial import Way, direct
from tp2.socks.reasons import ChannelRefused, Refusal, Unmendable
from tp2.socks.tunnel import MAX_WAITERS, PROBE, Endpoint, Tunnel
from tp2.types import Destination


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd") as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without keys and known hosts, and no agent."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    return tmp_path / "home"


async def failure(tunnel: Tunnel) -> Tp2Error:
    with pytest.raises(EndpointError) as caught:
        await tunnel.start(PATIENCE)
    await tunnel.close()
    assert tunnel.status()["state"] == "closed"
    assert caught.value.why in (tunnel.status()["last_error"] or "")
    return caught.value


def fingerprint(line: str) -> str:
    return asyncssh.import_public_key(line).get_fingerprint()


async def open_session(tunnel: Tunnel, destination: Destination) -> None:
    channel = await tunnel.open(asyncssh.SSHTCPSession, *destination)
    channel.abort()


async def test_a_pinned_key_lets_the_tunnel_come_up(sshd: Sshd) -> None:
    async with started(tunnel_to(sshd)) as tunnel:
        status = tunnel.status()
        assert status["state"] == "connected"
        assert status["remote"] == f"{sshd.user}@127.0.0.1:{sshd.port}"
        assert status["host_key"] == fingerprint(sshd.host_key)
        assert status["reconnects"] == 0
        assert status["last_error"] is None
        assert list(tunnel.peer_addresses) == [("127.0.0.1", sshd.port)]
    assert tunnel.status()["state"] == "closed"
    assert not tunnel.peer_addresses


async def test_the_cipher_is_the_fast_one(sshd: Sshd) -> None:
    async with started(tunnel_to(sshd)) as tunnel:
        assert tunnel._link
        assert tunnel._link.connection.get_extra_info("send_cipher") == "aes128-gcm@openssh.com"


async def test_another_key_than_the_pinned_one_is_not_accepted(sshd: Sshd, tmp_path: Path) -> None:
    other = write_key(tmp_path / "other")
    error = await failure(tunnel_to(sshd, host_key=other))
    assert isinstance(error, Unmendable)
    assert fingerprint(other) in error.why
    assert fingerprint(sshd.host_key) in error.why


async def test_a_pinned_key_of_another_kind_is_not_accepted(sshd: Sshd) -> None:
    other = asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_public_key().decode()
    error = await failure(tunnel_to(sshd, host_key=other))
    assert isinstance(error, Unmendable)
    assert fingerprint(other) in error.why


async def test_a_pinned_key_overrules_known_hosts(sshd: Sshd, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}")
    other = write_key(tmp_path / "other")
    error = await failure(tunnel_to(sshd, host_key=other, known_hosts=known_hosts))
    assert fingerprint(other) in error.why


async def test_an_unknown_key_is_shown_and_not_accepted(sshd: Sshd, home: Path) -> None:
    error = await failure(tunnel_to(sshd, host_key=None))
    assert isinstance(error, Unmendable)
    assert fingerprint(sshd.host_key) in error.why
    assert "--host-key" in error.remedy


async def test_a_key_in_known_hosts_is_accepted(sshd: Sshd, home: Path) -> None:
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}")
    async with started(tunnel_to(sshd, host_key=None)) as tunnel:
        assert tunnel.status()["state"] == "connected"


async def test_a_key_that_has_changed_is_not_accepted(sshd: Sshd, home: Path) -> None:
    old = write_key(home / "old")
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {old}")
    error = await failure(tunnel_to(sshd, host_key=None))
    assert fingerprint(old) in error.why
    assert fingerprint(sshd.host_key) in error.why


async def test_a_revoked_key_is_not_accepted(sshd: Sshd, home: Path) -> None:
    line = f"[127.0.0.1]:{sshd.port} {sshd.host_key}"
    (home / ".ssh" / "known_hosts").write_text(f"{line}@revoked {line}")
    error = await failure(tunnel_to(sshd, host_key=None))
    assert "revoked" in error.why


async def test_the_key_of_an_address_does_not_vouch_for_a_name(sshd: Sshd, home: Path) -> None:
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}")
    tunnel = Tunnel(Endpoint("localhost", sshd.port, sshd.user), identity=sshd.identity, host_key=None)
    error = await failure(tunnel)
    assert "not known" in error.what


def test_a_host_key_that_is_none_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        Tunnel(Endpoint("localhost"), identity=None, host_key="ssh-ed25519 AAAA")


async def test_a_wrong_identity_is_named(sshd: Sshd, tmp_path: Path) -> None:
    write_key(tmp_path / "stranger")
    error = await failure(tunnel_to(sshd, identity=tmp_path / "stranger"))
    assert isinstance(error, Unmendable)
    assert "permission denied" in error.why
    assert str(tmp_path / "stranger") in error.why


async def test_without_an_identity_the_default_keys_are_offered(sshd: Sshd, home: Path) -> None:
    assert "permission denied" in (await failure(tunnel_to(sshd, identity=None))).why
    (home / ".ssh" / "id_ed25519").write_bytes(sshd.identity.read_bytes())
    async with started(tunnel_to(sshd, identity=None)) as tunnel:
        assert tunnel.status()["state"] == "connected"


async def test_without_an_identity_the_agent_is_asked(
    sshd: Sshd, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        await eventually((tmp_path / "agent").exists)
        subprocess.run(["ssh-add", "-q", sshd.identity], check=True)
        async with started(tunnel_to(sshd, identity=None)) as tunnel:
            assert tunnel.status()["state"] == "connected"
    finally:
        agent.kill()
        agent.wait()


async def test_a_missing_identity_is_named(sshd: Sshd, tmp_path: Path) -> None:
    error = await failure(tunnel_to(sshd, identity=tmp_path / "missing"))
    assert str(tmp_path / "missing") in error.what
    assert "no such file" in error.why


async def test_an_identity_with_a_passphrase_points_to_the_agent(sshd: Sshd, tmp_path: Path) -> None:
    lock = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(tmp_path / "locked")]
    subprocess.run(lock, check=True)
    error = await failure(tunnel_to(sshd, identity=tmp_path / "locked"))
    assert "passphrase" in error.why
    assert "ssh-add" in error.remedy


async def test_an_identity_that_is_no_key_is_named(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear endpoint, let me in")
    error = await failure(tunnel_to(sshd, identity=tmp_path / "letter"))
    assert "not an OpenSSH private key" in error.why


async def test_an_endpoint_that_does_not_run_is_refused(sshd: Sshd) -> None:
    sshd.stop()
    error = await failure(tunnel_to(sshd))
    assert "refused" in error.why
    assert not isinstance(error, Unmendable)


async def test_a_name_that_does_not_resolve_is_named() -> None:
    async def unresolved(host: str, port: int) -> Way:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    error = await failure(Tunnel(Endpoint("nowhere", 22, "me"), identity=None, host_key=None, connect=unresolved))
    assert "does not resolve" in error.why
    assert "me@nowhere:22" in error.what


async def test_a_port_that_does_not_speak_ssh_is_named(sshd: Sshd) -> None:
    async def web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 1000)
        await reader.read()

    async with serving(web_server) as address:
        tunnel = Tunnel(Endpoint(address.address, address.port, "me"), identity=sshd.identity, host_key=sshd.host_key)
        assert "SSH" in (await failure(tunnel)).remedy + (await failure(tunnel)).why


async def test_a_port_that_hangs_up_is_named(sshd: Sshd) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pass

    async with serving(hang_up) as address:
        tunnel = Tunnel(Endpoint(address.address, address.port, "me"), identity=sshd.identity, host_key=sshd.host_key)
        assert "closed during the handshake" in (await failure(tunnel)).why


async def test_a_silent_port_is_given_up_in_time(sshd: Sshd) -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silence) as address:
        tunnel = Tunnel(Endpoint(address.address, address.port, "me"), identity=sshd.identity, host_key=sshd.host_key)
        with pytest.raises(EndpointError, match="not up after"):
            await tunnel.start(0.1)
        await tunnel.close()


async def test_a_refused_destination_is_known_as_refused(sshd: Sshd) -> None:
    with nothing_there() as destination:
        async with started(tunnel_to(sshd)) as tunnel:
            with pytest.raises(ChannelRefused) as caught:
                await open_session(tunnel, destination)
    assert caught.value.refusal is Refusal.REFUSED


async def test_forbidden_forwarding_is_known_as_prohibited(tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", {"AllowTcpForwarding": "no"}) as sshd:
        async with started(tunnel_to(sshd)) as tunnel:
            with pytest.raises(ChannelRefused) as caught:
                await open_session(tunnel, Destination("127.0.0.1", 80))
            assert "does not allow forwarding" in (tunnel.status()["last_error"] or "")
    assert caught.value.refusal is Refusal.PROHIBITED


async def test_a_killed_endpoint_is_connected_to_again_without_any_action(sshd: Sshd) -> None:
    async with serving(echo) as destination, started(tunnel_to(sshd)) as tunnel:
        sshd.stop()
        await eventually(lambda: tunnel.status()["state"] == "reconnecting")
        assert tunnel.status()["last_error"]
        opening = asyncio.create_task(open_session(tunnel, destination))
        sshd.start()
        await opening
        assert tunnel.status()["state"] == "connected"
        assert tunnel.status()["reconnects"] == 1


async def test_an_outage_that_lasts_fails_new_channels_after_their_time(sshd: Sshd) -> None:
    async with started(tunnel_to(sshd, dial_timeout=0.2)) as tunnel:
        sshd.stop()
        await eventually(lambda: tunnel.status()["state"] == "reconnecting")
        with pytest.raises(ChannelRefused) as caught:
            await open_session(tunnel, Destination("127.0.0.1", 80))
        assert caught.value.refusal is Refusal.NOT_CONNECTED
        assert "refused" in caught.value.detail


async def test_only_so_many_channels_wait(sshd: Sshd) -> None:
    async with started(tunnel_to(sshd, dial_timeout=PATIENCE)) as tunnel:
        sshd.stop()
        await eventually(lambda: tunnel.status()["state"] == "reconnecting")
        destination = Destination("127.0.0.1", 80)
        waiting = [asyncio.create_task(open_session(tunnel, destination)) for _ in range(MAX_WAITERS)]
        await asyncio.sleep(0)
        with pytest.raises(ChannelRefused):
            await open_session(tunnel, destination)
        assert not any(task.done() for task in waiting)
        await tunnel.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, ChannelRefused) for result in results)


async def test_a_login_that_is_taken_away_fails_fast_and_comes_back_when_mended(sshd: Sshd) -> None:
    authorized = sshd.authorized_keys.read_text()
    async with serving(echo) as destination, started(tunnel_to(sshd, dial_timeout=PATIENCE)) as tunnel:
        sshd.authorized_keys.write_text("")
        sshd.stop()
        await eventually(lambda: tunnel.status()["state"] == "reconnecting")
        held = asyncio.create_task(open_session(tunnel, destination))
        sshd.start()
        with pytest.raises(ChannelRefused, match="permission denied"):
            await held
        assert tunnel.status()["state"] == "failed"
        with pytest.raises(ChannelRefused, match="permission denied"):
            await open_session(tunnel, destination)
        sshd.authorized_keys.write_text(authorized)
        tunnel.nudge()
        await eventually(lambda: tunnel.status()["state"] == "connected")
        await open_session(tunnel, destination)


async def test_an_endpoint_with_a_new_key_is_not_reconnected_to(sshd: Sshd) -> None:
    async with started(tunnel_to(sshd)) as tunnel:
        sshd.stop()
        sshd.new_host_key()
        sshd.start()
        await eventually(lambda: tunnel.status()["state"] == "failed")
        assert fingerprint(sshd.host_key) in (tunnel.status()["last_error"] or "")


async def test_a_silent_endpoint_is_noticed(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "KEEPALIVE_INTERVAL", 0.05)
    async with (
        serving(echo) as destination,
        started(tunnel_to(sshd)) as tunnel,
        portal(tunnel, destination) as entrance,
    ):
        reader, writer = await entrance.connect()
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        sshd.freeze()
        assert await ending_of(reader) == "reset"
        writer.close()
        await eventually(lambda: tunnel.status()["reconnects"] > 0)


async def test_an_open_waits_for_the_reconnect_from_when_the_loss_is_known(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "KEEPALIVE_INTERVAL", 1.0)
    async with serving(echo) as destination, started(tunnel_to(sshd, dial_timeout=2.0)) as tunnel:
        sshd.freeze()
        # That the connection is dead is noticed after more than those 2 s.
        await open_session(tunnel, destination)
        assert tunnel.status()["reconnects"] == 1


async def test_after_a_nudge_a_silent_endpoint_is_noticed_soon(sshd: Sshd) -> None:
    async with started(tunnel_to(sshd)) as tunnel:
        sshd.freeze()
        tunnel.nudge()
        began = asyncio.get_running_loop().time()
        await eventually(lambda: tunnel.status()["reconnects"] > 0 or tunnel.status()["state"] != "connected")
        assert asyncio.get_running_loop().time() - began < login.KEEPALIVE_INTERVAL


async def test_a_nudge_does_not_disturb_a_connection_that_is_well(sshd: Sshd) -> None:
    async with serving(echo) as destination, started(tunnel_to(sshd)) as tunnel:
        interval, misses = PROBE
        for _ in range(3):
            tunnel.nudge()
            await open_session(tunnel, destination)
        await asyncio.sleep(interval * (misses + 2))  # until the probe would have told
        assert tunnel.status()["reconnects"] == 0
        assert tunnel.status()["state"] == "connected"


async def test_a_nudge_gives_up_an_attempt_that_nobody_will_answer(sshd: Sshd) -> None:
    hang, attempts = False, 0

    async def connect(host: str, port: int) -> Way:
        nonlocal attempts
        attempts += 1
        if hang:
            await asyncio.Event().wait()
        return await direct(host, port)

    async with serving(echo) as destination, started(tunnel_to(sshd, connect=connect)) as tunnel:
        hang = True
        sshd.stop()
        sshd.start()
        await eventually(lambda: attempts == 2)
        hang = False
        tunnel.nudge()
        await open_session(tunnel, destination)
        assert tunnel.status()["state"] == "connected"


async def test_a_nudge_ends_a_connection_from_an_address_that_the_machine_has_lost(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(tunnel_to(sshd)) as tunnel:
        monkeypatch.setattr("tp2.socks.tunnel.has_address", lambda _: False)
        tunnel.nudge()
        await eventually(lambda: tunnel.status()["reconnects"] == 1)


async def test_an_open_that_is_cancelled_leaves_no_channel_behind(sshd: Sshd) -> None:
    closed = asyncio.Event()

    async def until_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        closed.set()

    async with serving(until_eof) as destination, started(tunnel_to(sshd)) as tunnel:
        opening = asyncio.create_task(open_session(tunnel, destination))
        await eventually(lambda: len(tunnel._openings) == 1, interval=0)
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
        async with asyncio.timeout(PATIENCE):
            await closed.wait()


async def test_closing_leaves_nothing_behind(sshd: Sshd) -> None:
    async def once() -> None:
        async with serving(echo) as destination, started(tunnel_to(sshd)) as tunnel:
            async with portal(tunnel, destination) as entrance:
                clients = [await entrance.connect() for _ in range(5)]
                for reader, writer in clients:
                    writer.write(b"x")
                    await reader.read(1)
            for reader, writer in clients:
                assert await ending_of(reader) == "reset"
                writer.close()

    await once()
    await eventually(lambda: len(asyncio.all_tasks()) == 1)
    before = len(open_files())
    await once()
    await eventually(lambda: len(asyncio.all_tasks()) == 1)
    await eventually(lambda: len(open_files()) <= before)
