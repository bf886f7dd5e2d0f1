"""``tp2 install`` and ``tp2 uninstall``: one login, as the user, and the work of :mod:`tp2.cluster.install`.

Installing ends with what it is for: a login at the endpoint, by the way that ``tp2 up`` takes. A pod that runs already
sees a new key a little later than the API server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from tp2.cluster import install as work
from tp2.cluster import kubeconfig as kubeconfigs
from tp2.cluster import lean
from tp2.cluster.manifest import IMAGE, objects, to_yaml
from tp2.cluster.publickey import own_public_key
from tp2.cluster.watch import Cluster
from tp2.endpoint import InstalledEndpoint
from tp2.errors import EndpointError, Tp2Error
from tp2.forward.privilege import become, calling_user
from tp2.settings import Via
from tp2.socks.reasons import NotLetIn
from tp2.socks.tunnel import Endpoint, Tunnel

Say = Callable[[str], None]

#: Seconds in which kubelet brings a new key into a pod that runs: it looks once a minute at the latest, at what it may
#: remember for as long again.
LET_IN: Final = 150.0

#: Seconds between two attempts to log in, and for one.
AGAIN: Final = 1.0
ATTEMPT: Final = 20.0


def manifest(namespace: str, image: str | None, identity: Path | None) -> str:
    """Return the endpoint's objects as YAML for ``kubectl apply -f``; with a key only if *identity* names one.

    :raises UsageError: the public key of *identity* cannot be had.
    """
    become(calling_user())
    keys = (asyncio.run(own_public_key(identity)),) if identity is not None else ()
    return to_yaml(objects(namespace, image or IMAGE, keys))


def install(
    *,
    namespace: str,
    image: str | None,
    identity: Path | None,
    kubeconfig: Path | None,
    context: str | None,
    timeout: float,
    say: Say,
) -> None:
    """Put the endpoint into the cluster; *say* is told each step.

    :param timeout: seconds until the endpoint has to be ready.
    :raises Tp2Error: it is not allowed, there is no key to let in, or the endpoint does not become ready.
    """

    # The public half may be all there is: somebody else's, or an agent's.
    is_here = identity is None or identity.exists()

    async def apply(cluster: Cluster) -> None:
        key = await own_public_key(identity)
        await work.install(cluster.session, objects(namespace, image or IMAGE, (key,)), say, timeout=timeout)
        if not is_here:
            return
        try:
            await _log_in(cluster, namespace, identity)
        except NotLetIn as error:
            raise EndpointError(
                "the SSH endpoint does not let your key in yet",
                f"for {LET_IN:g} s the pod has not taken up what is authorized now; {error.why}",
                "try `tp2 up` in a while; if that fails too, have the pod made anew: "
                f"`kubectl -n {namespace} rollout restart deployment`",
            ) from error
        except Tp2Error as error:
            # It was installed; whether it can be used from here is another matter.
            say(f"it could not be tried from here: {error}")
        else:
            say("your key is let in")

    _with_cluster(kubeconfig, context, apply, say)


def uninstall(*, namespace: str, kubeconfig: Path | None, context: str | None, say: Say) -> None:
    """Take the endpoint out of the cluster; *say* is told each step.

    :raises Tp2Error: it is not allowed, or something does not go away.
    """
    _with_cluster(kubeconfig, context, lambda cluster: work.uninstall(cluster.session, namespace, say), say)


async def _log_in(cluster: Cluster, namespace: str, identity: Path | None) -> None:
    """Log in at the endpoint as ``tp2 up`` would.

    :raises NotLetIn: the key is not taken, for :data:`LET_IN` seconds.
    :raises Tp2Error: it cannot be tried.
    """
    endpoint = InstalledEndpoint(cluster, namespace, Via.API)
    clock = asyncio.get_running_loop().time
    deadline = clock() + LET_IN
    while True:
        tunnel = Tunnel(
            Endpoint(endpoint.host, endpoint.port, endpoint.user),
            identity=identity,
            host_key=None,
            connect=endpoint.connect,
        )
        try:
            await tunnel.start(ATTEMPT)
        except NotLetIn:
            if clock() > deadline:
                raise
            await asyncio.sleep(AGAIN)
        else:
            return
        finally:
            await tunnel.close()


def _with_cluster(
    kubeconfig: Path | None, context: str | None, run: Callable[[Cluster], Awaitable[None]], say: Say
) -> None:
    lean.prepare()
    become(calling_user())
    access = kubeconfigs.load(kubeconfig, context)
    say(f"cluster {access.context} at {access.server}")

    async def with_cluster() -> None:
        cluster = Cluster(access)
        try:
            await cluster.session.open()
            await run(cluster)
        finally:
            await cluster.close()

    asyncio.run(with_cluster())
