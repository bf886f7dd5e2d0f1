"""The laptop's nameservers change, and die and return: nobody's lookup fails for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.e2e.conftest import CLIENTS, Laptop, Up, eventually
from tp2.sandbox.box import NAMESERVER, SITE, SITE_ADDRESS

OTHER = "192.0.2.54"
WEB_SITE = f"{SITE}={SITE_ADDRESS}"


class Lookups:
    """Lookups of *names* (``NAME=ADDRESS``) in the background, one after the other without a pause."""

    def __init__(self, laptop: Laptop, *names: str) -> None:
        self._process = laptop.host.start(
            *(sys.executable, str(CLIENTS / "resolve.py"), *names),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def have_not_failed(self) -> None:
        """Return when all names have been looked up once more from now on. No lookup has failed so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "round\n"

    def end(self) -> str:
        rest: str = self._process.communicate("", timeout=60)[0]
        return rest


@contextmanager
def lookups(laptop: Laptop, *names: str) -> Iterator[Lookups]:
    """Lookups for the length of the block, none of which may fail."""
    running = Lookups(laptop, *names)
    running.have_not_failed()
    try:
        yield running
        running.have_not_failed()
    finally:
        rest = running.end()
    assert rest == ""


def point_at(laptop: Laptop, *addresses: str) -> None:
    laptop.host.write_etc("resolv.conf", "".join(f"nameserver {address}\n" for address in addresses))


def test_a_changed_nameserver_is_followed_within_a_second_and_no_lookup_fails(
    laptop: Laptop, up: Callable[..., Up]
) -> None:
    laptop.box.start_nameserver(OTHER)
    running = up()
    # Any nameserver answers for the site. Whoever asks the new one for a name of the cluster's, in the two milliseconds
    # before it is captured, is told that there is no such name: the file is read before anybody can be told of it.
    with lookups(laptop, WEB_SITE) as asking:
        for new in (OTHER, NAMESERVER, OTHER):
            point_at(laptop, new)
            took = eventually(lambda new=new: laptop.status()["dns"]["upstream"] == [f"{new}:53"])  # type: ignore[misc]
            assert took < 1.0, new
            assert new in laptop.status()["dns"]["captured"]
            assert laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"
            asking.have_not_failed()
    # Who still asks the former one is answered as well.
    assert laptop.lookup("web.shop", "A", f"@{NAMESERVER}") == ["10.96.1.1"]
    point_at(laptop, NAMESERVER)
    assert running.stop() == 0


def test_a_nameserver_that_dies_is_replaced_by_the_next_and_may_return(laptop: Laptop, up: Callable[..., Up]) -> None:
    third = laptop.box.start_nameserver("192.0.2.55")
    point_at(laptop, "192.0.2.55", NAMESERVER)
    running = up()
    with lookups(laptop, WEB_SITE, "web.shop=10.96.1.1") as asking:
        assert laptop.lookup(SITE) == [SITE_ADDRESS]
        third.kill()
        third.wait()
        asking.have_not_failed()
        assert laptop.lookup(SITE) == [SITE_ADDRESS]
        laptop.box.start_nameserver("192.0.2.55")
        asking.have_not_failed()
        assert laptop.lookup(SITE) == [SITE_ADDRESS]
    point_at(laptop, NAMESERVER)
    assert running.stop() == 0


def test_lookups_of_the_clusters_names_and_of_others_do_not_come_into_each_others_way(
    laptop: Laptop, up: Callable[..., Up]
) -> None:
    running = up()
    # Each lookup of the site is a query upstream, and what the kernel notes of it holds for half a minute.
    with lookups(laptop, WEB_SITE, "web.shop=10.96.1.1") as asking:
        for _ in range(600):
            asking.have_not_failed()
    assert running.stop() == 0


def test_a_program_that_asks_from_the_same_port_again_is_captured_at_once_and_let_go_at_once(
    laptop: Laptop, up: Callable[..., Up]
) -> None:
    same_port = ("-b", "0.0.0.0#40000")
    # A firewall that makes the kernel track connections whether tp2 is up or not.
    laptop.host.run(
        "nft", "add table ip firewall { chain output { type filter hook output priority 0; ct state new; }; }"
    )
    assert laptop.lookup("web.shop", "A", *same_port) == []
    for _ in range(2):
        running = up()
        assert laptop.lookup("web.shop", "A", *same_port) == ["10.96.1.1"]
        assert running.stop() == 0
        assert laptop.lookup("web.shop", "A", *same_port) == []
        assert laptop.lookup(SITE, "A", *same_port) == [SITE_ADDRESS]
    laptop.host.run("nft", "delete table ip firewall")


def test_without_any_nameserver_the_cluster_still_answers_and_others_are_told_why(
    laptop: Laptop, up: Callable[..., Up]
) -> None:
    point_at(laptop, "192.0.2.56")  # nobody is there
    running = up()
    assert laptop.lookup("web.shop") == ["10.96.1.1"]
    answer = laptop.run("dig", "+tries=1", "+timeout=15", SITE).stdout
    assert "status: SERVFAIL" in answer
    assert "EDE: " in answer
    assert "192.0.2.56" in answer
    point_at(laptop, NAMESERVER)
    # A query of the very moment of the change may have gone to where nobody is: resolvers ask again.
    eventually(lambda: SITE_ADDRESS in laptop.run("dig", "+short", "+tries=1", "+timeout=2", SITE).stdout)
    assert running.stop() == 0
