"""When there is no room for another mapping."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Laptop, Up, eventually
from tp2.sandbox.box import tp2_command
from tp2.sandbox.objects import service


def test_when_there_is_no_room_the_answer_says_so_and_later_there_is(laptop: Laptop, up: Callable[..., Up]) -> None:
    # IPv6 has one loopback address: eight ports, of which one is held back.
    running = up("--ports", "21000-21007", "--idle-timeout", "1h")
    names = [f"six-{number}.blog" for number in range(8)]
    laptop.box.create(*(service("blog", f"six-{n}", f"fd00:10:97::{n + 1}", {"tcp": 7000}) for n in range(8)))
    eventually(lambda: laptop.rcode(names[-1]) == "NOERROR")
    for name in names[:7]:
        assert len(laptop.lookup(name, "AAAA")) == 1
    denied = laptop.run("dig", "+tries=1", names[7], "AAAA").stdout
    assert "status: SERVFAIL" in denied
    assert "EDE: 0 (Other): (no local port is left for another mapping: all 7 ports are mapped)" in denied
    mappings = laptop.status()["mappings"]
    assert (mappings["failed_lookups"], mappings["why"]) == (1, "all 7 ports are mapped")
    assert "lookups failed for want of room" in laptop.run(*tp2_command("status")).stdout
    # When no client can have the first one's answer in its cache any more, it makes room.
    eventually(lambda: len(laptop.lookup(names[7], "AAAA")) == 1)
    assert {row["name"] for row in laptop.mappings()} == set(names[1:])
    assert running.stop() == 0
