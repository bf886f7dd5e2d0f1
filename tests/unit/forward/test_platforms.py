"""Each system gets its own forwarding rules, unless it is told otherwise."""

from __future__ import annotations

import sys

import pytest

from tp2.errors import ForwarderError
from tp2.forward.pfctl import is_called
from tp2.forward.platforms import FREEBSD, KINDS, MACOS, choose, this_platform
from tp2.settings import Rules


@pytest.mark.parametrize(
    ("system", "kind"), [("linux", "nftables"), ("darwin", "pf"), ("freebsd13", "pf"), ("freebsd14", "pf")]
)
def test_what_a_system_has_is_chosen(monkeypatch: pytest.MonkeyPatch, system: str, kind: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert choose() == choose("auto") == kind


@pytest.mark.parametrize(("system", "kind"), [("linux", "nftables"), ("linux", "pf"), ("darwin", "pf")])
def test_they_can_be_forced(monkeypatch: pytest.MonkeyPatch, system: str, kind: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert choose(kind) == kind


def test_nftables_is_not_to_be_had_without_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ForwarderError, match="this is darwin") as caught:
        choose("nftables")
    assert "--forwarder" in caught.value.remedy


def test_what_the_option_takes_is_what_the_helper_takes() -> None:
    assert tuple(map(str, Rules)) == KINDS


def test_a_system_without_any_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ForwarderError, match="win32") as caught:
        choose()
    assert "SOCKS5" in caught.value.remedy


@pytest.mark.parametrize("kind", ["", "iptables", "PF", "nftables "])
def test_there_are_no_other_kinds(kind: str) -> None:
    with pytest.raises(ValueError, match="not a kind"):
        choose(kind)


def test_each_pf_has_its_own_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert this_platform() is FREEBSD
    monkeypatch.setattr(sys, "platform", "darwin")
    assert this_platform() is MACOS


STOCK = """\
scrub-anchor "com.apple/*" all fragment reassemble
nat-anchor "com.apple/*" all
rdr-anchor "com.apple/*" all
anchor "com.apple/*" all
"""


@pytest.mark.parametrize(
    ("ruleset", "called"),
    [
        (STOCK, (True, True)),
        (STOCK.replace("rdr-anchor", "binat-anchor"), (False, True)),
        (STOCK.replace('\nanchor "com.apple/*"', '\nanchor "com.apple.internet-sharing"'), (True, False)),
        (STOCK.replace("com.apple/*", "com.appleX*"), (False, False)),
        ("", (False, False)),
    ],
)
def test_a_ruleset_calls_ours_by_both_lines_or_not_wholly(ruleset: str, called: tuple[bool, bool]) -> None:
    assert is_called(ruleset, MACOS.hook) == called
