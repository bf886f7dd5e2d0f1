"""The privileged helper with pf's rules, as the daemon starts it, and whatever may end it. pfctl is a double."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.doubles.pfctl import Double
from tests.helper import Helper
from tp2.errors import ForwarderError
from tp2.forward.pfctl import PROGRAM
from tp2.forward.pfrules import anchor_text
from tp2.forward.protocol import CaptureDns, SteerDns, Update
from tp2.forward.resolverfiles import resolver_text
from tp2.sandbox.namespaces import Host
from tp2.types import Destination, Redirect

pytestmark = pytest.mark.skipif(PROGRAM.exists(), reason="this machine has a pf of its own, which is not to be touched")

WEB = Redirect(Destination("10.96.0.1", 80), 20000)
LOCKS = "guardian\nhelper\npfctl\n"
LOAD = ["-a", "com.apple/tp2", "-o", "none", "-f", "-"]
FLUSH = ["-a", "com.apple/tp2", "-F", "all"]
RULES = anchor_text([WEB], ["192.0.2.53"], 5353, [])


@pytest.fixture
def host() -> Iterator[Host]:
    """A host for its own /run: the records are kept there."""
    with Host("mac") as mac:
        mac.own_etc({})
        yield mac


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    machine = Double(tmp_path / "machine")
    yield machine
    assert machine.state["violations"] == []


def start(host: Host, double: Double, *words: str) -> Helper:
    env = {"PATH": f"{double.bin}{os.pathsep}{os.environ['PATH']}"}
    return Helper(*(words or ("pf",)), prefix=host.command(), env=env)


@contextmanager
def running(host: Host, double: Double) -> Iterator[Helper]:
    helper = start(host, double)
    try:
        yield helper
    finally:
        helper.close()


def guardian_of(host: Host, helper: Helper) -> int:
    """Return the process that waits for the helper's end."""
    family = host.family(helper.process.pid)
    [guardian] = [pid for pid in family if b"pfguard" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return guardian


def wait_for_guardian(host: Host) -> None:
    """Return when no guardian is there any more: it holds a lock for as long as it has something to do."""
    host.run("flock", "/run/tp2-pf/guardian", "true", timeout=60)


def kill_when_pfctl_waits(helper: Helper, double: Double) -> None:
    """Kill the helper while a pfctl of its is at work, which goes on alone."""
    while not (double.path / "waiting").exists():
        time.sleep(0.01)
    os.kill(helper.process.pid, signal.SIGKILL)
    helper.process.wait(60)


def capture(helper: Helper) -> None:
    assert b'"kind":"pf"' in helper.hello()
    helper.ask(Update((WEB,), ()))
    helper.ask(CaptureDns(("192.0.2.53",), 5353))


def test_the_helper_captures_with_pf_and_leaves_nothing(host: Host, double: Double) -> None:
    before = double.state
    helper = start(host, double)
    capture(helper)
    assert double.rules == RULES
    assert len(double.state["tokens"]) == 1
    assert helper.close() == 0
    assert double.state == before | {"next_token": 4243}
    assert host.processes() == []
    assert host.run("ls", "/run/tp2-pf") == LOCKS


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_when_the_helper_is_killed_its_guardian_takes_the_rules_away(host: Host, double: Double, name: str) -> None:
    before = double.state
    with running(host, double) as helper:
        capture(helper)
        os.kill(helper.process.pid, signal.Signals[name])
        helper.process.wait(60)
        wait_for_guardian(host)
        assert double.state == before | {"next_token": 4243}
    assert host.processes() == []


def test_when_both_are_killed_the_next_start_sweeps(host: Host, double: Double) -> None:
    before = double.state
    with running(host, double) as helper:
        capture(helper)
        host.kill(guardian_of(host, helper), helper.process.pid)
        helper.process.wait(60)
    assert double.rules == RULES  # Nobody was left to take them away.
    with running(host, double) as helper:
        assert b'"kind":"pf"' in helper.hello()
        assert double.rules == ""
        assert list(double.state["tokens"]) == ["4243"]
    assert double.state == before | {"next_token": 4244}


def test_a_start_waits_for_the_guardian_of_the_last_one(host: Host, double: Double) -> None:
    with running(host, double) as helper:
        capture(helper)
        os.kill(helper.process.pid, signal.SIGKILL)
        with running(host, double) as successor:
            capture(successor)
            assert double.rules == RULES
            assert len(double.state["tokens"]) == 1


def test_another_users_hangup_does_not_end_the_guardian(host: Host, double: Double) -> None:
    with running(host, double) as helper:
        capture(helper)
        guardian = guardian_of(host, helper)
        for name in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            os.kill(guardian, name)
        os.kill(helper.process.pid, signal.SIGKILL)
        helper.process.wait(60)
        wait_for_guardian(host)
        assert double.rules == ""


def test_killed_at_any_moment_of_its_start_nothing_is_left_after_the_next(host: Host, double: Double) -> None:
    before = double.state
    chance = random.Random(5)
    for _ in range(8):
        helper = start(host, double)
        # Wherever it has got to by then: the moments are spread over a start.
        time.sleep(chance.uniform(0.05, 1.0))
        victims = host.family(helper.process.pid)
        host.kill(*victims if chance.random() < 0.5 else [helper.process.pid])
        helper.close()
    with running(host, double) as helper:
        capture(helper)
    assert double.state == before | {"next_token": double.state["next_token"]}
    assert host.run("ls", "/run/tp2-pf") == LOCKS
    assert host.processes() == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_pfctl_takes_the_reference_it_is_let_go(host: Host, double: Double, when: str) -> None:
    before = double.state
    double.set(faults={f"slow {when}": "-E"})
    with running(host, double) as helper:
        kill_when_pfctl_waits(helper, double)
        wait_for_guardian(host)
    assert double.state == before | {"next_token": 4243}


def test_killed_while_pfctl_loads_the_rules_go_after_they_have_come(host: Host, double: Double) -> None:
    before = double.state
    with running(host, double) as helper:
        capture(helper)
        double.set(faults={"slow before": "-f"})
        helper.send(Update((), (WEB.destination,)))
        kill_when_pfctl_waits(helper, double)
        wait_for_guardian(host)
    assert double.calls[-3:] == [LOAD, FLUSH, ["-X", "4242"]]
    assert double.state == before | {"next_token": 4243}


def test_dns_is_steered_through_the_helper_and_the_files_go_when_it_is_killed(host: Host, double: Double) -> None:
    with running(host, double) as helper:
        capture(helper)
        helper.ask(SteerDns(("cluster.local", "svc"), ("svc.cluster.local",), 40053))
        assert host.run("ls", "/etc/resolver") == "tp2.cluster.local\ntp2.svc\n"
        assert host.run("cat", "/etc/resolver/tp2.svc") == resolver_text("svc", ["svc.cluster.local"], 40053)
        os.kill(helper.process.pid, signal.SIGKILL)
        helper.process.wait(60)
        wait_for_guardian(host)
        assert host.run("ls", "-d", "/etc/resolver", check=False) == ""


def test_a_second_helper_is_told_about_the_first(host: Host, double: Double) -> None:
    with running(host, double) as helper:
        capture(helper)
        with running(host, double) as second:
            assert b"another tp2 captures on this machine" in second.hello()
            assert second.process.wait(60) == 1
        assert double.rules == RULES


def test_the_reason_of_a_refusal_reaches_the_daemon(host: Host, double: Double) -> None:
    double.set(skip=["lo0"])
    with running(host, double) as helper:
        assert b"skip on lo0" in helper.hello()
        assert helper.process.wait(60) == 1
    assert host.processes() == []


def test_a_load_that_fails_is_an_answer_and_the_helper_goes_on(host: Host, double: Double) -> None:
    with running(host, double) as helper:
        capture(helper)
        double.set(faults={"load": "commit"})
        with pytest.raises(ForwarderError, match="Device busy"):
            helper.ask(Update((), (WEB.destination,)))
        assert double.rules == RULES
        helper.ask(Update((), (WEB.destination,)))
        assert double.rules == anchor_text([], ["192.0.2.53"], 5353, [])


@pytest.mark.parametrize("words", [("iptables",), ("pf", "pf"), ("",)])
def test_the_helper_knows_its_platforms_and_no_other_word(host: Host, double: Double, words: tuple[str, ...]) -> None:
    helper = start(host, double, *words)
    assert helper.hello() == b""
    assert helper.close() == 2
    assert double.calls == []
