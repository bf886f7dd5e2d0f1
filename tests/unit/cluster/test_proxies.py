"""The proxy is the one that kubectl would take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tp2.cluster.proxies import is_usable, proxy_for, without_password
from tp2.errors import ClusterError

SERVER = "https://api.example.com:6443"
PROXY = "http://proxy.example:3128"


def with_no_proxy(no_proxy: str, server: str = SERVER) -> str | None:
    return proxy_for(server, None, {"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy})


def test_without_a_word_there_is_none() -> None:
    assert proxy_for(SERVER, None, {}) is None
    assert proxy_for(SERVER, "", {"HTTPS_PROXY": ""}) is None


def test_the_kubeconfig_goes_before_the_environment_and_no_proxy_does_not_hold_for_it() -> None:
    environment = {"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}
    assert proxy_for(SERVER, "socks5://127.0.0.1:1080", environment) == "socks5://127.0.0.1:1080"


def test_the_environment_is_asked_in_capitals_first() -> None:
    assert proxy_for(SERVER, None, {"HTTPS_PROXY": PROXY, "https_proxy": "http://other"}) == PROXY
    assert proxy_for(SERVER, None, {"https_proxy": PROXY}) == PROXY


def test_a_plain_server_has_a_variable_of_its_own() -> None:
    environment = {"HTTPS_PROXY": PROXY, "HTTP_PROXY": "http://plain"}
    assert proxy_for("http://api.example.com", None, environment) == "http://plain"
    assert proxy_for("http://api.example.com", None, {"HTTPS_PROXY": PROXY, "ALL_PROXY": PROXY}) is None


def test_a_proxy_without_a_scheme_speaks_http() -> None:
    assert proxy_for(SERVER, None, {"HTTPS_PROXY": "proxy.example:3128"}) == PROXY


@pytest.mark.parametrize("proxy", ["ftp://me:secret@proxy.example", "http://", "http://proxy.example:port", "a b"])
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(proxy: str) -> None:
    with pytest.raises(ClusterError) as raised:
        proxy_for(SERVER, None, {"HTTPS_PROXY": proxy})
    assert "HTTPS_PROXY" in raised.value.what
    assert "secret" not in str(raised.value)
    assert "NO_PROXY" in raised.value.remedy


@pytest.mark.parametrize(
    "server", ["https://localhost:6443", "https://127.0.0.1:6443", "https://127.8.8.8", "https://[::1]:6443"]
)
def test_this_machine_is_reached_directly(server: str) -> None:
    assert proxy_for(server, None, {"HTTPS_PROXY": PROXY}) is None


@pytest.mark.parametrize(
    ("no_proxy", "server"),
    [
        ("*", SERVER),
        ("api.example.com", SERVER),
        ("example.com", SERVER),
        ("EXAMPLE.com", SERVER),
        (".example.com", SERVER),
        ("*.example.com", SERVER),
        ("other.net, example.com", SERVER),
        ("example.com:6443", SERVER),
        ("10.1.2.3", "https://10.1.2.3"),
        ("10.1.2.3:443", "https://10.1.2.3"),
        ("10.0.0.0/8", "https://10.1.2.3:6443"),
        ("fd00::/8", "https://[fd00::1]:6443"),
        ("fd00::1", "https://[fd00::1]:6443"),
        ("[fd00::1]:6443", "https://[fd00::1]:6443"),
    ],
)
def test_a_server_that_no_proxy_names_is_reached_directly(no_proxy: str, server: str) -> None:
    assert with_no_proxy(no_proxy, server) is None


@pytest.mark.parametrize(
    ("no_proxy", "server"),
    [
        ("", SERVER),
        (" , ", SERVER),
        ("ample.com", SERVER),
        ("x.example.com", SERVER),
        ("example.com:443", SERVER),
        ("example.com:port", SERVER),
        (".example.com", "https://example.com"),
        ("10.1.2", "https://10.1.2.3"),
        ("10.0.0.0/8", SERVER),
        ("10.0.0.0/8", "https://11.0.0.1"),
        ("10.0.0.0/x", "https://10.0.0.1"),
        ("fd00::/8", "https://10.0.0.1"),
        ("10.1.2.3:6443", "https://10.1.2.3"),
    ],
)
def test_a_server_that_no_proxy_does_not_name_is_reached_through_the_proxy(no_proxy: str, server: str) -> None:
    assert with_no_proxy(no_proxy, server) == PROXY


@given(st.text(), st.text())
def test_no_text_in_the_environment_breaks_it(no_proxy: str, proxy: str) -> None:
    with_no_proxy(no_proxy)
    with_no_proxy(no_proxy, "https://10.1.2.3")
    try:
        url = proxy_for(SERVER, None, {"HTTPS_PROXY": proxy})
    except ClusterError:
        return
    assert url is None or is_usable(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:secret@proxy:3128", "http://me:...@proxy:3128"),
        ("http://me@proxy:3128", "http://me@proxy:3128"),
        ("me:secret@proxy", "me:...@proxy"),
        (PROXY, PROXY),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
