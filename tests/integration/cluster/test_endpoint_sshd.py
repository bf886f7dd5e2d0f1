"""The endpoint's sshd, with the manifest's own configuration and commands: TCP forwarding, and nothing else.

The server is OpenSSH's, as an ordinary user without capabilities (:mod:`tests.integration.cluster.endpoint_pod`), and
so are the clients, but for requests that OpenSSH's client does not send on its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import asyncssh
import pytest

from tests.integration.cluster.endpoint_pod import LOOPBACK, EndpointPod, running
from tests.integration.socks.rig import Portal, portal, serving, started
from tests.integration.socks.rig import echo as repeat
from tests.integration.socks.sshd import write_key
from tp2.cluster import sshd
from tp2.cluster.discover import read_host_key
from tp2.socks.tunnel import Endpoint, Tunnel

DEADLINE = 40.0


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointPod]:
    with running(tmp_path_factory.mktemp("pod")) as pod:
        yield pod


@pytest.fixture(scope="module")
def open_pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointPod]:
    """A pod that grants sessions, to see that the other directives leave nothing to do in them."""
    with running(tmp_path_factory.mktemp("pod"), without=("MaxSessions",)) as pod:
        yield pod


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    """The port of a service in the cluster that sends back what it is sent."""
    with socket.create_server((LOOPBACK, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    while data := connection.recv(65536):
                        connection.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE)


def ssh(
    pod: EndpointPod,
    *arguments: str,
    command: Sequence[str] = (),
    identity: Path | None = None,
    user: str = sshd.USER,
    host_key: str = "",
    stdin: bytes = b"",
) -> subprocess.CompletedProcess[bytes]:
    """OpenSSH's client, which accepts nothing but the pod's (or another) host key."""
    known_hosts = pod.log.with_name("known_hosts")
    known_hosts.write_text(f"[{LOOPBACK}]:{pod.port} {host_key or pod.host_key}")
    options = {
        "BatchMode": "yes",
        "GlobalKnownHostsFile": "none",
        "UserKnownHostsFile": known_hosts,
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ExitOnForwardFailure": "yes",
        "LogLevel": "INFO",
    }
    given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    place = ["-i", str(identity or pod.identity), "-p", str(pod.port), f"{user}@{LOOPBACK}"]
    return subprocess.run(
        ["ssh", "-F", "none", *given, *arguments, *place, *command], input=stdin, capture_output=True, timeout=DEADLINE
    )


def forwarded(pod: EndpointPod, port: int, identity: Path | None = None, **options: str) -> bytes:
    """What comes back of some bytes that go through the endpoint, or nothing."""
    return ssh(pod, "-W", f"{LOOPBACK}:{port}", identity=identity, stdin=b"hello", **options).stdout


async def connect(pod: EndpointPod) -> asyncssh.SSHClientConnection:
    return await asyncssh.connect(
        LOOPBACK,
        pod.port,
        username=sshd.USER,
        client_keys=[str(pod.identity)],
        known_hosts=None,
        config=None,
        agent_path=None,
    )


# What it is for


def test_tcp_is_forwarded(pod: EndpointPod, echo: int) -> None:
    assert forwarded(pod, echo) == b"hello"


def test_the_host_key_is_the_one_that_was_printed(pod: EndpointPod, echo: int, tmp_path: Path) -> None:
    pinned = read_host_key(pod.host_key)
    assert pinned is not None
    assert forwarded(pod, echo, host_key=pinned) == b"hello"
    another = ssh(pod, "-W", f"{LOOPBACK}:{echo}", host_key=write_key(tmp_path / "another"))
    assert b"Host key verification failed" in another.stderr


async def test_a_service_that_refuses_is_told_from_one_that_may_not_be_reached(pod: EndpointPod) -> None:
    with socket.socket() as nobody:
        nobody.bind((LOOPBACK, 0))
        async with await connect(pod) as connection:
            with pytest.raises(asyncssh.ChannelOpenError, match="refused"):
                await connection.open_connection(LOOPBACK, nobody.getsockname()[1])


def test_a_key_that_is_added_lets_in_without_a_restart(pod: EndpointPod, echo: int, tmp_path: Path) -> None:
    added = write_key(tmp_path / "added")
    assert forwarded(pod, echo, tmp_path / "added") == b""
    before = pod.authorized_keys.read_text()
    pod.authorized_keys.write_text(before + added)
    try:
        assert forwarded(pod, echo, tmp_path / "added") == b"hello"
    finally:
        pod.authorized_keys.write_text(before)
    assert forwarded(pod, echo, tmp_path / "added") == b""


async def test_tp2s_own_tunnel_goes_through_it(pod: EndpointPod) -> None:
    endpoint = Endpoint(LOOPBACK, pod.port, sshd.USER)
    tunnel = Tunnel(endpoint, identity=pod.identity, host_key=read_host_key(pod.host_key))
    async with serving(repeat) as service, started(tunnel), portal(tunnel, service) as way:
        answers = await asyncio.gather(*(through(way, bytes([number]) * 300_000) for number in range(20)))
    assert answers == [bytes([number]) * 300_000 for number in range(20)]


async def through(way: Portal, data: bytes) -> bytes:
    """What comes back of *data*, sent as a client would."""
    reader, writer = await way.connect()
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(DEADLINE):
        answer = await reader.read(-1)
    writer.close()
    return answer


# Who is let in


def test_another_key_is_refused(pod: EndpointPod) -> None:
    result = ssh(pod, "-N", identity=pod.stranger)
    assert result.returncode == 255
    assert b"Permission denied (publickey)" in result.stderr


@pytest.mark.parametrize("user", ["root", "nobody", "abc"])
def test_no_other_user_can_log_in(pod: EndpointPod, user: str) -> None:
    assert b"Permission denied" in ssh(pod, "-N", user=user).stderr


def test_no_password_is_asked_for(pod: EndpointPod) -> None:
    result = ssh(pod, "-N", "-o", "PubkeyAuthentication=no", "-o", "BatchMode=no")
    assert b"Permission denied (publickey)." in result.stderr, "the server lists what it would take: keys only"


def test_without_authorized_keys_nobody_is_let_in(tmp_path: Path, echo: int) -> None:
    pod = EndpointPod(tmp_path)
    pod.authorized_keys.unlink()
    try:
        pod.start()
        assert forwarded(pod, echo) == b""
        pod.authorized_keys.write_text(write_key(pod.identity))
        assert forwarded(pod, echo) == b"hello"
    finally:
        pod.stop()


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["-T"], []),
        (["-tt"], []),
        ([], ["id"]),
        (["-A"], ["id"]),
        (["-s"], ["sftp"]),
    ],
    ids=["shell", "terminal", "command", "command-with-agent", "sftp"],
)
def test_no_session_is_opened(pod: EndpointPod, arguments: list[str], command: list[str]) -> None:
    result = ssh(pod, *arguments, command=command)
    assert result.returncode == 255
    assert b"open failed" in result.stderr
    assert result.stdout == b""


@pytest.mark.parametrize("command", [[], ["id"], ["/bin/sh -c 'id'"]])
def test_a_session_would_have_nothing_to_run(open_pod: EndpointPod, command: list[str]) -> None:
    result = ssh(open_pod, "-T", command=command, stdin=b"id\n")
    assert result.returncode == 1
    assert result.stdout == b""


def test_a_session_would_have_no_terminal(open_pod: EndpointPod) -> None:
    assert b"PTY allocation request failed" in ssh(open_pod, "-tt").stderr


def test_a_session_would_have_no_sftp(open_pod: EndpointPod) -> None:
    assert ssh(open_pod, "-s", command=["sftp"]).returncode != 0


async def test_a_session_would_have_no_x11(open_pod: EndpointPod, tmp_path: Path) -> None:
    # Where there is no such file, asyncssh makes a cookie up.
    xauthority = tmp_path / "Xauthority"
    async with await connect(open_pod) as connection:
        with pytest.raises(asyncssh.ChannelOpenError, match="X11 forwarding request failed"):
            await connection.create_process("id", x11_forwarding=True, x11_display=":99", x11_auth_path=str(xauthority))


def test_no_agent_is_forwarded(pod: EndpointPod) -> None:
    # sshd would open a socket for it in a session, of which there is none, and says here that it would not.
    assert "allowagentforwarding no" in effective(pod)


@pytest.mark.parametrize("where", ["0", "8080", "0.0.0.0:0", "/run/tp2.sock"])
def test_no_port_or_socket_is_forwarded_from_the_cluster(pod: EndpointPod, echo: int, where: str) -> None:
    result = ssh(pod, "-N", "-R", f"{where}:{LOOPBACK}:{echo}")
    assert result.returncode == 255
    assert b"forwarding failed" in result.stderr


async def test_no_socket_of_the_pod_can_be_reached(pod: EndpointPod, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), path)
    async with server, await connect(pod) as connection:
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_unix_connection(str(path))


async def test_there_is_no_tunnel_device(pod: EndpointPod) -> None:
    async with await connect(pod) as connection:
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_tun()


# How it runs


def effective(pod: EndpointPod) -> set[str]:
    """sshd's own word on its configuration, defaults included."""
    return set(pod.run(f"$(command -v sshd) -T -f {sshd.CONFIG_DIRECTORY}/sshd_config").splitlines())


def test_sshd_itself_says_that_everything_else_is_off(pod: EndpointPod) -> None:
    assert effective(pod) >= {
        "allowtcpforwarding local",
        "allowstreamlocalforwarding no",
        "allowagentforwarding no",
        "x11forwarding no",
        "permittunnel no",
        "gatewayports no",
        "permittty no",
        "permituserrc no",
        "permituserenvironment no",
        "maxsessions 0",
        "forcecommand /bin/false",
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "hostbasedauthentication no",
        "permitrootlogin no",
        f"allowusers {sshd.USER}",
        "gssapiauthentication no",
        "authenticationmethods publickey",
        "usepam no",
    }


def test_it_runs_as_the_pods_user_without_capabilities(pod: EndpointPod) -> None:
    said = pod.run("id -u; id -un; grep -E '^(Cap|NoNewPrivs)' /proc/self/status")
    uid, name, *status = said.splitlines()
    assert (uid, name) == (str(sshd.UID), sshd.USER)
    values = dict(line.split(":\t") for line in status)
    assert values.pop("NoNewPrivs") == "1"
    assert set(values.values()) == {"0" * 16}


@pytest.mark.parametrize("path", ["/file", "/etc/passwd", f"{sshd.CONFIG_DIRECTORY}/file", sshd.HOST_KEY])
def test_it_can_write_nowhere(pod: EndpointPod, path: str) -> None:
    with pytest.raises(RuntimeError, match="Read-only file system"):
        pod.run(f"echo >>{path}")


def test_the_host_key_is_for_the_pods_user_only_and_its_private_half_is_not_printed(pod: EndpointPod) -> None:
    assert stat.S_IMODE(pod.host_key_file.stat().st_mode) == 0o600
    assert pod.host_key.count("\n") == 1
    assert "PRIVATE" in pod.host_key_file.read_text()


def test_a_pod_that_is_restarted_keeps_its_host_key(tmp_path: Path) -> None:
    pod = EndpointPod(tmp_path)
    first = pod.make_host_key()
    assert pod.make_host_key() == first
    # Without the public half, which is written last, the key may be half a key.
    pod.host_key_file.with_suffix(".pub").unlink()
    assert pod.make_host_key() != first
    pod.stop()


def test_two_pods_have_different_host_keys(pod: EndpointPod, open_pod: EndpointPod) -> None:
    assert pod.host_key != open_pod.host_key


# What the image may be


def fake_image(directory: Path, name: str, *, knows_penalties: bool) -> subprocess.CompletedProcess[str]:
    """Run the container's script where a program of that name is the only sshd, which prints how it is called."""
    program = directory / name
    refuse = "" if knows_penalties else 'case "$*" in *PerSourcePenalties*) exit 255;; esac\n'
    program.write_text(f'#!/bin/sh\n{refuse}case "$*" in *" -t "*) exit 0;; esac\necho "$0" "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": str(directory)}
    return subprocess.run(
        ["/bin/sh", "-c", sshd.RUN_SSHD], env=environment, capture_output=True, text=True, timeout=DEADLINE
    )


@pytest.mark.parametrize("name", ["sshd", "sshd.pam"])
def test_sshd_is_found_under_both_names_and_called_by_its_path(tmp_path: Path, name: str) -> None:
    said = fake_image(tmp_path, name, knows_penalties=False).stdout
    assert said == f"{tmp_path / name} -D -e -f {sshd.CONFIG_DIRECTORY}/sshd_config\n"


def test_wrong_keys_do_not_shut_out_everybody(tmp_path: Path) -> None:
    said = fake_image(tmp_path, "sshd", knows_penalties=True).stdout
    assert said.endswith(" -o PerSourcePenalties=no\n"), "through a port-forward all have the same source"


def test_an_image_without_sshd_says_so(tmp_path: Path) -> None:
    result = fake_image(tmp_path, "something-else", knows_penalties=False)
    assert result.returncode == 127
    assert "this image has no sshd" in result.stderr
