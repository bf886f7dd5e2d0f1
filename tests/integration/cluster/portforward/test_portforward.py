"""A stream to a port of a pod, through the API server."""

from __future__ import annotations

from tests.integration.cluster.portforward.rig import Rig, echo, running


async def test_what_is_sent_comes_back(rig: Rig) -> None:
    async with running(echo) as port:
        end = await rig.connect(port)
        end.transport.write(b"hello")
        await end.has(b"hello")
        end.transport.close()
        assert await end.end() is None
