"""An attempt during which the network changed is begun again; nothing of the former one is left."""

from __future__ import annotations

import asyncio

import pytest

from tp2.undisturbed import undisturbed


class Attempts:
    """Attempts that take as long as they are told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.left = 0
        self.finish = asyncio.Event()
        self.result: Exception | str = "done"

    async def __call__(self) -> str:
        self.begun += 1
        number = self.begun
        try:
            await self.finish.wait()
        except asyncio.CancelledError:
            self.left += 1
            raise
        if isinstance(self.result, Exception):
            raise self.result
        return f"{self.result} {number}"

    async def when_begun(self, count: int) -> None:
        while self.begun < count:
            await asyncio.sleep(0)


async def test_an_attempt_that_nothing_disturbs_is_one_attempt() -> None:
    attempts, disturbed = Attempts(), asyncio.Event()
    # What was before it is no disturbance.
    disturbed.set()
    attempts.finish.set()
    assert await undisturbed(attempts, disturbed) == "done 1"
    assert (attempts.begun, attempts.left) == (1, 0)


async def test_each_disturbance_begins_it_anew() -> None:
    attempts, disturbed = Attempts(), asyncio.Event()
    trying = asyncio.create_task(undisturbed(attempts, disturbed))
    for count in (1, 2, 3):
        await attempts.when_begun(count)
        if count < 3:
            disturbed.set()
    attempts.finish.set()
    assert await trying == "done 3"
    assert attempts.left == 2


async def test_what_is_no_attempt_any_more_is_left_alone() -> None:
    attempts, disturbed = Attempts(), asyncio.Event()
    trying = asyncio.create_task(undisturbed(attempts, disturbed, lambda: False))
    await attempts.when_begun(1)
    for _ in range(3):
        disturbed.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    attempts.finish.set()
    assert await trying == "done 1"


async def test_a_failure_is_passed_on() -> None:
    attempts, disturbed = Attempts(), asyncio.Event()
    attempts.result = OSError("no route")
    attempts.finish.set()
    with pytest.raises(OSError, match="no route"):
        await undisturbed(attempts, disturbed)


async def test_cancelling_it_cancels_the_attempt() -> None:
    attempts, disturbed = Attempts(), asyncio.Event()
    trying = asyncio.create_task(undisturbed(attempts, disturbed))
    await attempts.when_begun(1)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert attempts.left == 1
    assert len(asyncio.all_tasks()) == 1
