"""``tp2 install`` and ``tp2 uninstall``: one login, as the user, and the work of :mod:`tp2.cluster.install`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from tp2.cluster import install as work
from tp2.cluster import kubeconfig as kubeconfigs
from tp2.cluster import lean
from tp2.cluster.manifest import IMAGE, objects, to_yaml
from tp2.cluster.publickey import own_public_key
from tp2.cluster.session import Session
from tp2.forward.privilege import become, calling_user

Say = Callable[[str], None]


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

    async def apply(session: Session) -> None:
        key = await own_public_key(identity)
        await work.install(session, objects(namespace, image or IMAGE, (key,)), say, timeout=timeout)

    _with_session(kubeconfig, context, apply, say)


def uninstall(*, namespace: str, kubeconfig: Path | None, context: str | None, say: Say) -> None:
    """Take the endpoint out of the cluster; *say* is told each step.

    :raises Tp2Error: it is not allowed, or something does not go away.
    """
    _with_session(kubeconfig, context, lambda session: work.uninstall(session, namespace, say), say)


def _with_session(
    kubeconfig: Path | None, context: str | None, run: Callable[[Session], Awaitable[None]], say: Say
) -> None:
    lean.prepare()
    become(calling_user())
    access = kubeconfigs.load(kubeconfig, context)
    say(f"cluster {access.context} at {access.server}")

    async def with_session() -> None:
        session = Session(access)
        try:
            await session.open()
            await run(session)
        finally:
            await session.close()

    asyncio.run(with_session())
