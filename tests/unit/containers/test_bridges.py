"""Which interfaces count as containers' bridges, and what the user is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tp2.containers.bridges import Link, chosen


def bridge(name: str, index: int = 10) -> Link:
    return Link(index, name, "bridge", ipv4="172.17.0.1")


def port(kind: str, name: str = "port", master: int = 10) -> Link:
    return Link(20, name, kind, master)


def names(links: list[Link], *wanted: str) -> list[str]:
    return [link.name for link in chosen(links, wanted)[0]]


@pytest.mark.parametrize(
    "name",
    [
        *("docker0", "br-0a1b2c3d4e5f", "docker_gwbridge", "podman0", "podman12", "cni-podman0", "cni0", "nerdctl0"),
        *("lxcbr0", "lxdbr0", "incusbr0", "virbr0"),
    ],
)
def test_the_bridges_of_container_engines_are_found_by_themselves(name: str) -> None:
    assert names([bridge(name)], "auto") == [name]


@pytest.mark.parametrize("name", ["br0", "bridge0", "vmbr0", "docker0x", "br-office", "br-0a1b2c3d4e5f0"])
def test_other_bridges_are_not(name: str) -> None:
    assert names([bridge(name)], "auto") == []


def test_what_is_no_bridge_is_not_whatever_its_name() -> None:
    assert names([Link(1, "docker0", "dummy", ipv4="172.17.0.1"), Link(2, "eth0", "", ipv4="192.0.2.10")], "auto") == []


@pytest.mark.parametrize("change", [{"up": False}, {"ipv4": None}])
def test_a_bridge_without_an_address_or_that_is_down_has_nobody_behind_it(change: dict[str, Any]) -> None:
    assert names([replace(bridge("docker0"), **change)], "auto") == []


def test_an_ipv6_address_alone_will_do() -> None:
    assert names([replace(bridge("docker0"), ipv4=None, ipv6="fd00:17::1")], "auto") == ["docker0"]


@pytest.mark.parametrize("kind", ["veth", "tun", "dummy"])
def test_containers_and_virtual_machines_may_be_plugged_in(kind: str) -> None:
    assert names([bridge("docker0"), port(kind)], "auto") == ["docker0"]


@pytest.mark.parametrize("kind", ["", "vlan", "bond", "vxlan", "macvlan"])
def test_a_bridge_that_leads_to_a_network_is_left_alone_and_the_user_is_told(kind: str) -> None:
    found, notes = chosen([bridge("docker0"), port(kind, "eth1"), port("veth", "veth1")], ["auto"])
    assert found == []
    assert notes == [
        "containers on docker0 do not reach the cluster, nor does the network of eth1, which is in it too;"
        " to let both: --containers docker0"
    ]


def test_a_port_of_another_bridge_does_not_matter() -> None:
    assert names([bridge("docker0"), bridge("br0", 11), port("", "eth1", master=11)], "auto") == ["docker0"]


def test_interfaces_that_the_user_names_are_taken() -> None:
    links = [bridge("docker0"), bridge("br0", 11), bridge("br1", 12)]
    assert names(links, "br0") == ["br0"]
    assert names(links, "br0", "auto") == ["br0", "docker0"]
    assert names(links, "nosuch0") == []


def test_the_user_is_told_what_a_named_interface_opens() -> None:
    found, notes = chosen([bridge("br0"), port("", "eth1"), Link(2, "eth0", ipv4="192.0.2.10")], ["br0", "eth0"])
    assert [link.name for link in found] == ["br0", "eth0"]
    assert notes == [
        "whoever is on the network of eth1 reaches the cluster by br0",
        "whoever is on the network of eth0 reaches the cluster: it is no bridge",
    ]


def test_off_means_none() -> None:
    assert chosen([bridge("docker0")], ["off"]) == ([], [])
    assert chosen([bridge("docker0")], ["docker0", "off"]) == ([], [])
