"""Which names macOS is told to ask tp2 for; what somebody else steers is left to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tp2.dns.zone import ZoneConfig
from tp2.errors import ForwarderError
from tp2.forward.platforms import FREEBSD, MACOS, Platform
from tp2.settings import Settings
from tp2.steering import Steering, essential, is_steered, of_namespaces

NEEDED = ["cluster.local", "svc", "tp2-canary"]


class Mac:
    """A system that refuses some domains, and remembers all that it was told."""

    def __init__(self, *refused: str) -> None:
        self.refused = set(refused)
        self.domains: list[str] = []
        self.search: list[str] = []
        self.port = 0
        self.asked = 0

    async def steer_dns(self, domains: Sequence[str], search: Sequence[str], port: int) -> None:
        self.asked += 1
        if self.refused.intersection(domains):
            raise ForwarderError("cannot steer DNS to tp2", "somebody else does", "see who")
        self.domains, self.search, self.port = list(domains), list(search), port


@pytest.mark.parametrize(
    ("settings", "kind", "platform", "steered"),
    [
        (Settings(), "pf", MACOS, True),
        (Settings(dns=("192.0.2.53",)), "pf", MACOS, False),
        (Settings(), "pf", FREEBSD, False),
        (Settings(), "nftables", MACOS, False),
    ],
)
def test_only_macos_is_steered_and_not_if_nameservers_are_named(
    settings: Settings, kind: str, platform: Platform, steered: bool
) -> None:
    assert is_steered(settings, kind, platform) is steered


def test_excluded_namespaces_and_those_of_the_systems_own_names_are_left_alone() -> None:
    config = ZoneConfig(exclude=("dev",))
    assert of_namespaces({"shop", "dev", "local", "localhost", "arpa", "svc", "blog"}, config) == ["blog", "shop"]


def test_a_cluster_domain_that_cannot_be_steered_is_said() -> None:
    with pytest.raises(ForwarderError, match="not a domain that can be steered") as caught:
        essential(ZoneConfig(zone="local"))
    assert "--dns" in caught.value.remedy


async def test_single_labels_are_searched_as_a_pod_would() -> None:
    mac = Mac()
    await Steering(mac, lambda: ZoneConfig(namespace="shop"), lambda: ["shop"]).start(40053)
    assert (mac.domains, mac.port) == ([*NEEDED, "shop"], 40053)
    assert mac.search == ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]


async def test_what_somebody_else_steers_costs_no_other_domain_and_is_asked_for_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mac = Mac("test")
    names = [f"team-{number}" for number in range(20)]
    steering = Steering(mac, ZoneConfig, lambda: [*names, "test"])
    await steering.start(40053)
    assert set(mac.domains) == {*NEEDED, *names}
    assert caplog.text.count("short names below test do not come to tp2") == 1

    asked = mac.asked
    names.append("another")
    following = asyncio.create_task(steering.follow())
    steering.look()
    while "another" not in mac.domains:
        await asyncio.sleep(0)
    following.cancel()
    assert mac.asked == asked + 1


async def test_where_the_clusters_domain_is_taken_tp2_does_not_start() -> None:
    with pytest.raises(ForwarderError, match="somebody else does"):
        await Steering(Mac("cluster.local"), ZoneConfig, lambda: ["shop"]).start(40053)


async def test_what_cannot_be_steered_later_is_said_and_what_was_still_is(caplog: pytest.LogCaptureFixture) -> None:
    mac = Mac()
    names = ["shop"]
    steering = Steering(mac, ZoneConfig, lambda: list(names))
    await steering.start(40053)
    mac.refused = {"svc"}
    names.append("blog")
    following = asyncio.create_task(steering.follow())
    steering.look()
    while "somebody else does" not in caplog.text:
        await asyncio.sleep(0)
    following.cancel()
    assert mac.domains == [*NEEDED, "shop"] == steering.domains
