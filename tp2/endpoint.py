"""The way to the SSH endpoint that is installed in the cluster, looked for anew before every connection.

========== ====================================================================================================
``--via``  the ways, in the order in which they are tried
========== ====================================================================================================
``direct`` the addresses of the endpoint's load balancer
``api``    SSH inside a port-forward through the API server, to each ready pod
``auto``   the same two, one after the other; a load balancer that did not answer is left out for a while
========== ====================================================================================================

Of several ready pods, the one whose turn was longest ago comes first: a pod that takes connections and then fails them
is thus left for the next one. Whatever the way, the API says which host keys may be presented at its end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, NoReturn, cast

from tp2.cluster import discover, portforward, sshd
from tp2.cluster.api import Refused
from tp2.cluster.discover import Candidate, Found, LoadBalancer
from tp2.cluster.manifest import ENDPOINT
from tp2.cluster.watch import Cluster
from tp2.errors import ClusterError, EndpointError, Tp2Error
from tp2.settings import Via
from tp2.socks.dial import SocketStream, Stream, Way, dial
from tp2.socks.reasons import dial_failed

logger = logging.getLogger(__name__)

#: Seconds that a load balancer has to answer in when there is another way.
ANSWER_TIMEOUT: Final = 2.0

#: The same when there is none.
DIRECT_TIMEOUT: Final = 10.0

#: Seconds for which a load balancer that did not answer is left out, and for which one is that was just used.
LEFT_OUT: Final = 60.0
SOON: Final = 20.0

#: Pauses, in seconds, after which an API server that is overloaded or starting is asked again.
BUSY_PAUSES: Final = (0.2, 0.5, 1.0)


class InstalledEndpoint:
    """Opens ways for a :class:`tp2.socks.tunnel.Tunnel`: :meth:`connect` is what it takes.

    :param cluster: whose session is used; nothing is asked before it has logged in.
    :param namespace: where the endpoint is installed.
    """

    user: Final = sshd.USER
    port: Final = sshd.PORT

    def __init__(self, cluster: Cluster, namespace: str, via: Via) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._via = via
        self._turns: dict[str, float] = {}
        self._left_out: dict[LoadBalancer, float] = {}

    @property
    def host(self) -> str:
        """What to call it."""
        return f"{ENDPOINT}.{self._namespace}"

    async def connect(self, _host: str, _port: int) -> Way:
        """Open a way to it.

        :raises EndpointError: it is not installed, not ready, or cannot be reached, with the reason.
        :raises ClusterError: the API cannot be reached, or does not allow it: ``lasting`` if a person has to act.
        """
        await self._cluster.session.opened.wait()
        try:
            return await self._connect(await self._find())
        except ClusterError as error:
            if not error.lasting:
                raise
            raise await self._with_all_that_is_missing(error) from error

    async def _connect(self, found: Found) -> Way:
        failure: Tp2Error = self._no_balancer()
        if self._via is not Via.API:
            keys = tuple(candidate.host_key for candidate in found.candidates)
            for balancer in filter(self._may_answer, found.load_balancers):
                try:
                    stream = await self._dial(balancer)
                except EndpointError as error:
                    failure = error
                else:
                    where = f"the load balancer {balancer.host} port {balancer.port}"
                    return Way(stream, keys, f"the log of the pods in {self._namespace}", where)
        if self._via is not Via.DIRECT:
            for candidate in sorted(found.candidates, key=lambda each: self._turns.get(each.uid, 0.0)):
                try:
                    return await self._forward(candidate)
                except Tp2Error as error:
                    if error.lasting:
                        raise
                    failure = error
        raise failure

    def forgive(self) -> None:
        """The network has changed: what did not answer may answer now."""
        self._left_out.clear()

    async def follow(self, changed: Callable[[], None]) -> NoReturn:
        """Call *changed* whenever the endpoint's pods have changed, or may have, until cancelled."""
        await self._cluster.session.opened.wait()
        await discover.follow(self._cluster.session, self._namespace, changed)

    async def _find(self) -> Found:
        for pause in (*BUSY_PAUSES, None):
            try:
                return await discover.find(self._cluster.session, self._namespace)
            except Refused as error:
                if pause is None or (error.status != 429 and error.status < 500):
                    raise
                logger.debug("%s", error)
                await asyncio.sleep(pause)
        raise AssertionError("the last turn returns or raises")

    def _may_answer(self, balancer: LoadBalancer) -> bool:
        return self._via is Via.DIRECT or self._left_out.get(balancer, 0.0) <= time.monotonic()

    async def _dial(self, balancer: LoadBalancer) -> SocketStream:
        patience = DIRECT_TIMEOUT if self._via is Via.DIRECT else ANSWER_TIMEOUT
        try:
            async with asyncio.timeout(patience):
                stream = SocketStream(await dial(*balancer))
        except OSError as error:
            why = dial_failed(balancer.host, error).why
            logger.debug("the load balancer %s port %d does not answer: %s", *balancer, why)
            self._left_out[balancer] = time.monotonic() + LEFT_OUT
            raise EndpointError(
                f"cannot reach the SSH endpoint's load balancer {balancer.host} port {balancer.port}",
                why,
                "check that it can be reached from here, or leave --via out: tp2 then goes through the API server",
            ) from error
        # One that takes connections and then does not let us in is asked for by whoever comes back so soon.
        self._left_out[balancer] = time.monotonic() + SOON
        return stream

    async def _forward(self, candidate: Candidate) -> Way:
        self._turns[candidate.uid] = time.monotonic()
        stream = await portforward.forward(self._cluster.session, candidate.namespace, candidate.pod, sshd.PORT)
        pod = f"pod {candidate.namespace}/{candidate.pod}"
        return Way(cast(Stream, stream), (candidate.host_key,), f"the log of {pod}", f"the API server to {pod}")

    def _no_balancer(self) -> EndpointError:
        return EndpointError(
            f"there is no direct way to the SSH endpoint in the namespace {self._namespace!r}",
            f"its Service {ENDPOINT} has no load balancer address",
            f"give it one (`kubectl -n {self._namespace} edit service {ENDPOINT}`, type: LoadBalancer), "
            "or leave --via out: tp2 then goes through the API server",
        )

    async def _with_all_that_is_missing(self, error: ClusterError) -> ClusterError:
        """Add to *error* what else tp2 may not do, so that one request to an administrator is enough."""
        try:
            missing = await discover.missing_rights(self._cluster.session, self._namespace, self._cluster.scope)
        except ClusterError:
            missing = []
        if len(missing) < 2:
            return error
        whole = ClusterError(
            error.what, f"{error.why}; in all, these rights are missing: {', '.join(missing)}", error.remedy
        )
        whole.lasting = True
        return whole
