"""Pf's rules and a double of pfctl, a program of its own: what is asked of it, in which order, and what is left."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.doubles.pfctl import FREEBSD_HOOKS, MACOS_MAIN, Double
from tp2.errors import AlreadyRunning, ForwarderError, PrivilegeError, Tp2Error
from tp2.forward.pf import CHECK_INTERVAL, Pf
from tp2.forward.pfctl import PROGRAM
from tp2.forward.pfrules import EXEMPT_PORTS, anchor_text
from tp2.forward.platforms import FREEBSD, MACOS
from tp2.forward.rules import Inlet
from tp2.types import Destination, Redirect

pytestmark = pytest.mark.skipif(PROGRAM.exists(), reason="this machine has a pf of its own, which is not to be touched")

WEB = Redirect(Destination("10.96.0.1", 80), 20000)
WEB6 = Redirect(Destination("fd00:10:96::1", 80), 20002)
OTHER = Redirect(Destination("10.96.0.2", 80), 20001)

Make = Callable[..., Double]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[Double] = []

    def make(system: str = "macOS", **state: object) -> Double:
        double = Double(tmp_path / "machine", system, **state)
        monkeypatch.setenv("PATH", f"{double.bin}{os.pathsep}{os.environ['PATH']}")
        made.append(double)
        return double

    yield make
    for double in made:
        assert double.state["violations"] == []


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def pf(tmp_path: Path, clock: Time) -> Iterator[Pf]:
    rules = Pf(MACOS, directory=tmp_path / "run", resolver=tmp_path / "resolver", clock=clock)
    yield rules
    rules.close()


@pytest.fixture
def freebsd(tmp_path: Path, clock: Time) -> Iterator[Pf]:
    rules = Pf(FREEBSD, directory=tmp_path / "run", resolver=tmp_path / "resolver", clock=clock)
    yield rules
    rules.close()


def text(*redirects: Redirect) -> str:
    return anchor_text(redirects, [], 0, [])


LOAD = ["-a", "com.apple/tp2", "-o", "none", "-f", "-"]
FLUSH = ["-a", "com.apple/tp2", "-F", "all"]


def test_everything_is_looked_at_before_anything_is_changed_and_the_token_goes_last(machine: Make, pf: Pf) -> None:
    double = machine()
    before = double.state
    pf.open()
    assert double.calls == [
        FLUSH,
        ["-v", "-s", "Interfaces"],
        ["-s", "nat"],
        ["-s", "rules"],
        ["-E"],
        LOAD,
    ]
    pf.update([WEB, WEB6], [])
    assert double.rules == text(WEB, WEB6)
    pf.close()
    assert double.calls[6:] == [LOAD, FLUSH, ["-X", "4242"]]
    assert double.state == before | {"next_token": 4243}
    pf.close()
    assert len(double.calls) == 9


def test_a_change_is_one_load_and_no_change_is_none(machine: Make, pf: Pf) -> None:
    double = machine()
    pf.open()
    before = double.loads
    pf.update([WEB, WEB6, OTHER], [])
    pf.update([WEB], [Destination("10.96.9.9", 1)])
    pf.capture_dns([], 5353)
    pf.cluster([], [], None)
    assert double.loads == before + 1
    pf.update([Redirect(WEB.destination, 20009)], [WEB6.destination, OTHER.destination])
    assert double.loads == before + 2
    assert double.rules == text(Redirect(WEB.destination, 20009))


def test_mappings_nameservers_and_the_cluster_stand_side_by_side(machine: Make, pf: Pf) -> None:
    double = machine()
    pf.open()
    pf.update([WEB], [])
    pf.capture_dns(["192.168.1.1", "2001:db8::53"], 40053)
    pf.cluster(["10.96.0.1", "10.96.0.9"], [], None)
    pf.cluster(["fd00:10:96::1"], ["10.96.0.9"], None)
    assert double.rules == anchor_text([WEB], ["192.168.1.1", "2001:db8::53"], 40053, ["10.96.0.1", "fd00:10:96::1"])
    pf.capture_dns([], 40053)
    pf.cluster([], ["10.96.0.1", "fd00:10:96::1"], None)
    assert double.rules == text(WEB)


def test_ten_thousand_mappings_fit_one_load(machine: Make, pf: Pf) -> None:
    double = machine()
    pf.open()
    many = [Redirect(Destination(f"10.{n // 256}.{n % 256}.1", 80), 20000 + n) for n in range(10_000)]
    pf.update(many, [])
    assert double.rules == text(*many)


@pytest.mark.parametrize("fault", ["commit", "killed"])
def test_a_load_that_fails_half_way_leaves_what_was_there(machine: Make, pf: Pf, fault: str) -> None:
    double = machine()
    pf.open()
    pf.update([WEB], [])
    changes: list[Callable[[], None]] = [
        lambda: pf.update([OTHER], [WEB.destination]),
        lambda: pf.capture_dns(["192.168.1.1"], 40053),
        lambda: pf.cluster(["10.96.0.1"], [], None),
    ]
    for change in changes:
        double.set(faults={"load": fault})
        with pytest.raises(ForwarderError) as caught:
            change()
        assert caught.value.what == "pf refused a change"
        assert caught.value.why.endswith("Device busy" if fault == "commit" else "ended by signal 9")
        assert double.rules == text(WEB)
    # What was refused is not tried again behind the back of whoever asked for it.
    pf.update([WEB6], [])
    assert double.rules == text(WEB, WEB6)


def test_a_pfctl_that_does_not_end_is_ended(machine: Make, pf: Pf, monkeypatch: pytest.MonkeyPatch) -> None:
    double = machine()
    pf.open()
    double.set(faults={"load": "hangs"})
    monkeypatch.setattr("tp2.forward.pfctl.TIMEOUT", 1.0)
    with pytest.raises(ForwarderError, match="did not end within 1 s"):
        pf.update([WEB], [])


def test_the_reason_is_pfctls_own_and_not_its_usual_noise(machine: Make, pf: Pf) -> None:
    double = machine()
    pf.open()
    double.set(faults={"load": "commit"})
    with pytest.raises(ForwarderError, match="DIOCXCOMMIT: Device busy") as caught:
        pf.update([WEB], [])
    assert "ALTQ" not in caught.value.why


def untouched(double: Double, refused: Tp2Error) -> bool:
    """Whether *refused* is a whole message, and nothing but questions and a flush of our own came before it."""
    changes = [call for call in double.calls if call[0] not in ("-s", "-v") and call != FLUSH]
    return bool(refused.what and refused.why and refused.remedy) and not [c for c in changes if "-f" not in c]


def test_without_pfctl_it_says_what_has_it(pf: Pf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ForwarderError, match="no /sbin/pfctl") as caught:
        pf.open()
    assert "macOS and FreeBSD" in caught.value.remedy


def test_without_root_it_says_so(machine: Make, pf: Pf) -> None:
    double = machine(privileged=False)
    with pytest.raises(PrivilegeError, match="/dev/pf: Permission denied") as caught:
        pf.open()
    assert "sudo" in caught.value.remedy
    assert untouched(double, caught.value)


def test_where_no_record_can_be_kept_nothing_is_begun(machine: Make, tmp_path: Path) -> None:
    double = machine()
    (tmp_path / "file").touch()
    pf = Pf(MACOS, directory=tmp_path / "file" / "run", resolver=tmp_path / "resolver")
    with pytest.raises(ForwarderError, match="file/run"):
        pf.open()
    assert double.calls == []


def test_a_skipped_loopback_is_explained(machine: Make, pf: Pf) -> None:
    double = machine(skip=["lo0"])
    with pytest.raises(ForwarderError, match="skip on lo0") as caught:
        pf.open()
    assert "sudo pfctl -f /etc/pf.conf" in caught.value.remedy
    assert untouched(double, caught.value)
    assert double.state["tokens"] == {}


def test_another_interface_may_be_skipped(machine: Make, pf: Pf) -> None:
    machine(skip=["en0"])
    pf.open()


@pytest.mark.parametrize(
    ("main", "missing"),
    [
        ({"nat": [], "rules": ["pass on lo all"]}, 'rdr-anchor "com.apple/*" and anchor "com.apple/*"'),
        (MACOS_MAIN | {"nat": ['nat-anchor "com.apple/*" all']}, 'rdr-anchor "com.apple/*" is'),
        (MACOS_MAIN | {"rules": ['scrub-anchor "com.apple/*" all']}, 'anchor "com.apple/*" is'),
    ],
)
def test_a_main_ruleset_that_does_not_get_to_ours_is_explained(
    machine: Make, pf: Pf, main: dict[str, list[str]], missing: str
) -> None:
    double = machine(main=main)
    with pytest.raises(ForwarderError) as caught:
        pf.open()
    assert missing in caught.value.why
    assert "sudo pfctl -f /etc/pf.conf" in caught.value.remedy
    assert untouched(double, caught.value)
    assert double.state["tokens"] == {}


@pytest.mark.parametrize(
    ("change", "back", "why"),
    [
        ({"skip": ["lo0"]}, {"skip": []}, "skip on lo0"),
        ({"main": {"nat": [], "rules": []}}, {"main": MACOS_MAIN}, "rdr-anchor"),
        ({"enabled": False}, {"enabled": True}, "pfctl -d"),
    ],
)
def test_what_others_do_to_pf_later_is_noticed_with_the_next_mapping(
    machine: Make, pf: Pf, clock: Time, change: dict[str, object], back: dict[str, object], why: str
) -> None:
    double = machine()
    pf.open()
    pf.update([WEB], [])
    double.set(**change)
    clock.now += CHECK_INTERVAL
    with pytest.raises(ForwarderError) as caught:
        pf.update([OTHER], [])
    assert why in caught.value.why
    assert double.rules == text(WEB)
    # Letting go is always possible, and when all is well again so is everything else.
    if "enabled" not in change:
        pf.update([], [WEB.destination])
        assert double.rules == ""
    double.set(**back)
    pf.update([OTHER, WEB], [])
    assert double.rules in (text(OTHER, WEB), text(WEB, OTHER))


def test_one_look_is_good_for_a_while(machine: Make, pf: Pf, clock: Time) -> None:
    double = machine()
    pf.open()
    for port in range(20000, 20005):
        pf.update([Redirect(WEB.destination, port)], [])
    assert [call for call in double.calls if call == ["-v", "-s", "Interfaces"]] == [["-v", "-s", "Interfaces"]]


def test_a_second_tp2_is_told_about_the_first(machine: Make, pf: Pf, tmp_path: Path) -> None:
    double = machine()
    pf.open()
    pf.update([WEB], [])
    second = Pf(MACOS, directory=tmp_path / "run", resolver=tmp_path / "resolver")
    with pytest.raises(AlreadyRunning, match="another tp2"):
        second.open()
    second.close()
    assert double.rules == text(WEB)
    pf.close()
    second.open()
    second.close()


def test_others_keep_their_reference(machine: Make, pf: Pf) -> None:
    double = machine(tokens={"17": 1}, enabled=True)
    pf.open()
    pf.close()
    assert double.state["tokens"] == {"17": 1}
    assert double.state["enabled"] is True


def test_an_anchor_that_cannot_be_flushed_is_loaded_empty(machine: Make, pf: Pf) -> None:
    double = machine(faults={"flush": True})
    pf.open()
    pf.update([WEB], [])
    double.set(faults={"flush": True})
    pf.close()
    assert double.rules == ""
    assert double.state["tokens"] == {}


def test_our_own_queries_have_a_port_that_the_rules_let_pass(machine: Make, pf: Pf) -> None:
    double = machine()
    pf.open()
    before = len(double.calls)
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(family, kind) as sock:
                pf.exempt(sock)
                assert sock.getsockname()[1] in EXEMPT_PORTS
                with pytest.raises(ForwarderError, match="no source port"):
                    pf.exempt(sock)  # it has one
    assert len(double.calls) == before


@pytest.mark.parametrize("address", ["fe80::1", "169.254.1.1", "0.0.0.0"])
def test_a_nameserver_that_pf_cannot_tell_is_refused(machine: Make, pf: Pf, address: str) -> None:
    double = machine()
    pf.open()
    pf.capture_dns(["192.168.1.1"], 40053)
    with pytest.raises(ForwarderError, match=address):
        pf.capture_dns([address], 40053)
    assert double.rules == anchor_text([], ["192.168.1.1"], 40053, [])


def test_what_pf_cannot_do_is_said(machine: Make, pf: Pf) -> None:
    machine()
    pf.open()
    with pytest.raises(ForwarderError, match="unprivileged listener"):
        pf.cluster(["10.96.0.1"], [], 20000)
    with pytest.raises(ForwarderError, match="virtual machine"):
        pf.containers([Inlet("bridge100", 20000, 20001)])
    pf.containers([])
    assert pf.refused() == {}


def test_closed_rules_change_nothing(machine: Make, pf: Pf) -> None:
    double = machine()
    with pytest.raises(ForwarderError, match="closed"):
        pf.update([WEB], [])
    assert double.calls == []


# --- FreeBSD ------------------------------------------------------------------------------------------------------


def test_a_freebsd_without_rules_is_as_before_when_we_have_gone(machine: Make, freebsd: Pf) -> None:
    double = machine("FreeBSD")
    before = double.state
    freebsd.open()
    assert double.state["main"] == FREEBSD_HOOKS
    freebsd.update([WEB], [])
    assert double.rules == text(WEB)
    freebsd.close()
    assert double.state == before


def test_a_freebsd_that_calls_our_anchor_keeps_its_rules(machine: Make, freebsd: Pf) -> None:
    hooks = {key: [*lines, "pass all"] if key == "rules" else lines for key, lines in FREEBSD_HOOKS.items()}
    double = machine("FreeBSD", main=hooks, enabled=True)
    before = double.state
    freebsd.open()
    freebsd.update([WEB], [])
    assert double.rules == text(WEB)
    freebsd.close()
    assert double.state == before


def test_a_freebsd_whose_rules_do_not_call_ours_is_told_what_to_add(machine: Make, freebsd: Pf) -> None:
    double = machine("FreeBSD", main={"nat": [], "rules": ["block drop all"]}, enabled=True)
    before = double.state
    with pytest.raises(ForwarderError, match='rdr-anchor "tp2" and anchor "tp2"') as caught:
        freebsd.open()
    assert "/etc/pf.conf" in caught.value.remedy
    assert double.state == before


def test_a_freebsd_whose_rules_sleep_is_not_woken(machine: Make, freebsd: Pf) -> None:
    double = machine("FreeBSD", main=FREEBSD_HOOKS)
    with pytest.raises(ForwarderError, match="put them into force") as caught:
        freebsd.open()
    assert "service pf start" in caught.value.remedy
    assert double.state["enabled"] is False


def test_rules_that_came_while_we_were_there_keep_pf_enabled(machine: Make, freebsd: Pf) -> None:
    double = machine("FreeBSD")
    freebsd.open()
    theirs = {"nat": [], "rules": ["block drop in all", "pass out all"]}
    double.set(main=theirs)
    freebsd.close()
    assert double.state["main"] == theirs
    assert double.state["enabled"] is True


def test_skipped_interfaces_are_not_reset_by_a_main_ruleset_of_ours(machine: Make, freebsd: Pf) -> None:
    double = machine("FreeBSD", skip=["en0"])
    with pytest.raises(ForwarderError, match="rdr-anchor"):
        freebsd.open()
    assert double.state["skip"] == ["en0"]


def test_a_freebsd_kernel_gets_its_module(machine: Make, freebsd: Pf) -> None:
    double = machine("FreeBSD", module=False)
    double.program("kldload", f"from tests.doubles.pfctl import load_module; load_module({str(double.path)!r})")
    freebsd.open()
    assert double.state["module"] is True


def test_a_kernel_without_pf_is_explained(machine: Make, freebsd: Pf) -> None:
    machine("FreeBSD", module=False)
    with pytest.raises(ForwarderError, match="no /dev/pf") as caught:
        freebsd.open()
    assert "kldload" in caught.value.remedy


# --- /etc/resolver ------------------------------------------------------------------------------------------------


def test_dns_is_steered_on_macos_and_the_directory_goes_with_us(machine: Make, pf: Pf, tmp_path: Path) -> None:
    double = machine()
    log = tmp_path / "flushed"
    for name in ("dscacheutil", "killall"):
        double.program(name, f"open({str(log)!r}, 'a').write({name!r} + ' ' + ' '.join(sys.argv[1:]) + '\\n')")
    pf.open()
    pf.steer_dns(["cluster.local", "svc"], ["default.svc.cluster.local"], 40053)
    assert sorted(path.name for path in (tmp_path / "resolver").iterdir()) == ["tp2.cluster.local", "tp2.svc"]
    assert log.read_text() == "dscacheutil -flushcache\nkillall -HUP mDNSResponder\n"
    pf.close()
    assert not (tmp_path / "resolver").exists()
    assert log.read_text().count("dscacheutil") == 2


def test_a_resolver_directory_that_was_there_stays(machine: Make, pf: Pf, tmp_path: Path) -> None:
    machine()
    (tmp_path / "resolver").mkdir()
    pf.open()
    pf.steer_dns(["cluster.local"], [], 40053)
    pf.close()
    assert list((tmp_path / "resolver").iterdir()) == []


def test_freebsd_has_no_resolver_files(machine: Make, freebsd: Pf) -> None:
    machine("FreeBSD")
    freebsd.open()
    with pytest.raises(ForwarderError, match="no /etc/resolver"):
        freebsd.steer_dns(["cluster.local"], [], 40053)
