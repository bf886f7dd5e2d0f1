"""resolv.conf, as glibc and people write it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tp2.dns.resolvconf import ResolvConf, parse, read
from tp2.errors import Tp2Error


def test_everything_that_it_can_say() -> None:
    conf = parse(
        "# generated\n"
        "; by somebody\n"
        "nameserver 10.0.0.53\n"
        "nameserver  2001:DB8:0::53 # the other one\n"
        "\tnameserver fe80::1%eth0;scoped\r\n"
        "search corp.example. Example.ORG\n"
        "options ndots:5 timeout:1 edns0 trust-ad\n"
        "options attempts:3\n"
    )
    assert conf.nameservers == ("10.0.0.53", "2001:db8::53", "fe80::1%eth0")
    assert conf.search == ("corp.example", "example.org")
    assert dict(conf.options) == {"ndots": "5", "timeout": "1", "edns0": "", "trust-ad": "", "attempts": "3"}
    assert conf.ndots == 5


@pytest.mark.parametrize(
    ("text", "search"),
    [
        ("domain a.example\n", ("a.example",)),
        ("domain a.example b.example\n", ("a.example",)),
        ("search a.example\nsearch b.example c.example\n", ("b.example", "c.example")),
        ("search a.example b.example\ndomain c.example\n", ("c.example",)),
        ("search .\n", ()),
        ("search\n", ()),
    ],
)
def test_the_last_search_or_domain_line_wins(text: str, search: tuple[str, ...]) -> None:
    assert parse(text).search == search


@pytest.mark.parametrize(
    "text",
    [
        "nameserver",
        "nameserver localhost",
        "nameserver 10.0.0",
        "#nameserver 10.0.0.1",
        ";nameserver 10.0.0.1",
        "nameservers 10.0.0.1",
        "name server 10.0.0.1",
        "sortlist 130.155.160.0/255.255.240.0",
        "\0\xff",
        "",
    ],
)
def test_lines_that_name_no_server_are_passed_over(text: str) -> None:
    assert parse(text + "\nnameserver 10.9.9.9").nameservers == ("10.9.9.9",)


def test_garbage_after_a_value_is_passed_over() -> None:
    assert parse("nameserver 10.0.0.1 10.0.0.2 what\n").nameservers == ("10.0.0.1",)


def test_a_server_named_twice_is_one() -> None:
    assert parse("nameserver 10.0.0.1\nnameserver 10.0.0.1\n").nameservers == ("10.0.0.1",)


@pytest.mark.parametrize(
    ("options", "ndots"), [("", 1), ("ndots:0", 0), ("ndots:x", 1), ("ndots:99999999999", 15), ("ndots:2 ndots:3", 3)]
)
def test_ndots_is_within_what_a_resolver_accepts(options: str, ndots: int) -> None:
    assert parse(f"options {options}").ndots == ndots


@given(st.text())
def test_any_text_is_a_resolv_conf(text: str) -> None:
    assert isinstance(parse(text), ResolvConf)


def test_a_file_is_read_through_symlinks_whatever_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"# \xff\xfe\nnameserver 10.0.0.1\n")
    (tmp_path / "resolv.conf").symlink_to("real")
    assert read(tmp_path / "resolv.conf").nameservers == ("10.0.0.1",)


def test_a_file_that_is_not_there_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(Tp2Error) as caught:
        read(tmp_path / "resolv.conf")
    assert "no such file" in caught.value.why.lower()
    assert "--dns" in caught.value.remedy
