"""The benches measure real programs, and have no figure for work that was not done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import cluster, dnsperf
from bench.contenders import Dnsmasq, Tp2, measure, verify
from bench.dnsperf import Unanswered
from tp2.sandbox.box import Sandbox
from tp2.sandbox.namespaces import SEARCH_PATH

pytestmark = [
    pytest.mark.skipif(shutil.which("dnsperf", path=SEARCH_PATH) is None, reason="scripts/bench installs dnsperf"),
    pytest.mark.timeout(600),
]

NAMES = [cluster.name(number) for number in range(20)]


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(cluster.objects(len(NAMES)), programs=()) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def questions(box: Sandbox) -> Path:
    return dnsperf.write_questions(box.directory / "questions", [item.full for item in NAMES])


@pytest.fixture(scope="module")
def dnsmasq(box: Sandbox) -> Dnsmasq:
    return Dnsmasq(box, NAMES)


def test_a_server_that_answers_is_measured(dnsmasq: Dnsmasq, questions: Path) -> None:
    verify(dnsmasq, NAMES)
    run = measure(dnsmasq, questions, seconds=0.1, each=True)
    assert run.rate > 0
    assert len(run.latencies) == run.completed


def test_tp2_counts_what_it_answers(box: Sandbox, questions: Path) -> None:
    daemon = Tp2(box)
    verify(daemon, NAMES)
    before = daemon.answered()
    run = measure(daemon, questions, seconds=0.1)
    assert daemon.answered() >= before + run.completed
    assert daemon.memory() > 10
    daemon.stop()


def test_another_address_ends_the_bench(dnsmasq: Dnsmasq) -> None:
    wrong = [*NAMES[:-1], NAMES[-1]._replace(address="192.0.2.7")]
    with pytest.raises(Unanswered, match="20 addresses were asked for, and 19 are"):
        verify(dnsmasq, wrong)


def test_no_address_at_all_ends_the_bench(dnsmasq: Dnsmasq) -> None:
    with pytest.raises(Unanswered, match="21 addresses were asked for"):
        verify(dnsmasq, [cluster.name(10_000), *NAMES])


def test_a_name_that_does_not_exist_ends_the_bench(box: Sandbox, dnsmasq: Dnsmasq) -> None:
    missing = dnsperf.write_questions(box.directory / "missing", [cluster.name(10_000).full])
    with pytest.raises(Unanswered, match="1 NXDOMAIN"):
        measure(dnsmasq, missing, seconds=0.1)


def test_answers_that_somebody_else_gave_end_the_bench(
    dnsmasq: Dnsmasq, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnsmasq, "answered", lambda: 0)
    with pytest.raises(Unanswered, match="but 0 were given"):
        measure(dnsmasq, questions, seconds=0.1)


def test_a_tp2_that_does_not_come_up_is_reported_with_its_words(box: Sandbox) -> None:
    with pytest.raises(Exception, match=r"(?s)tp2 did not come up: it ended with 2, saying:.*no-such-option"):
        Tp2(box, "--no-such-option")


def test_the_whole_dns_bench_runs(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench", "dns", "--quick", "--json", str(file)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    contenders = {row["contender"] for row in rows}
    assert {"tp2", "dnsmasq", "tp2, 20 services", "tp2, 200 services", "nft add element process"} <= contenders
    for row in rows:
        assert set(row) == {"bench", "figure", "contender", "median", "min", "max", "unit", "ratio_to"}
        assert row["bench"] == "dns"
        assert 0 < row["min"] <= row["median"] <= row["max"]


@pytest.mark.skipif(shutil.which("iptables", path=SEARCH_PATH) is None, reason="scripts/bench installs iptables")
def test_the_whole_mappings_bench_runs(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench", "mappings", "--quick", "--json", str(file)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    costs = {row["contender"] for row in rows if row["figure"] == "one more, median"}
    assert costs == {f"{who}, {size} live" for who in ("tp2", "nft process", "iptables process") for size in (10, 200)}
    assert any(row["figure"] == "memory of a live mapping" and row["unit"] == "KiB" for row in rows)
