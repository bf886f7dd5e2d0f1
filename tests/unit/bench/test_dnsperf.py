"""dnsperf's words, and which runs count."""

from __future__ import annotations

import pytest

from bench.dnsperf import Unanswered, check, parse

HEAD = """\
DNS Performance Testing Tool
Version 2.10.0

[Status] Command line: dnsperf -s 127.0.0.1 -p 5399 -d questions -c 8 -l 2 -v
[Status] Sending queries (to 127.0.0.1:5399)
"""
STATISTICS = """\
[Status] Testing complete (time limit)

Statistics:

  Queries sent:         {sent}
  Queries completed:    {completed} (99.00%)
  Queries lost:         {lost} (1.00%)
{interrupted}
  Response codes:       {codes}
  Average packet size:  request 45, response 61
  Run time (s):         2.004701
  Queries per second:   116872.291678

  Average Latency (s):  0.000641 (min 0.000012, max 0.028653)
  Latency StdDev (s):   0.000790

"""


def statistics(
    sent: int = 4, completed: int = 4, lost: int = 0, interrupted: str = "", codes: str = "NOERROR 4 (100.00%)"
) -> str:
    return HEAD + STATISTICS.format(sent=sent, completed=completed, lost=lost, interrupted=interrupted, codes=codes)


def test_the_statistics_are_read() -> None:
    run = parse(statistics())
    assert (run.sent, run.completed, run.lost, run.interrupted) == (4, 4, 0, 0)
    assert run.codes == {"NOERROR": 4}
    assert run.seconds == 2.004701
    assert run.rate == 116872.291678
    assert run.mean_latency == 0.000641
    assert run.latencies == ()
    check("a server", run)


def test_the_latency_of_each_query_is_read_where_it_was_asked_for() -> None:
    lines = "> NOERROR web-1.shop.svc.cluster.local A 0.000560\n> NOERROR web-2.shop.svc.cluster.local A 0.001\n"
    assert parse(HEAD + lines + statistics()).latencies == (0.00056, 0.001)


def test_queries_under_way_when_the_time_is_over_are_not_lost() -> None:
    run = parse(statistics(sent=7, interrupted="  Queries interrupted:  3 (42.86%)\n"))
    assert run.interrupted == 3
    check("a server", run)


def test_a_lost_query_is_no_figure() -> None:
    run = parse("[Timeout] Query timed out: msg id 3\n" + statistics(sent=5, lost=1))
    with pytest.raises(Unanswered, match="1 of 5 queries were lost"):
        check("a server", run)


def test_an_error_is_no_figure() -> None:
    run = parse(statistics(codes="NOERROR 3 (75.00%), NXDOMAIN 1 (25.00%)"))
    with pytest.raises(Unanswered, match="3 NOERROR, 1 NXDOMAIN"):
        check("a server", run)


def test_a_server_that_is_not_there_is_no_figure() -> None:
    run = parse(statistics(completed=0, lost=4, codes=""))
    assert run.codes == {}
    with pytest.raises(Unanswered, match="no query was answered"):
        check("a server", run)


def test_other_words_are_not_taken_for_statistics() -> None:
    with pytest.raises(ValueError, match="did not print"):
        parse("Error: unable to connect")
