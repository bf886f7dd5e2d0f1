"""What a running tp2 was told is what its doctor looks at, unless somebody says otherwise."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest

from tp2.diagnosis.likewise import adopted, told
from tp2.settings import Remote, Rules, Settings, SocketAddress, Via

MUCH = Settings(
    kubeconfig=Path("/home/alice/config"),
    context="prod",
    namespaces=("shop", "blog"),
    dns=("192.0.2.53",),
    cluster_domain="k8s.example",
    exclude=("secret.example", ipaddress.ip_network("10.0.0.0/8")),
    remote=Remote("bastion", 2222, "me"),
    via=Via.API,
    endpoint_namespace="elsewhere",
    identity=Path("/home/alice/key"),
    host_key="ssh-ed25519 AAAA",
    socks=SocketAddress("127.0.0.2", 1081),
    forwarder=Rules.PF,
    ports=range(30000, 30010),
)


@pytest.mark.parametrize("settings", [Settings(), MUCH])
def test_all_of_it_comes_back_over_the_control_socket(settings: Settings) -> None:
    assert adopted(Settings(), json.loads(json.dumps(told(settings))), ()) == settings


def test_what_somebody_gives_stays() -> None:
    mine = Settings(context="dev", remote=None)
    both = adopted(mine, told(MUCH), {"context", "remote"})
    assert (both.context, both.remote, both.dns) == ("dev", None, MUCH.dns)


def test_a_relative_path_means_the_same_elsewhere() -> None:
    assert Path(told(Settings(kubeconfig=Path("config")))["kubeconfig"]).is_absolute()


@pytest.mark.parametrize("words", [{}, {**told(Settings()), "exclude": 7}, {**told(Settings()), "via": "pigeon"}])
def test_what_another_version_says_is_refused(words: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        adopted(Settings(), words, ())
