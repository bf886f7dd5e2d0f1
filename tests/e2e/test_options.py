"""What tp2 up is told is what it does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

from tests.e2e.conftest import Laptop, Up
from tp2.sandbox.box import NAMESERVER, SITE, SITE_ADDRESS

NOBODY_THERE, ANOTHER = "192.0.2.77", "192.0.2.99"


def test_every_option_is_heeded(laptop: Laptop, up: Callable[..., Up]) -> None:
    laptop.box.start_nameserver(ANOTHER)
    password = laptop.box.directory / "password"
    password.touch(mode=0o600)
    password.write_text("me:secret\n")
    running = up(
        *("--dns", NOBODY_THERE, "--fallback", ANOTHER, "--namespace", "blog"),
        *("--socks", "127.0.0.1:1999", "--socks-auth", str(password)),
        *("--ports", "30000-30007", "--idle-timeout", "90s", "--cluster-domain", "example.cluster"),
        *("--metrics", "9153"),
    )

    # --dns: that nameserver is captured, and those of resolv.conf are not.
    captured, plain = f"@{NOBODY_THERE}", f"@{NAMESERVER}"
    assert laptop.lookup("web.blog.svc.example.cluster", "A", captured) == ["10.96.2.1"]
    assert laptop.lookup("web.blog.svc.example.cluster", "A", plain) == []
    # --fallback: asked for what is not the cluster's.
    assert laptop.lookup(SITE, "A", captured) == [SITE_ADDRESS]
    assert laptop.status()["dns"]["upstream"] == [f"{ANOTHER}:53"]
    # --namespace: no other is known, and short names are looked up there.
    assert laptop.lookup("web", "A", captured) == ["10.96.2.1"]
    assert laptop.lookup("web.shop.svc", "A", captured) == []

    # --ports, --idle-timeout
    assert laptop.curl("http://10.96.2.1/") == "this is web.blog, port 80\n"
    (mapping,) = laptop.mappings()
    assert mapping["local_port"] in range(30000, 30008)
    assert 0 < mapping["expires_in"] <= 90

    # --socks, --socks-auth
    assert laptop.status()["socks"]["listen"] == "127.0.0.1:1999"
    assert laptop.curl("--proxy", "socks5h://me:secret@127.0.0.1:1999", "http://web/") == "this is web.blog, port 80\n"
    for wrong in ("me:wrong@", ""):
        assert laptop.run("curl", "--silent", "--proxy", f"socks5h://{wrong}127.0.0.1:1999", "http://web/").code != 0

    # --metrics
    page = laptop.curl("http://127.0.0.1:9153/metrics")
    assert "\ntp2_ready 1.0\n" in page
    # Those of the two fetches above that were let in, not those without the password, and not tp2's own tests.
    status = laptop.status()["connections"]
    assert (status["total"], status["failed"]) == (2, {})
    assert f"\ntp2_connections_total {float(status['total'])}\n" in page
    assert f"\ntp2_received_bytes_total {float(status['bytes_received'])}\n" in page
    assert status["bytes_received"] > 2 * len("this is web.blog, port 80")
    assert running.stop() == 0


def test_every_option_can_be_set_in_the_environment(laptop: Laptop) -> None:
    # python -m tp2 up, then options with a value each.
    command = laptop.box.up_command()
    settings = [
        f"TP2_{option[2:].replace('-', '_').upper()}={value}"
        for option, value in zip(command[4::2], command[5::2], strict=True)
    ]
    assert laptop.run("env", *settings, *command[:4], "--detach").code == 0
    assert laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"
    assert laptop.tp2("down").code == 0


def test_every_option_can_be_set_in_the_configuration_file(laptop: Laptop) -> None:
    # python -m tp2 up, then options with a value each.
    command = laptop.box.up_command()
    lines = [f"{option[2:]} = {json.dumps(value)}" for option, value in zip(command[4::2], command[5::2], strict=True)]
    file = laptop.box.directory / ".config" / "tp2" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join([*lines, "detach = true", "verbose = true"]))
    try:
        up = laptop.run(*command[:4])
        assert up.code == 0, up.stderr
        assert "ready" in up.stdout
        # Off a terminal there is nothing that moves, and nothing of colour.
        assert "\x1b" not in up.stdout + up.stderr
        assert "waiting" not in up.stdout + up.stderr
        assert laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"
        # --detach and --verbose: the questions are in the log.
        logs = laptop.tp2("logs")
        assert (logs.code, "web.shop A: cluster" in logs.stdout) == (0, True)
        (asked,) = [line for line in laptop.tp2("top", "web.shop").stdout.splitlines() if "web.shop A " in line]
        assert "cluster" in asked
        # A flag takes a switch of the file back.
        taken = laptop.run(*command[:4], "--no-detach")
        assert taken.code == 4
    finally:
        file.unlink()
    assert laptop.tp2("down").code == 0


def test_a_port_for_metrics_that_is_taken_is_one_message_and_nothing_is_left(laptop: Laptop) -> None:
    program = "import socket; taken = socket.create_server(('127.0.0.1', 9153)); print(flush=True); taken.accept()"
    holder = laptop.host.start(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        done = laptop.run(*laptop.box.up_command("--metrics", "127.0.0.1:9153"))
    finally:
        laptop.host.kill(*laptop.host.family(holder.pid))
        holder.wait()
    assert done.code == 9
    what, why, remedy = done.stderr.splitlines()
    assert what == "tp2: metrics cannot be had at 127.0.0.1:9153"
    assert "python" in why
    assert "--metrics" in remedy
    assert laptop.ruleset() == ""
    assert laptop.tp2("status").code == 3
