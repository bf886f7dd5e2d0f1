"""The endpoint that is installed in the cluster is reached, whichever way there is, with the real sshd at its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.conftest import Lab
from tests.integration.cluster.endpoint_pod import LOOPBACK, EndpointPod, running
from tests.integration.socks.rig import echo, eventually, portal, serving, started
from tests.integration.socks.sshd import reserve_port, write_key
from tp2.cluster.manifest import ENDPOINT, NAMESPACE, Object
from tp2.cluster.watch import Cluster
from tp2.endpoint import InstalledEndpoint
from tp2.errors import ClusterError, EndpointError, Tp2Error
from tp2.sandbox.kubeapi_resources import NAMESPACES, PODS, SERVICES
from tp2.sandbox.pod import pod_object
from tp2.settings import Via
from tp2.socks.tunnel import Endpoint, Tunnel
from tp2.types import Destination

DEADLINE = 40.0


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointPod]:
    with running(tmp_path_factory.mktemp("endpoint")) as pod:
        yield pod


@pytest.fixture
async def cluster(lab: Lab, endpoint: EndpointPod, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """A cluster in whose pods the endpoint listens; there are no pods yet."""
    monkeypatch.setattr("tp2.cluster.sshd.PORT", endpoint.port)
    lab.api.store.create(NAMESPACES, "", {"metadata": {"name": NAMESPACE}})
    cluster = Cluster(lab.access())
    await cluster.start(DEADLINE)
    yield cluster
    await cluster.close()


def add_pod(lab: Lab, endpoint: EndpointPod, name: str, *, address: str = LOOPBACK, log: str | None = None) -> None:
    lab.api.store.create(PODS, NAMESPACE, pod_object(name, address, endpoint.host_key if log is None else log))


def add_balancer(lab: Lab, port: int) -> None:
    obj: Object = {
        "metadata": {"name": ENDPOINT},
        "spec": {"ports": [{"name": "ssh", "port": port}]},
        "status": {"loadBalancer": {"ingress": [{"ip": LOOPBACK}]}},
    }
    lab.api.store.create(SERVICES, NAMESPACE, obj)


def tunnel_to(installed: InstalledEndpoint, endpoint: EndpointPod) -> Tunnel:
    return Tunnel(
        Endpoint(installed.host, installed.port, installed.user),
        identity=endpoint.identity,
        host_key=None,
        connect=installed.connect,
    )


@contextlib.asynccontextmanager
async def connected(cluster: Cluster, endpoint: EndpointPod, via: Via = Via.AUTO) -> AsyncIterator[Tunnel]:
    async with started(tunnel_to(InstalledEndpoint(cluster, NAMESPACE, via), endpoint)) as tunnel:
        yield tunnel


async def refusal(cluster: Cluster, endpoint: EndpointPod, via: Via = Via.AUTO) -> Tp2Error:
    tunnel = tunnel_to(InstalledEndpoint(cluster, NAMESPACE, via), endpoint)
    with pytest.raises(Tp2Error) as raised:
        await tunnel.start(DEADLINE)
    return raised.value


async def works(tunnel: Tunnel) -> None:
    async with serving(echo) as service, portal(tunnel, service) as entrance:
        reader, writer = await entrance.connect()
        writer.write(b"hello")
        async with asyncio.timeout(DEADLINE):
            assert await reader.readexactly(5) == b"hello"
        writer.close()


def forwarded(lab: Lab) -> list[str]:
    """The pods to which a port-forward was asked for, in order."""
    return [line.split("/pods/")[1].split("/")[0] for line in lab.api.requests if "/portforward" in line]


async def test_a_pod_is_reached_through_the_api_server(lab: Lab, cluster: Cluster, endpoint: EndpointPod) -> None:
    add_pod(lab, endpoint, "one")
    async with connected(cluster, endpoint) as tunnel:
        await works(tunnel)
        assert tunnel.status()["through"] == f"the API server to pod {NAMESPACE}/one"
        assert tunnel.peer_addresses == ((LOOPBACK, lab.api.port),)


async def test_a_load_balancer_that_answers_is_used(lab: Lab, cluster: Cluster, endpoint: EndpointPod) -> None:
    add_pod(lab, endpoint, "one")
    add_balancer(lab, endpoint.port)
    async with connected(cluster, endpoint) as tunnel:
        await works(tunnel)
        assert tunnel.status()["through"] == f"the load balancer {LOOPBACK} port {endpoint.port}"
    assert forwarded(lab) == []


async def test_a_load_balancer_that_refuses_is_left_for_the_api_server(
    lab: Lab, cluster: Cluster, endpoint: EndpointPod
) -> None:
    add_pod(lab, endpoint, "one")
    with reserve_port() as nobody:
        add_balancer(lab, nobody.getsockname()[1])
        async with connected(cluster, endpoint) as tunnel:
            await works(tunnel)
        error = await refusal(cluster, endpoint, Via.DIRECT)
    assert forwarded(lab) == ["one"]
    assert isinstance(error, EndpointError)
    assert "refused" in error.why
    assert "--via" in error.remedy


async def test_a_load_balancer_that_accepts_and_does_nothing_is_left_for_the_api_server(
    lab: Lab, cluster: Cluster, endpoint: EndpointPod
) -> None:
    add_pod(lab, endpoint, "one")

    async def close_at_once(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        return

    installed = InstalledEndpoint(cluster, NAMESPACE, Via.AUTO)
    async with serving(close_at_once) as balancer:
        add_balancer(lab, balancer.port)
        with pytest.raises(EndpointError):
            await tunnel_to(installed, endpoint).start(DEADLINE)
        async with started(tunnel_to(installed, endpoint)) as tunnel:
            await works(tunnel)
    assert forwarded(lab) == ["one"]


async def test_via_api_leaves_the_load_balancer_alone(lab: Lab, cluster: Cluster, endpoint: EndpointPod) -> None:
    add_pod(lab, endpoint, "one")
    add_balancer(lab, endpoint.port)
    async with connected(cluster, endpoint, Via.API):
        assert forwarded(lab) == ["one"]


async def test_via_direct_without_a_load_balancer_says_so(lab: Lab, cluster: Cluster, endpoint: EndpointPod) -> None:
    add_pod(lab, endpoint, "one")
    error = await refusal(cluster, endpoint, Via.DIRECT)
    assert "no load balancer address" in error.why
    assert "LoadBalancer" in error.remedy


async def test_a_pod_that_does_not_answer_is_left_for_the_next(
    lab: Lab, cluster: Cluster, endpoint: EndpointPod
) -> None:
    # Nothing listens at that address of this machine, though its node says that the pod is ready.
    add_pod(lab, endpoint, "silent", address="127.0.0.9")
    add_pod(lab, endpoint, "well")
    installed = InstalledEndpoint(cluster, NAMESPACE, Via.AUTO)
    for _ in range(2):
        tunnel = tunnel_to(installed, endpoint)
        try:
            await tunnel.start(DEADLINE)
        except EndpointError as error:
            assert "nothing listens" in error.what  # noqa: PT017 - whichever pod is newer comes first
            continue
        await works(tunnel)
        await tunnel.close()
    assert set(forwarded(lab)) >= {"well"}


async def test_a_pod_that_is_replaced_is_followed_at_once(lab: Lab, cluster: Cluster, endpoint: EndpointPod) -> None:
    add_pod(lab, endpoint, "one")
    installed = InstalledEndpoint(cluster, NAMESPACE, Via.AUTO)
    async with started(tunnel_to(installed, endpoint)) as tunnel:
        following = asyncio.create_task(installed.follow(tunnel.retry))
        lab.api.store.delete(PODS, NAMESPACE, "one")
        lab.api.port_forwards.cut()
        await eventually(lambda: "no SSH endpoint" in (tunnel.status()["last_error"] or ""))
        add_pod(lab, endpoint, "two")
        await works(tunnel)
        assert tunnel.status()["through"] == f"the API server to pod {NAMESPACE}/two"
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_another_key_than_the_api_vouches_for_is_not_trusted(
    lab: Lab, cluster: Cluster, endpoint: EndpointPod, tmp_path: Path
) -> None:
    add_pod(lab, endpoint, "one", log=write_key(tmp_path / "other"))
    error = await refusal(cluster, endpoint)
    assert "not who it should be" in error.what
    assert f"the log of pod {NAMESPACE}/one says" in error.why


async def test_a_key_that_the_endpoint_does_not_know_is_added_by_installing_again(
    lab: Lab, cluster: Cluster, endpoint: EndpointPod
) -> None:
    add_pod(lab, endpoint, "one")
    installed = InstalledEndpoint(cluster, NAMESPACE, Via.AUTO)
    stranger = Tunnel(
        Endpoint(installed.host, installed.port, installed.user),
        identity=endpoint.stranger,
        host_key=None,
        connect=installed.connect,
    )
    with pytest.raises(EndpointError) as raised:
        await stranger.start(DEADLINE)
    assert "does not know your key" in raised.value.why
    assert "`tp2 install`" in raised.value.remedy


async def test_all_the_rights_that_are_missing_are_named_at_once(
    lab: Lab, cluster: Cluster, endpoint: EndpointPod
) -> None:
    add_pod(lab, endpoint, "one")
    lab.api.forbid("pods/portforward")
    lab.api.forbid("deployments")
    error = await refusal(cluster, endpoint)
    assert isinstance(error, ClusterError)
    assert error.lasting
    for right in ("get pods/portforward", "create pods/portforward", "get deployments.apps"):
        assert f'{right} in the namespace "{NAMESPACE}"' in error.why


async def test_an_api_server_that_is_busy_is_asked_again(lab: Lab, cluster: Cluster, endpoint: EndpointPod) -> None:
    add_pod(lab, endpoint, "one")
    lab.api.refuse(429, times=1, plural="pods")
    async with connected(cluster, endpoint) as tunnel:
        await works(tunnel)


async def test_it_is_not_installed(cluster: Cluster, endpoint: EndpointPod) -> None:
    error = await refusal(cluster, endpoint)
    assert error.what == "no SSH endpoint is installed in this cluster"
    assert "`tp2 install`" in error.remedy


async def test_a_destination_is_reached_by_the_name_that_the_cluster_knows(
    lab: Lab, cluster: Cluster, endpoint: EndpointPod
) -> None:
    add_pod(lab, endpoint, "one")
    async with connected(cluster, endpoint) as tunnel, serving(echo) as service:
        named = Destination("localhost", service.port)
        async with portal(tunnel, named) as entrance:
            reader, writer = await entrance.connect()
            writer.write(b"by name")
            assert await reader.readexactly(7) == b"by name"
            writer.close()
