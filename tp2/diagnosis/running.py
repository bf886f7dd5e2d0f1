"""Runs checks side by side, each as soon as what it builds on is known to be well."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from tp2.diagnosis.model import Finding, Place, Report, State, failed, failed_by, not_applicable, placed
from tp2.errors import Tp2Error

Answer = TypeVar("Answer")

#: Seconds that a check has, unless it says otherwise.
WITHIN: Final = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at.

    :param name: what it is called, in a word or two.
    :param look: finds out; a Tp2Error that it raises is what it found.
    :param needs: the names of checks before it, without which there is nothing to look at.
    :param within: seconds after which it is given up.
    """

    name: str
    place: Place
    look: Callable[[], Awaitable[Finding | Sequence[Finding]]]
    needs: tuple[str, ...] = ()
    within: float = WITHIN


#: What each check has found, and whether others can build on it.
_Outcomes = dict[str, asyncio.Future[tuple[tuple[Finding, ...], bool]]]


async def run(checks: Sequence[Check]) -> Report:
    """Run *checks*, and report what they found in their order.

    :raises ValueError: one needs another that does not come before it.
    """
    outcomes: _Outcomes = {}
    loop = asyncio.get_running_loop()
    for check in checks:
        if unknown := [name for name in check.needs if name not in outcomes]:
            raise ValueError(f"{check.name} needs {', '.join(unknown)}, which does not come before it")
        outcomes[check.name] = loop.create_future()
    async with asyncio.TaskGroup() as group:
        for check in checks:
            group.create_task(_run(check, outcomes))
    return Report(tuple(finding for outcome in outcomes.values() for finding in outcome.result()[0]))


async def _run(check: Check, outcomes: _Outcomes) -> None:
    began = time.monotonic()
    found: Finding | Sequence[Finding] = ()
    stands = True
    for name in check.needs:
        _, stands = await outcomes[name]
        if not stands:
            found = not_applicable("not looked at", f"{name} has to be well first")
            break
    else:
        began = time.monotonic()
        try:
            async with asyncio.timeout(check.within):
                found = await check.look()
        except Tp2Error as error:
            found = failed_by(error)
        except TimeoutError:
            found = failed(
                f"nothing was found out within {check.within:g} s",
                "whoever was asked did not answer",
                "try again; if it stays so, look at what this line is about by hand",
            )
        except Exception as error:  # noqa: BLE001 - one check that is wrong must not keep the others from being told
            found = not_applicable("could not be looked at", f"{type(error).__name__}: {error}")
    findings = [found] if isinstance(found, Finding) else found
    stands = stands and not any(finding.state is State.FAILED for finding in findings)
    outcomes[check.name].set_result((placed(findings, check.name, check.place, time.monotonic() - began), stands))


async def in_thread(work: Callable[[], Answer]) -> Answer:
    """Return what *work* returns, from a thread that nobody has to wait for in the end.

    :raises Exception: what it raises.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Answer] = loop.create_future()

    def settle(result: Answer | None, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - it is whoever waits who has to know
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=body, name="check", daemon=True).start()
    return await outcome
