"""What a person sees: up, mappings --watch and top on a terminal, narrow and wide, with colours and without."""

from __future__ import annotations

import shutil

import pytest

from tests.e2e.conftest import Laptop
from tests.e2e.terminal import HEIGHT, terminal
from tests.e2e.test_ready import dropped
from tp2.sandbox.box import API_PORT, NODE, SITE, tp2_command

pytestmark = [
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
    pytest.mark.parametrize("colour", [True, False], ids=["colour", "NO_COLOR"]),
    pytest.mark.parametrize("width", [80, 200]),
]


def fits(screen: str, width: int) -> bool:
    lines = screen.splitlines()
    return len(lines) <= HEIGHT and all(len(line) <= width for line in lines)


def test_up_says_what_it_waits_for_and_then_what_is_done(laptop: Laptop, width: int, colour: bool) -> None:
    with (
        terminal(laptop, width, laptop.box.up_command(), colour=colour) as one,
        dropped(laptop, f"ip daddr {NODE} tcp dport {API_PORT} drop", "output", 10),
    ):
        seen = one.shows("helper   nftables rules", "tunnel ", "waiting for the Kubernetes API")
        assert fits(seen, width)
        assert one.coloured is colour
        laptop.host.shell("nft flush table inet firewall")
        seen = one.shows("cluster  ", "ready    in")
        assert "waiting" not in seen
        one.press("C-c")
        assert one.ended() == 0


def test_mappings_are_watched(connected: Laptop, width: int, colour: bool) -> None:
    connected.curl("http://web.shop/")
    with terminal(connected, width, tp2_command("mappings", "--watch", "--sort", "rate"), colour=colour) as one:
        seen = one.shows("web.shop", "10.96.1.1:80", "receiving", "state")
        assert fits(seen, width)
        assert ("127.0.0.1:200" in seen and "last used" in seen) is (width == 200)
        name = "web.blog" if colour else "db.shop"
        connected.lookup(f"{name}.svc.cluster.local")
        one.shows("web.shop", name)
        # Nothing of colour is lost: a pinned mapping has one.
        assert connected.tp2("map", "web.shop").code == 0
        one.shows("pinned")
        assert one.coloured is colour
        assert connected.tp2("unmap", "web.shop").code == 0
        one.press("C-c")
        assert one.ended() == 0


def test_top_shows_all_at_a_glance_and_answers_to_keys(connected: Laptop, width: int, colour: bool) -> None:
    for name in ("web.shop", "web.blog"):
        connected.curl(f"http://{name}/")
    connected.lookup(SITE)
    with terminal(connected, width, tp2_command("top"), colour=colour) as one:
        seen = one.shows("tp2 ready", "tunnel ", "0 reconnects", "web.shop", "web.blog", SITE, "upstream", "q quit")
        assert fits(seen, width)
        assert one.coloured is colour
        assert ("not a name of the cluster" in seen) is (width == 200)
        assert "name*" in seen

        one.press("s")
        one.shows("address*", "by address")
        one.press("S")
        one.shows("name*")

        one.press("/")
        one.shows("filter:")
        one.press("blog")
        one.shows("filter: blog", "1 mappings with 'blog'")
        one.press("Enter")
        seen = one.shows("q quit", "with 'blog'")
        assert "web.shop" not in seen
        assert SITE not in seen
        one.press("Escape")
        one.shows("web.shop", SITE)

        one.press("p")
        one.shows("paused")
        one.press("p")
        one.resize(100)
        seen = one.shows("web.shop", "total" if width == 80 else "web.blog")
        assert fits(seen, 100 if width == 80 else 200)

        # What is new is there without a key.
        connected.lookup("nothing.shop.svc.cluster.local")
        one.shows("nothing.shop.svc.cluster.local")

        one.press("q")
        assert one.ended() == 0
        # The screen is the one from before.
        assert "q quit" not in one.screen
