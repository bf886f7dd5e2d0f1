"""The forwarder's set of addresses follows the catalog: a forwarder that records, and catalogs made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_interface, ip_network

import pytest

from tp2.capture import addresses as module
from tp2.capture.addresses import ClusterAddresses
from tp2.cluster.catalog import Catalog, Endpoint, Service
from tp2.errors import ForwarderError
from tp2.exclusions import Borders, Exclusions

WEB, DB, POD = "10.96.1.1", "10.96.1.2", "10.244.1.1"


class Recorder:
    """A forwarder that keeps what it is told, unless it is to refuse."""

    def __init__(self) -> None:
        self.standing: set[str] = set()
        self.calls: list[tuple[tuple[str, ...], tuple[str, ...], int | None]] = []
        self.refusing = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def cluster(self, add: Sequence[str], remove: Sequence[str], port: int | None) -> None:
        self.calls.append((tuple(add), tuple(remove), port))
        await self.gate.wait()
        if self.refusing:
            raise ForwarderError("refused", "as the test asked", "none")
        self.standing -= set(remove)
        self.standing |= set(add)


class Rig:
    def __init__(self) -> None:
        self.forwarder = Recorder()
        self.catalog = Catalog()
        self.exclusions = Exclusions()
        self.changes = 0
        self.addresses = ClusterAddresses(
            self.forwarder, lambda: self.catalog, lambda: self.exclusions, changed=self._changed
        )

    def _changed(self) -> None:
        self.changes += 1

    def has(self, *services: str, pods: Sequence[str] = ()) -> None:
        self.catalog = catalog(services, pods, self.catalog.generation + 1)


def catalog(services: Sequence[str], pods: Sequence[str] = (), generation: int = 1) -> Catalog:
    service = Service("shop", "web")
    return Catalog(
        generation=generation,
        services_by_address=dict.fromkeys(services, service),
        endpoints_by_address={address: ((service, Endpoint(address)),) for address in pods},
    )


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(module, "GRACE", 0.0)
    return Rig()


async def test_services_and_pods_are_committed_as_they_come_and_go(rig: Rig) -> None:
    rig.has(WEB, pods=[POD])
    await rig.addresses.reconcile()
    assert rig.forwarder.standing == {WEB, POD}
    rig.has(WEB, DB)
    await rig.addresses.reconcile()
    assert rig.forwarder.standing == {WEB, DB}
    assert WEB in rig.addresses
    assert POD not in rig.addresses


async def test_only_what_changed_is_committed(rig: Rig) -> None:
    rig.has(WEB)
    await rig.addresses.reconcile()
    await rig.addresses.reconcile()
    rig.has(WEB, DB)
    await rig.addresses.reconcile()
    assert rig.forwarder.calls == [((WEB,), (), None), ((DB,), (), None)]


async def test_the_port_that_they_go_to_is_told(rig: Rig) -> None:
    rig.addresses.port = 20000
    rig.has(WEB)
    await rig.addresses.reconcile()
    assert rig.forwarder.calls == [((WEB,), (), 20000)]


async def test_an_address_outlives_its_pod_for_a_while_but_is_not_the_clusters_any_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 1000.0)
    rig.has(WEB, pods=[POD])
    await rig.addresses.reconcile()
    rig.has(WEB)
    await rig.addresses.reconcile()
    assert rig.forwarder.standing == {WEB, POD}
    assert POD not in rig.addresses
    rig.has(WEB, pods=[POD])
    await rig.addresses.reconcile()
    assert POD in rig.addresses
    assert len(rig.forwarder.calls) == 1


async def test_a_lookup_does_not_wait_for_its_turn(rig: Rig) -> None:
    rig.has(WEB)
    assert not rig.addresses.has([WEB])
    await rig.addresses.ensure([WEB])
    assert rig.addresses.has([WEB])
    assert WEB in rig.addresses
    assert rig.forwarder.standing == {WEB}
    await rig.addresses.ensure([WEB])
    assert len(rig.forwarder.calls) == 1
    # By the time that its turn comes, it is gone again.
    rig.has()
    assert WEB not in rig.addresses
    await rig.addresses.reconcile()
    assert rig.forwarder.standing == set()


async def test_what_is_asked_for_while_it_is_taken_away_stands_in_the_end(rig: Rig) -> None:
    rig.has(WEB)
    await rig.addresses.reconcile()
    rig.has()
    rig.forwarder.gate.clear()
    going = asyncio.create_task(rig.addresses.reconcile())
    while len(rig.forwarder.calls) < 2:
        await asyncio.sleep(0)
    assert not rig.addresses.has([WEB])
    coming = asyncio.create_task(rig.addresses.ensure([WEB]))
    await asyncio.sleep(0)
    rig.forwarder.gate.set()
    await asyncio.gather(going, coming)
    assert rig.forwarder.standing == {WEB}
    assert rig.addresses.has([WEB])


async def test_excluded_addresses_are_left_alone_and_reported_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.exclusions = Exclusions(networks=(ip_network("10.244.0.0/16"),), own_way=frozenset({DB}))
    pods = [f"10.244.1.{number}" for number in range(1, 10)]
    rig.has(WEB, DB, pods=pods)
    await rig.addresses.reconcile()
    rig.has(WEB, DB, pods=[*pods, "10.244.2.1"])
    await rig.addresses.reconcile()
    assert rig.forwarder.standing == {WEB}
    assert rig.addresses.has([WEB, DB, *pods])
    await rig.addresses.ensure([DB, *pods])
    assert rig.forwarder.standing == {WEB}
    assert [record.getMessage() for record in caplog.records] == [
        "not captured: 10.244.1.1, 10.244.1.2, 10.244.1.3, 10.244.1.4, 10.244.1.5 and 4 more: "
        "--exclude 10.244.0.0/16 says so",
        "not captured: 10.96.1.2: tp2 itself reaches the cluster that way",
    ]
    assert rig.addresses.left_alone() == [
        {"why": "--exclude 10.244.0.0/16 says so", "addresses": pods[:5], "count": 10},
        {"why": "tp2 itself reaches the cluster that way", "addresses": [DB], "count": 1},
    ]


async def test_when_this_machine_moves_to_a_network_of_the_clusters_it_is_let_go_of_and_comes_back(rig: Rig) -> None:
    rig.has(WEB, pods=[POD])
    await rig.addresses.reconcile()
    rig.exclusions = Exclusions(interfaces=frozenset({ip_interface("10.244.1.77/24")}))
    await rig.addresses.reconcile()
    assert rig.changes == 1
    assert rig.forwarder.standing == {WEB}
    rig.exclusions = Exclusions()
    await rig.addresses.reconcile()
    assert rig.forwarder.standing == {WEB, POD}
    assert rig.addresses.left_alone() == []


async def test_a_port_of_an_address_that_tp2_needs_another_port_of_may_be_mapped(rig: Rig) -> None:
    rig.exclusions = Exclusions(own_way=frozenset({WEB}))
    rig.addresses.refresh()
    assert rig.addresses.why(WEB) is not None
    assert rig.addresses.why(WEB, own_way=False) is None


@pytest.mark.parametrize("refused", ["add", "remove"])
async def test_what_was_refused_is_tried_again(rig: Rig, refused: str, caplog: pytest.LogCaptureFixture) -> None:
    if refused == "remove":
        rig.has(WEB, DB)
        await rig.addresses.reconcile()
    rig.has(WEB)
    rig.forwarder.refusing = True
    for _ in range(3):
        await rig.addresses.reconcile()
    assert [record.getMessage() for record in caplog.records] == ["refused: as the test asked. none"]
    rig.forwarder.refusing = False
    await rig.addresses.reconcile()
    assert rig.forwarder.standing == {WEB}


async def test_a_lookup_that_the_forwarder_refuses_fails(rig: Rig) -> None:
    rig.forwarder.refusing = True
    with pytest.raises(ForwarderError):
        await rig.addresses.ensure([WEB])
    assert not rig.addresses.has([WEB])


async def test_another_clusters_addresses_go_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 1000.0)
    rig.has(WEB, pods=[POD])
    await rig.addresses.reconcile()
    await rig.addresses.clear()
    assert rig.forwarder.standing == set()
    assert len(rig.addresses) == 0


async def test_it_follows_by_itself(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACE", 0.0)
    task = asyncio.create_task(rig.addresses.run())
    rig.has(WEB)
    rig.addresses.look()
    async with asyncio.timeout(10):
        while not rig.addresses.has([WEB]):
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_large_cluster_holds_nobody_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    services = [f"10.96.{number // 250}.{1 + number % 250}" for number in range(10_000)]
    pods = [f"10.244.{number // 250}.{1 + number % 250}" for number in range(30_000)]
    judged: list[str] = []
    why = Borders.why

    def judge(borders: Borders, address: str) -> str | None:
        judged.append(address)
        return why(borders, address)

    monkeypatch.setattr(Borders, "why", judge)
    turns = 0

    async def somebody_else() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    waiting = asyncio.create_task(somebody_else())
    rig.has(*services, pods=pods)
    await rig.addresses.reconcile()
    assert turns >= 40_000 / module.SLICE / 2
    assert len(rig.forwarder.calls) == 40_000 / module.AT_A_TIME
    judged.clear()
    rig.has(*services, "10.97.0.1", pods=pods)
    await rig.addresses.reconcile()
    waiting.cancel()
    assert rig.forwarder.standing == {*services, *pods, "10.97.0.1"}
    # One more service costs a comparison, and not the judging of 40,000 addresses.
    assert judged == ["10.97.0.1"]
