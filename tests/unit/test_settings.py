"""What the user writes is understood, or refused with a word on how to write it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tp2 import settings
from tp2.errors import UsageError
from tp2.settings import Remote, SocketAddress

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGhvc3Qga2V5IG9mIGEgdGVzdCwgb25seSB3b3Jkcw=="


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("1d", 86400.0),
        ("1.5h", 5400.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert settings.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        ("bastion", Remote("bastion", 22, None)),
        ("me@bastion.example:2222", Remote("bastion.example", 2222, "me")),
        ("192.0.2.1:22", Remote("192.0.2.1", 22, None)),
        ("fd00::1", Remote("fd00::1", 22, None)),
        ("me@[fd00::1]:2222", Remote("fd00::1", 2222, "me")),
    ],
)
def test_ssh_endpoints(text: str, remote: Remote) -> None:
    assert settings.parse_remote(text) == remote
    assert settings.parse_remote(str(remote)) == remote


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1080", SocketAddress("127.0.0.1", 1080)),
        ("[::1]:1080", SocketAddress("::1", 1080)),
        ("192.0.2.53", SocketAddress("192.0.2.53", 53)),
        ("[fd00::53]", SocketAddress("fd00::53", 53)),
        ("FD00::0:53", SocketAddress("fd00::53", 53)),
    ],
)
def test_addresses_with_a_port_that_may_be_left_out(text: str, address: SocketAddress) -> None:
    assert settings.parse_socket_address(text, 53) == address
    assert settings.parse_socket_address(str(address)) == address


def test_domains() -> None:
    assert settings.parse_domain("Corp.Example.") == "corp.example"
    assert settings.parse_domain("_tcp.a-b.c") == "_tcp.a-b.c"


def test_port_ranges() -> None:
    assert settings.parse_ports("20000-20002") == range(20000, 20003)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (settings.parse_duration, "0"),
        (settings.parse_duration, "10 m"),
        (settings.parse_duration, "-1s"),
        (settings.parse_address, "1"),
        (settings.parse_address, "localhost"),
        (settings.parse_socket_address, "127.0.0.1"),
        (settings.parse_socket_address, "127.0.0.1:0"),
        (settings.parse_socket_address, "127.0.0.1:99999"),
        (settings.parse_socket_address, "127.0.0.1:"),
        (settings.parse_remote, ""),
        (settings.parse_remote, "a b"),
        (settings.parse_remote, "host:port"),
        (settings.parse_domain, ""),
        (settings.parse_domain, "a..b"),
        (settings.parse_domain, "a b"),
        (settings.parse_domain, "x" * 64),
        (settings.parse_ports, "20000"),
        (settings.parse_ports, "30000-20000"),
        (settings.parse_ports, "80-90"),
    ],
)
def test_what_makes_no_sense_is_refused(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.remedy


PARSERS = [
    settings.parse_duration,
    settings.parse_address,
    settings.parse_domain,
    settings.parse_socket_address,
    settings.parse_remote,
    settings.parse_ports,
    settings.read_host_key,
]


@given(st.sampled_from(PARSERS), st.text(max_size=20) | st.from_regex(r"[0-9a-f:.\-\[\]@]{0,20}", fullmatch=True))
def test_no_text_breaks_a_parser(parse: Callable[[str], object], text: str) -> None:
    with contextlib.suppress(UsageError):
        parse(text)


def test_a_host_key_is_a_file_or_the_key_itself(tmp_path: Path) -> None:
    file = tmp_path / "key.pub"
    file.write_text(f"# the endpoint\n{KEY} root@endpoint\n")
    assert settings.read_host_key(str(file)) == KEY
    assert settings.read_host_key(f"{KEY} comment") == KEY


def test_a_line_of_ssh_keyscan_is_a_host_key_too(tmp_path: Path) -> None:
    file = tmp_path / "scan"
    file.write_text(f"# bastion:22 SSH-2.0-OpenSSH_9.2\nbastion {KEY}\n")
    assert settings.read_host_key(str(file)) == KEY


def test_a_private_key_is_no_host_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")
    with pytest.raises(UsageError, match="no public key"):
        settings.read_host_key(str(file))


@pytest.mark.parametrize(
    ("text", "exclusion"),
    [
        ("corp.example", "corp.example"),
        ("Corp.Example.", "corp.example"),
        ("*.dev", "dev"),
        (".dev", "dev"),
        ("10.96.0.0/16", ip_network("10.96.0.0/16")),
        ("10.96.7.7/16", ip_network("10.96.0.0/16")),
        ("10.96.0.1", ip_network("10.96.0.1/32")),
        ("fd00:10:96::/48", ip_network("fd00:10:96::/48")),
        ("fd00::1", ip_network("fd00::1/128")),
    ],
)
def test_names_and_networks_can_be_excluded(text: str, exclusion: object) -> None:
    assert settings.parse_exclusion(text) == exclusion


def test_the_two_kinds_of_exclusions_are_told_apart() -> None:
    chosen = settings.Settings(exclude=tuple(map(settings.parse_exclusion, ["a.example", "10.0.0.0/8", "b.example"])))
    assert chosen.excluded_names == ("a.example", "b.example")
    assert chosen.excluded_networks == (ip_network("10.0.0.0/8"),)


@pytest.mark.parametrize(
    "text", ["10.96.0.0/33", "10.96/16", "fd00::/200", "fd00:::1", "a b", "/", "x/y", "*", "*.", "*dev", "a.*.dev"]
)
def test_what_is_neither_a_name_nor_a_network_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        settings.parse_exclusion(text)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("10.96.1.1:80", ("10.96.1.1", 80)),
        ("[fd00:10:96::1]:80", ("fd00:10:96::1", 80)),
        ("web", ("web", None)),
        ("Web.Shop:8080", ("web.shop", 8080)),
        ("web.shop.svc.cluster.local", ("web.shop.svc.cluster.local", None)),
        ("10-96-1-1.shop.pod:80", ("10-96-1-1.shop.pod", 80)),
    ],
)
def test_what_can_be_mapped(text: str, target: tuple[str, int | None]) -> None:
    assert settings.parse_target(text) == target


@pytest.mark.parametrize(
    "text", ["10.96.1.1", "[fd00::1]", "fd00::1", "web:", "web:http", ":80", "", "10.96.1:80", "a b"]
)
def test_what_cannot_be_mapped(text: str) -> None:
    with pytest.raises(UsageError):
        settings.parse_target(text)


@pytest.mark.parametrize("text", ["docker0", "br-0a1b2c3d4e5f", "auto", "off", "vmbr0.7"])
def test_interfaces(text: str) -> None:
    assert settings.parse_interface(text) == text


@pytest.mark.parametrize("text", ["lo", "", "a/b", "br*", "a-name-of-16-byte", "br 0", ".."])
def test_what_is_no_interface(text: str) -> None:
    with pytest.raises(UsageError):
        settings.parse_interface(text)


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("127.0.0.1:1080", Remote("127.0.0.1", 1080)),
        ("socks5://bastion.example:1081", Remote("bastion.example", 1081)),
        ("[::1]:1080", Remote("::1", 1080)),
    ],
)
def test_socks_proxies(text: str, proxy: Remote) -> None:
    assert settings.parse_proxy(text) == proxy


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "me@bastion:1080", "http://bastion:1080", "::1:1080", "bastion:0", ":1080"]
)
def test_what_is_no_socks_proxy_is_said_to_be_none(text: str) -> None:
    with pytest.raises(UsageError):
        settings.parse_proxy(text)
