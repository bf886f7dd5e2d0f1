"""tp2 up through a person's own ``ssh -D``, which runs already."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import Laptop, Up, eventually
from tp2.sandbox.box import NODE, SSH_PORT
from tp2.sandbox.services import pattern

PROXY = "127.0.0.1:1090"
MEGABYTES = 8


@pytest.fixture
def ssh_d(laptop: Laptop) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts one."""
    started: list[subprocess.Popen[bytes]] = []
    known = laptop.box.directory / "known_hosts"
    known.write_text(f"[{NODE}]:{SSH_PORT} {laptop.box.host_key.read_text()}")

    def start() -> subprocess.Popen[bytes]:
        command = ["ssh", "-F", "none", "-N", "-D", PROXY, "-p", str(SSH_PORT), "-i", str(laptop.box.identity)]
        options = ["-o", f"UserKnownHostsFile={known}", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
        user = laptop.box.remote.partition("@")[0]
        started.append(laptop.host.start(*command, *options, f"{user}@{NODE}", stdin=subprocess.DEVNULL))
        host, _, port = PROXY.partition(":")
        laptop.host.wait_listening(host, int(port))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_services_are_reached_by_name_through_it(
    laptop: Laptop, up: Callable[..., Up], ssh_d: Callable[[], subprocess.Popen[bytes]]
) -> None:
    proxy = ssh_d()
    running = up("--socks-upstream", PROXY, installed=True)
    assert f"tunnel   socks5://{PROXY}" in running.stages
    assert laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"
    # More than is copied: the kernel moves it.
    size = MEGABYTES * 1_000_000
    done = laptop.run("sh", "-c", f"curl --silent --fail http://web.shop/bytes/{size} | sha256sum")
    assert done.stdout.split()[0] == hashlib.sha256(pattern(size)).hexdigest()
    # tp2's own SOCKS5 proxy leads there too.
    assert laptop.curl("--proxy", "socks5h://127.0.0.1:1080", "http://web.blog/") == "this is web.blog, port 80\n"

    status = laptop.status()
    assert status["state"] == "ready"
    assert status["tunnel"]["remote"] == f"socks5://{PROXY}"
    assert status["connections"]["bytes_received"] > size
    (row,) = [row for row in laptop.mappings() if row["name"] == "web.shop"]
    assert row["bytes_received"] > size

    # It is somebody's own: it may end, and come back.
    proxy.kill()
    proxy.wait()
    laptop.run("curl", "--silent", "--max-time", "0.3", "http://web.shop/")
    eventually(lambda: laptop.status()["tunnel"]["state"] == "reconnecting")
    ssh_d()
    assert laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"
    assert running.stop() == 0
    assert "tp2" not in laptop.ruleset()


def test_a_proxy_that_is_not_there_is_said_so_and_nothing_stays(laptop: Laptop) -> None:
    done = laptop.run(*laptop.box.up_command("--socks-upstream", PROXY, installed=True))
    assert done.code == 8
    assert f"cannot use the SOCKS proxy socks5://{PROXY}" in done.stderr
    assert "connection refused" in done.stderr
    assert laptop.ruleset() == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--remote", "bastion", "--socks-upstream", PROXY), "two ways into the cluster"),
        (("--socks", PROXY, "--socks-upstream", PROXY), "tp2's own SOCKS5 proxy"),
    ],
)
def test_what_cannot_be_meant_is_refused(laptop: Laptop, options: tuple[str, ...], words: str) -> None:
    done = laptop.run(*laptop.box.up_command(*options, installed=True))
    assert done.code == 2
    assert words in done.stderr


def test_doctor_looks_at_the_proxy(laptop: Laptop, ssh_d: Callable[[], subprocess.Popen[bytes]]) -> None:
    before = laptop.tp2("doctor", "--socks-upstream", PROXY)
    assert "cannot use the SOCKS proxy" in before.stdout
    ssh_d()
    after = laptop.tp2("doctor", "--socks-upstream", PROXY)
    assert f"socks5://{PROXY} speaks SOCKS5" in after.stdout
