"""What a person sees: up, mappings --watch and top on a terminal, narrow and wide, with colours and without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Laptop
from tests.e2e.terminal import HEIGHT, terminal
from tests.e2e.test_ready import dropped
from tp2.errors import ExitCode
from tp2.sandbox.box import API_PORT, NODE, SITE, tp2_command

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


PLUGIN = """\
#!/bin/sh
printf 'Password: ' >/dev/tty
read -r answer </dev/tty
[ "$answer" = secret ] || exit 1
printf '{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{{"token":"%s"}}}}' "{token}"
"""


def everywhere(test: Callable[..., None]) -> Callable[..., None]:
    """Run *test* on a narrow terminal and a wide one, with colours and without."""
    coloured = pytest.mark.parametrize("colour", [True, False], ids=["colour", "NO_COLOR"])
    decorated: Callable[..., None] = coloured(pytest.mark.parametrize("width", [80, 200])(test))
    return decorated


def fits(screen: str, width: int) -> bool:
    lines = screen.splitlines()
    return len(lines) <= HEIGHT and all(len(line) <= width for line in lines)


@everywhere
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


def test_a_plugin_that_asks_for_a_password_is_not_drawn_over(laptop: Laptop) -> None:
    box = laptop.box
    content: dict[str, Any] = yaml.safe_load(box.kubeconfig.read_text())
    token = content["users"][0]["user"]["token"]
    plugin = box.directory / "asks"
    plugin.write_text(PLUGIN.format(token=token))
    plugin.chmod(0o755)
    content["users"][0]["user"] = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(plugin),
            "interactiveMode": "Always",
        }
    }
    kubeconfig = box.directory / "asking"
    kubeconfig.write_text(json.dumps(content))
    with terminal(laptop, 80, box.up_command("--kubeconfig", str(kubeconfig)), colour=True) as one:
        # The tunnel comes up meanwhile.
        one.shows("Password:", "tunnel ")
        assert "waiting" not in one.screen
        one.press("secret", "Enter")
        one.shows("Password:", "ready    in")
        one.press("C-c")
        assert one.ended() == 0


def test_a_look_at_a_tp2_in_the_background_ends_with_it(laptop: Laptop) -> None:
    with terminal(laptop, 80, laptop.box.up_command("--detach"), colour=True) as one:
        assert one.ended() == 0
        assert "waiting" not in one.shows("ready    in")
    with terminal(laptop, 80, tp2_command("top"), colour=True) as one:
        one.shows("tp2 ready", "q quit")
        assert laptop.tp2("down").code == 0
        assert one.ended() == ExitCode.NOT_RUNNING
        # The screen is the one from before, with the reason below.
        assert "q quit" not in one.shows("tp2 is not running")


@everywhere
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


@everywhere
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
