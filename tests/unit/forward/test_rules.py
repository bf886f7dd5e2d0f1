"""What is checked of addresses, ports and interfaces before anything becomes a rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tp2.forward.rules import Inlet, checked_cluster_address, checked_inlet, checked_redirect
from tp2.types import Destination, Redirect


def test_a_redirect_may_name_a_further_loopback_address() -> None:
    wanted = Redirect(Destination("10.96.0.1", 80), 20000, "127.83.0.1")
    assert checked_redirect("10.96.0.1", 80, 20000, "127.83.0.1") == wanted
    assert checked_redirect("fd00::0:1", 80, 20000) == Redirect(Destination("fd00::1", 80), 20000, None)


@pytest.mark.parametrize(
    "local", ["10.0.0.1", "0.0.0.0", "128.0.0.1", "127.0.0.0", "127.255.255.255", "::1", "", 1, []]
)
def test_nothing_but_a_loopback_address_is_redirected_to(local: object) -> None:
    with pytest.raises(ValueError):
        checked_redirect("10.96.0.1", 80, 20000, local)


@given(st.ip_addresses(v=4).map(str).filter(lambda address: not address.startswith("127.")))
def test_no_other_address_is_a_loopback_address(local: str) -> None:
    with pytest.raises(ValueError):
        checked_redirect("10.96.0.1", 80, 20000, local)


@given(st.text(max_size=20))
def test_an_interfaces_name_never_says_anything_else_to_nft(name: str) -> None:
    try:
        inlet = checked_inlet(name, 31000, 31001)
    except ValueError:
        return
    assert inlet == Inlet(name, 31000, 31001)
    assert not set(name) & set('"*\\{},;:/ \n\t')
    assert 0 < len(name.encode()) <= 15


@pytest.mark.parametrize("name", ["docker0", "br-0123456789ab", "virbr0", "lxdbr0.7", "vmnet8"])
def test_bridges_names_are_accepted(name: str) -> None:
    assert checked_inlet(name, 31000, 31001).interface == name


@pytest.mark.parametrize("address", ["10.96.0.1", "fd00:10:96::1", "192.168.1.1", "203.0.113.7", "::ffff:10.0.0.1"])
def test_a_cluster_may_have_any_unicast_address(address: str) -> None:
    checked_cluster_address(address)
