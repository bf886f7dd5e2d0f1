"""The path bench has no figure for bytes that the contender did not carry, and every run of it counts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import loads, path
from bench.site import BODY, SERVICES, WEB, WEB_PORT, Site
from bench.ways import NotCarried, Redsocks, Way
from tp2.errors import Tp2Error
from tp2.sandbox.box import NAMESERVER, NODE
from tp2.sandbox.namespaces import SEARCH_PATH

TOOLS = ("iperf3", "wrk", "nginx", "redsocks")
missing = [tool for tool in TOOLS if shutil.which(tool, path=f"{SEARCH_PATH}:/usr/sbin") is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"scripts/bench installs {', '.join(missing)}"),
    pytest.mark.timeout(300),
]


class Bypass(Way):
    """Says that it goes over SSH, and has set a route."""

    def __init__(self, name: str, site: Site) -> None:
        super().__init__(name, site)
        site.box.internet.run("ip", "route", "replace", SERVICES, "via", NODE)


class Forger(Way):
    """Answers by itself, as nginx would."""

    def __init__(self, name: str, site: Site) -> None:
        super().__init__(name, site)
        site.box.laptop.run("ip", "addr", "replace", f"{WEB}/32", "dev", "lo")
        (site.directory / "forged").mkdir(exist_ok=True)
        config = site.directory / "forger.conf"
        config.write_text(
            f"daemon off; user root; pid {site.directory}/forger.pid; error_log stderr crit; events {{ }}\n"
            f"http {{ access_log off; client_body_temp_path {site.directory}/forged;"
            f" proxy_temp_path {site.directory}/forged; fastcgi_temp_path {site.directory}/forged;"
            f" uwsgi_temp_path {site.directory}/forged; scgi_temp_path {site.directory}/forged;"
            f" server {{ listen {WEB}:{WEB_PORT}; location / {{ return 200 {BODY}; }} }} }}\n",
            encoding="ascii",
        )
        self._start("nginx", "-c", config)
        site.box.laptop.wait_listening(WEB, WEB_PORT)

    def stop(self) -> None:
        super().stop()
        self.site.box.laptop.run("ip", "addr", "del", f"{WEB}/32", "dev", "lo")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as built:
        yield built


@pytest.fixture
def bypass(site: Site) -> Iterator[Way]:
    way = Bypass("a bypass", site)
    yield way
    way.stop()
    site.box.internet.run("ip", "route", "del", SERVICES)


@pytest.fixture
def idler(site: Site) -> Way:
    """Is up, and carries nothing."""
    return Way("an idler", site)


@pytest.fixture
def forger(site: Site) -> Iterator[Way]:
    way = Forger("a forger", site)
    yield way
    way.stop()


def test_a_contender_that_carries_is_measured(site: Site) -> None:
    way = Redsocks("redsocks + ssh -D", site)
    assert loads.bulk(way, 1, down=True, warm=0).rate > 0
    assert loads.pages(way, 1, keep=True).rate > 0
    assert len(loads.visits(way, "first", 5)) == 5
    way.stop()


@pytest.mark.parametrize("down", [False, True])
def test_bytes_that_went_around_the_contender_are_no_figure(bypass: Way, down: bool) -> None:
    with pytest.raises(NotCarried, match=r"a bypass did not carry the traffic: .* bytes were sent .* and"):
        loads.bulk(bypass, 1, down=down, warm=0)


def test_pages_that_went_around_the_contender_are_no_figure(bypass: Way) -> None:
    with pytest.raises(NotCarried, match="a bypass"):
        loads.pages(bypass, 1, keep=False)
    with pytest.raises(NotCarried, match="a bypass"):
        loads.visits(bypass, "first", 3)
    with pytest.raises(NotCarried, match="a bypass"), loads.transfer(bypass):
        pass


def test_what_did_not_arrive_is_no_figure(idler: Way) -> None:
    with pytest.raises(NotCarried, match=r"an idler .*iperf3 says"):
        loads.bulk(idler, 1, down=False, warm=0)
    with pytest.raises(NotCarried, match=r"an idler .*wrk says"):
        loads.pages(idler, 1, keep=True)
    with pytest.raises(NotCarried, match=r"an idler .*gave up"):
        loads.visits(idler, "first", 3)
    with pytest.raises(NotCarried, match=r"an idler .*gave up"):
        loads.lookups(idler, NAMESERVER, "web.bench.svc.cluster.local", 0.1)
    with pytest.raises(NotCarried, match=r"an idler .*open"), loads.open_connections(idler, 3):
        pass


def test_answers_that_the_service_did_not_give_are_no_figure(forger: Way) -> None:
    with pytest.raises(NotCarried, match="a forger"):
        loads.pages(forger, 1, keep=True)
    with pytest.raises(NotCarried, match=r"a forger .* bytes were sent .* and 0 came"):
        loads.visits(forger, "kept", 0.1)
    with pytest.raises(NotCarried, match="a forger"), loads.open_connections(forger, 3):
        pass


def test_a_contender_that_fails_once_ends_the_bench_and_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0
    measured = loads.bulk

    def failing(way: Way, seconds: int, *, down: bool, warm: int = 1) -> loads.Bulk:
        nonlocal runs
        runs += 1
        if runs == 2:
            raise NotCarried(way.name, "a test says so")
        return measured(way, seconds, down=down, warm=warm)

    monkeypatch.setattr(loads, "bulk", failing)
    with pytest.raises(Tp2Error, match="a test says so"):
        path.run(path.Effort(rounds=3, delays=()), lambda _: None, {"redsocks + ssh -D": Redsocks})
    assert runs == 2


def test_a_bench_that_meets_a_cheat_ends_with_an_error_and_no_table() -> None:
    script = (
        "from bench import __main__, path\n"
        "from tests.integration.bench.test_honesty_of_the_path import Bypass\n"
        "run = lambda quick, say: path.run(path.QUICK, say, {'a bypass': Bypass})\n"
        "__main__.BENCHES['path'] = run\n"
        "__main__.main()\n"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", script, "path", "--quick"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "a bypass did not carry the traffic" in done.stderr
    assert "Traceback" not in done.stderr
