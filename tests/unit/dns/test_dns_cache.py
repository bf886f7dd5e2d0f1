"""Answers repeated from their bytes: never longer than they are true and reachable."""

from __future__ import annotations

from collections.abc import Sequence

from tp2.cluster.catalog import Catalog
from tp2.dns.cache import MOST_OCTETS, RENEW_EVERY, AnswerCache, leases
from tp2.types import Destination, Wanted

WANTED = leases((Wanted("web.shop", Destination("10.96.0.10", 80), 5),))
REQUEST = b"\0\1a question"


class World:
    """A cache with everything around it in the test's hands."""

    def __init__(self) -> None:
        self.catalog = Catalog(generation=1)
        self.now = 100.0
        self.captured = True
        self.renewed: list[Sequence[Wanted]] = []
        self.cache = AnswerCache(lambda: self.catalog, self.renew, lambda: self.now)

    def renew(self, wanted: Sequence[Wanted]) -> bool:
        self.renewed.append(wanted)
        return self.captured


def test_the_same_question_gets_the_same_answer_under_its_own_id() -> None:
    world = World()
    world.cache.remember(REQUEST, b"\0\1an answer", WANTED, world.catalog)
    assert world.cache.reply(b"\7\7a question") == b"\7\7an answer"
    assert world.cache.reply(b"\7\7another question") is None
    assert world.cache.reply(b"") is None
    assert world.cache.reply(b"\7") is None


def test_a_changed_catalog_ends_all_answers() -> None:
    world = World()
    world.cache.remember(REQUEST, b"\0\1an answer", WANTED, world.catalog)
    world.catalog = Catalog(generation=2)
    assert world.cache.reply(REQUEST) is None
    world.cache.remember(b"\0\1other", b"\0\1other answer", (), world.catalog)
    assert world.cache.reply(REQUEST) is None
    assert len(world.cache) == 1


def test_an_answer_made_from_an_older_catalog_is_not_kept_alive_by_a_newer_one() -> None:
    world = World()
    old = world.catalog
    world.catalog = Catalog(generation=2)
    world.cache.remember(REQUEST, b"\0\1an answer", WANTED, old)
    assert world.cache.reply(REQUEST) is None


def test_a_hot_name_renews_its_lease_so_often_that_it_never_runs_out() -> None:
    world = World()
    world.cache.remember(REQUEST, b"\0\1an answer", WANTED, world.catalog)
    leased_until = world.now + WANTED[0].ttl
    for _ in range(1000):
        world.now += 0.037
        before = len(world.renewed)
        assert world.cache.reply(REQUEST)
        if len(world.renewed) > before:
            leased_until = world.now + WANTED[0].ttl
        # Whoever got this answer may connect for as long as its TTL, which is 5 seconds.
        assert leased_until >= world.now + 5
    assert len(world.renewed) <= 1000 * 0.037 / RENEW_EVERY + 1


def test_an_answer_whose_mapping_is_gone_has_to_be_made_again() -> None:
    world = World()
    world.cache.remember(REQUEST, b"\0\1an answer", WANTED, world.catalog)
    world.now += RENEW_EVERY
    world.captured = False
    assert world.cache.reply(REQUEST) is None
    assert world.cache.reply(REQUEST) is None


def test_an_answer_without_destinations_needs_no_lease() -> None:
    world = World()
    world.cache.remember(REQUEST, b"\0\1nothing", (), world.catalog)
    world.now += 1e6
    assert world.cache.reply(REQUEST) == b"\0\1nothing"
    assert world.renewed == []


def test_a_flood_of_questions_costs_bounded_memory() -> None:
    world = World()
    reply = b"\0\1" + bytes(60_000)
    for n in range(2000):
        world.cache.remember(n.to_bytes(4), reply, (), world.catalog)
        assert len(world.cache) * len(reply) <= MOST_OCTETS
    assert world.cache.reply((1999).to_bytes(4))
