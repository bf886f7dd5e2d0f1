"""``ready`` means ready: it is said only after a test has come through, and no longer when one would not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import Laptop, Up, eventually
from tp2.sandbox.box import NAMESERVER

NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"


@contextmanager
def resolver_bypassed(laptop: Laptop) -> Iterator[None]:
    """Programs on this machine ask no nameserver at all."""
    laptop.host.write_etc("nsswitch.conf", NSSWITCH.replace("files dns", "files"))
    try:
        yield
    finally:
        laptop.host.write_etc("nsswitch.conf", NSSWITCH)


@contextmanager
def dropped(laptop: Laptop, rule: str, hook: str, priority: int) -> Iterator[None]:
    """Somebody else's firewall drops or takes something."""
    laptop.host.shell(f"""
        nft add table inet firewall
        nft "add chain inet firewall extra {{ type filter hook {hook} priority {priority}; }}"
        nft "add rule inet firewall extra {rule}" """)
    try:
        yield
    finally:
        laptop.host.shell("nft delete table inet firewall")


def answers_dropped(laptop: Laptop) -> object:
    return dropped(laptop, f"ip saddr {NAMESERVER} udp sport 53 drop", "input", 10)


def connections_taken(laptop: Laptop) -> object:
    return dropped(laptop, "ip daddr 198.19.84.80 reject with tcp reset", "output", -300)


@contextmanager
def forwarding_off(laptop: Laptop) -> Iterator[None]:
    """The SSH endpoint lets people in and forwards nothing."""
    box = laptop.box
    box.stop_sshd()
    box.start_sshd(AllowTcpForwarding="no")
    try:
        yield
    finally:
        box.stop_sshd()
        box.start_sshd()


BROKEN = [
    pytest.param(resolver_bypassed, 1, "do not ask tp2 for names", "nsswitch", id="the resolver is bypassed"),
    pytest.param(answers_dropped, 1, "tp2's answers do not reach", "firewall", id="answers are dropped"),
    pytest.param(connections_taken, 6, "do not arrive at tp2", "nft list ruleset", id="another rule takes connections"),
    pytest.param(forwarding_off, 8, "does not allow TCP forwarding", "AllowTcpForwarding", id="forwarding is off"),
]


@pytest.mark.parametrize(("break_it", "code", "what", "remedy"), BROKEN)
def test_ready_is_never_said_when_a_test_cannot_come_through(
    laptop: Laptop, break_it: Callable[[Laptop], object], code: int, what: str, remedy: str
) -> None:
    with break_it(laptop):  # type: ignore[attr-defined]
        before = laptop.ruleset()
        done = laptop.run(*laptop.box.up_command())
        assert done.code == code, (done.stdout, done.stderr)
        assert "ready" not in done.stdout
        assert what in done.stderr
        assert remedy in done.stderr
        assert done.stderr.count("tp2: ") == 1
        assert laptop.ruleset() == before


@pytest.mark.parametrize(("break_it", "code", "what", "remedy"), BROKEN)
def test_a_running_tp2_says_that_it_is_degraded_and_why_and_is_ready_again_when_it_is_mended(
    laptop: Laptop,
    up: Callable[..., Up],
    break_it: Callable[[Laptop], object],
    code: int,
    what: str,
    remedy: str,
) -> None:
    running = up()
    with break_it(laptop):  # type: ignore[attr-defined]
        # A change of the network makes tp2 look at once; left alone, it looks every few seconds.
        laptop.host.shell("ip addr add 192.0.2.77/32 dev lo; ip addr del 192.0.2.77/32 dev lo")
        eventually(lambda: laptop.status()["state"] == "degraded", within=40)
        eventually(lambda: what in str((laptop.status()["canary"] or {}).get("why")), within=40)
        assert remedy in laptop.status()["canary"]["remedy"]
        assert laptop.tp2("status").code == 1
    assert laptop.tp2("status", "--wait", "40s").code == 0
    assert running.stop() == 0


def test_status_waits_until_it_is_ready(laptop: Laptop) -> None:
    assert laptop.tp2("status", "--wait", "100ms").code == 3
    waiting = laptop.host.start(
        *laptop.box.up_command()[:3], "status", "--wait", "60s", env=laptop.box.environment, stdout=subprocess.DEVNULL
    )
    up = Up(laptop)
    assert waiting.wait(60) == 0
    assert up.stop() == 0


def test_the_tests_own_name_is_nobody_elses(laptop: Laptop, up: Callable[..., Up]) -> None:
    running = up()
    before = laptop.status()["dns"]["queries"]
    assert laptop.lookup("x.tp2-canary") == ["198.19.84.80"]
    assert laptop.lookup("tp2-canary") == []
    assert laptop.mappings() == []
    assert laptop.status()["dns"]["queries"] == before + 1
    assert running.stop() == 0
