"""What has been asked lately is remembered, with who answered and why; and no more than so much."""

from __future__ import annotations

from tests.unit.dns.test_dns_responder import World, answer, request
from tp2.dns.message import Ede
from tp2.dns.recent import Asked, Recent
from tp2.dns.upstream import UpstreamError


async def test_each_question_is_remembered_with_who_answered_and_why() -> None:
    world = World()
    world.capture.gate.set()
    world.upstream.replies = [
        answer("www.example.com. 60 IN A 192.0.2.80"),
        UpstreamError(Ede.NO_REACHABLE_AUTHORITY, "192.0.2.53: connection refused"),
    ]
    await world.ask(request("web.shop.svc.cluster.local"))
    await world.ask(request("www.example.com"))
    await world.ask(request("down.example", "AAAA"))
    await world.ask(request("shop.svc.cluster.local", "AXFR"))

    refused, failed, forwarded, ours = [asked.as_json() for asked in world.responder.recent.latest()]
    assert (ours["name"], ours["type"], ours["who"]) == ("web.shop.svc.cluster.local", "A", "cluster")
    assert (forwarded["name"], forwarded["who"]) == ("www.example.com", "upstream 192.0.2.53")
    assert (failed["type"], failed["who"], failed["why"]) == ("AAAA", "failed", "192.0.2.53: connection refused")
    assert (refused["type"], refused["who"]) == ("AXFR", "refused")
    assert all(row["at"] > 0 and row["ms"] >= 0 for row in (ours, forwarded, failed, refused))


async def test_what_the_cache_answers_is_there_once() -> None:
    world = World()
    world.capture.gate.set()
    for _ in range(3):
        await world.ask(request("web.shop.svc.cluster.local"))
    assert world.responder.counters.cluster_answers == 3
    assert len(world.responder.recent.latest()) == 1


def test_the_oldest_are_forgotten() -> None:
    recent = Recent(most=2)
    for number in range(5):
        recent.note(Asked(number, "a", 1, "cluster", "", 0.0))
    assert [asked.at for asked in recent.latest()] == [4, 3]
