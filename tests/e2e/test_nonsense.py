"""Nonsense at its doors gets an error or nothing, and tp2 goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Laptop
from tp2.sandbox.box import NAMESERVER


@pytest.mark.parametrize("seed", range(3))
def test_nonsense_in_dns_socks_and_control_stops_nothing(connected: Laptop, seed: int) -> None:
    socket = Path(connected.box.environment["TP2_RUNTIME_DIR"]) / "control.sock"
    connected.python("babble", NAMESERVER, "1080", str(socket), str(seed))
    assert connected.lookup("web.shop") == ["10.96.1.1"]
    assert connected.lookup("web.blog", "A", "+tcp") == ["10.96.2.1"]
    assert connected.curl("http://web.shop/") == "this is web.shop, port 80\n"
    assert connected.curl("--proxy", "socks5h://127.0.0.1:1080", "http://web.shop/") == "this is web.shop, port 80\n"
    assert connected.status()["state"] == "ready"
