"""A start on a machine that is not clean: leftovers, other tools, taken ports. It works, or says why not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Laptop, Up
from tests.e2e.test_failures import assert_fails
from tests.e2e.test_no_garbage import processes_of_tp2, runtime_files

WEB = "this is web.shop, port 80\n"

# As 'sshuttle --dns' and others do it: whatever goes to port 53 goes to a port of theirs.
THEIR_DNS = """
table ip theirs {{
    chain output {{
        type nat hook output priority {priority}; policy accept;
        udp dport 53 redirect to :5353
        tcp dport 53 redirect to :5353
    }}
}}
"""


@pytest.fixture
def directory(laptop: Laptop) -> Iterator[Path]:
    """The runtime directory, which is there already."""
    path = Path(laptop.box.environment["TP2_RUNTIME_DIR"])
    path.mkdir(mode=0o700)
    yield path
    for left in path.iterdir() if path.exists() else ():
        left.rmdir() if left.is_dir() and not left.is_symlink() else left.unlink()
    if path.exists():
        path.rmdir()


def test_the_files_of_a_dead_tp2_are_replaced_and_what_is_not_tp2s_stays(
    laptop: Laptop, up: Callable[..., Up], directory: Path
) -> None:
    # Its number has been given to another process since.
    (directory / "lock").write_text(f"{os.getpid()}\n")
    (directory / "tp2.log").write_text("the last words of another\n")
    (directory / "notes").write_text("the user's own")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "control.sock"))
    running = up()
    assert laptop.status()["state"] == "ready"
    assert laptop.curl("http://web.shop/") == WEB
    assert running.stop() == 0
    assert runtime_files(laptop) == ["notes"]


@pytest.mark.parametrize("name", ["lock", "control.sock", "tp2.log"])
def test_a_file_of_tp2s_that_is_a_directory_is_named(laptop: Laptop, directory: Path, name: str) -> None:
    before = laptop.ruleset()
    (directory / name).mkdir()
    done = laptop.run(*laptop.box.up_command())
    assert done.code == 1
    assert f"cannot use the runtime directory {directory}" in done.stderr
    assert f"why: {name}: " in done.stderr
    assert (laptop.ruleset(), processes_of_tp2(laptop)) == (before, [])
    assert (directory / name).is_dir()


def test_a_symbolic_link_in_place_of_the_lock_is_not_followed(laptop: Laptop, directory: Path) -> None:
    precious = laptop.box.directory / "precious"
    precious.write_text("not to be truncated")
    (directory / "lock").symlink_to(precious)
    done = laptop.run(*laptop.box.up_command())
    assert done.code == 1
    assert "why: lock: " in done.stderr
    assert precious.read_text() == "not to be truncated"


def test_a_table_of_tp2s_name_without_an_owner_is_refused_and_the_remedy_helps(
    laptop: Laptop, up: Callable[..., Up]
) -> None:
    remedy = "nft delete table inet tp2"
    laptop.host.run("nft", "add", "table", "inet", "tp2")
    assert_fails(laptop, laptop.box.up_command(), 4, "the nftables table 'inet tp2' exists already", remedy)
    laptop.host.run(*remedy.split())
    assert up().stop() == 0


def test_another_tools_dns_redirect_stays_and_tp2_comes_before_it(laptop: Laptop, up: Callable[..., Up]) -> None:
    laptop.host.run("nft", "-f", "-", stdin=THEIR_DNS.format(priority=-100))
    try:
        before = laptop.ruleset()
        running = up()
        assert laptop.lookup("web.shop") == ["10.96.1.1"]
        assert laptop.lookup("web.shop", "A", "+tcp") == ["10.96.1.1"]
        assert laptop.curl("http://web.shop/") == WEB
        assert running.stop() == 0
        assert laptop.ruleset() == before
    finally:
        laptop.host.run("nft", "delete", "table", "ip", "theirs")


def test_another_tools_dns_redirect_that_comes_first_is_refused_with_what_it_does(laptop: Laptop) -> None:
    laptop.host.run("nft", "-f", "-", stdin=THEIR_DNS.format(priority=-150))
    try:
        words = ("this machine's programs do not ask tp2 for names", "tp2 was not asked")
        assert_fails(laptop, laptop.box.up_command(), 1, *words)
    finally:
        laptop.host.run("nft", "delete", "table", "ip", "theirs")


@contextmanager
def listening(laptop: Laptop, *ports: int) -> Iterator[None]:
    """Another program, which answers with its name on *ports* of the loopback addresses of both families."""
    script = (
        "import select, socket, sys\n"
        "all = [socket.create_server((a, int(p)), family=f) for p in sys.argv[1:]\n"
        "       for a, f in (('127.0.0.1', socket.AF_INET), ('::1', socket.AF_INET6))]\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for each in select.select(all, [], [])[0]:\n"
        "        with each.accept()[0] as connection:\n"
        "            connection.sendall(b'another')\n"
    )
    words = [str(port) for port in ports]
    process = laptop.host.start(sys.executable, "-c", script, *words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_mapping_ports_that_others_have_are_passed_over(laptop: Laptop, up: Callable[..., Up]) -> None:
    with listening(laptop, 20000, 20001, 20002):
        running = up("--ports", "20000-20015")
        assert laptop.curl("http://web.shop/") == WEB
        assert laptop.curl("http://web.blog/") == "this is web.blog, port 80\n"
        assert not {20000, 20001, 20002} & {row["local_port"] for row in laptop.mappings()}
        theirs = laptop.run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/20000 && cat <&3", timeout=20)
        assert theirs.stdout == "another"
        assert running.stop() == 0


def test_where_others_have_all_ports_of_one_address_the_next_address_serves(
    laptop: Laptop, up: Callable[..., Up]
) -> None:
    with listening(laptop, *range(20000, 20004)):
        running = up("--ports", "20000-20003")
        # On 127.0.0.1 there is none; the machine's further loopback addresses have the same ports once more.
        assert laptop.curl("http://web.shop/") == WEB
        assert {row["local_address"] for row in laptop.mappings()} == {"127.0.0.2"}
        assert running.stop() == 0
