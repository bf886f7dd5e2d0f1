"""Which nameserver is asked first, and how a loop is proved."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from tp2.dns.health import LOOP_REST, Health
from tp2.dns.loops import LoopWatch, question_of
from tp2.dns.message import parse_query

A, B, C = ("10.0.0.1", 53), ("10.0.0.2", 53), ("fe80::1%eth0", 53)


def test_servers_of_which_nothing_is_known_keep_their_order() -> None:
    assert Health([A, B, C]).order(0) == [A, B, C]


def test_the_fastest_is_first_but_a_few_milliseconds_do_not_count() -> None:
    health = Health([A, B, C])
    health.replied(A, 0.018)
    health.replied(B, 0.001)
    assert health.order(0) == [A, B, C]
    health.replied(C, 0.3)
    for _ in range(50):
        health.replied(A, 0.2)
    assert health.order(0) == [B, A, C]


def test_a_failing_server_stands_behind_until_it_replies() -> None:
    health = Health([A, B])
    health.replied(B, 0.5)
    health.failed(A, 0)
    assert health.order(0) == [B, A]
    health.replied(A, 0.001)
    assert health.order(0) == [A, B]


def test_a_failing_server_is_looked_at_ever_more_rarely_but_again() -> None:
    health = Health([A])
    now, looks = 0.0, []
    health.failed(A, now)
    while now < 200:
        now += 0.5
        if health.due(now) == A:
            looks.append(now)
            health.failed(A, now)
    gaps = [later - earlier for earlier, later in pairwise(looks)]
    assert gaps == sorted(gaps)
    assert gaps[0] <= 2
    assert gaps[-1] == 15


def test_each_server_is_looked_at_in_time_and_once() -> None:
    health = Health([A, B, C])
    assert [health.due(0) for _ in range(4)] == [A, B, C, None]
    assert health.due(9.9) is None
    assert health.due(10) == A


def test_patience_follows_the_servers_speed() -> None:
    health = Health([A, B])
    strangers = health.patience(A)
    health.replied(A, 0.001)
    health.replied(B, 3.0)
    assert health.patience(A) < strangers < health.patience(B) <= 1.0
    assert health.patience(C) == strangers


def test_a_looping_server_is_left_alone_for_a_while_or_until_servers_change() -> None:
    health = Health([A, B])
    health.loops(A, 0)
    assert health.order(1) == [B]
    assert health.looping(1) == [A]
    assert health.order(LOOP_REST) == [A, B]
    health.loops(A, 100)
    health.replace([A])
    assert health.order(101) == [A]


def test_what_is_known_of_a_server_that_stays_is_kept() -> None:
    health = Health([A, B])
    health.failed(A, 0)
    health.replace([C, A])
    assert health.order(0) == [C, A]
    assert health.servers == (C, A)
    for forgotten in (B,):
        health.failed(forgotten, 0)
        health.replied(forgotten, 1)
        health.loops(forgotten, 0)
    assert health.order(0) == [C, A]


QUESTION = b"\3wWw\7example\0\0\1\0\1"


def test_a_name_that_is_asked_once_is_not_suspicious() -> None:
    loops = LoopWatch()
    loops.enter(QUESTION)
    assert not loops.suspicious(QUESTION)
    loops.enter(QUESTION.replace(b"wWw", b"www"))
    loops.enter(QUESTION[:-3] + b"\x1c\0\1")
    assert loops.suspicious(QUESTION)
    loops.leave(QUESTION)
    assert not loops.suspicious(QUESTION)


def test_a_probe_takes_the_same_way_and_is_recognised_in_any_case() -> None:
    loops = LoopWatch()
    probe = loops.probe(QUESTION, A, 0)
    assert probe is not None
    assert parse_query(probe).name.endswith(".www.example")
    assert loops.recognise(question_of(probe).upper()[:-4] + probe[-4:], 1) == A
    assert loops.recognise(QUESTION, 1) is None
    assert loops.recognise(b"\0\0\1\0\1", 1) is None
    assert loops.recognise(question_of(probe), 11) is None


def test_probes_are_rare_and_forgotten() -> None:
    loops = LoopWatch()
    assert loops.probe(QUESTION, A, 0)
    assert loops.probe(QUESTION, A, 4.9) is None
    assert loops.probe(QUESTION, B, 4.9)
    assert loops.probe(QUESTION, A, 5)


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=4))
def test_a_probe_of_the_longest_name_is_a_name(labels: list[bytes]) -> None:
    name = b"".join(bytes((len(label),)) + label for label in labels)
    assume(len(name) < 255)
    question = name + b"\0\0\1\0\1"
    probe = LoopWatch().probe(question, A, 0)
    assert probe is not None
    assert parse_query(probe).type == 1
