"""What tp2 up is told is what it does."""

from __future__ import annotations

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
