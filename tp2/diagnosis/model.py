"""What a check can find, how findings are put in order, and which of them is to be mended first. Pure.

Checks stand in the order in which a packet meets what they look at, so the first that failed is the cause of those
that failed after it, as far as there is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from tp2.errors import Tp2Error


class State(StrEnum):
    """How something is. What could not be looked at, or need not be, is not applicable."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


class Place(StrEnum):
    """Where something is, in the order of a packet's way."""

    MACHINE = "this machine"
    KUBERNETES = "Kubernetes"
    ENDPOINT = "endpoint"
    END_TO_END = "end to end"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    :param what: how it is, or what is wrong, in a clause.
    :param why: the cause; empty if nothing is wrong.
    :param remedy: what to do, as an instruction; empty if nothing is wrong.
    :param check: the name of the check.
    :param took: seconds.
    """

    state: State
    what: str
    why: str = ""
    remedy: str = ""
    check: str = ""
    place: Place = Place.MACHINE
    took: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The finding as ``--json`` prints it."""
        return {
            "place": str(self.place),
            "check": self.check,
            "state": str(self.state),
            "what": self.what,
            "why": self.why or None,
            "remedy": self.remedy or None,
            "took": round(self.took, 4),
        }


def ok(what: str) -> Finding:
    """All is well."""
    return Finding(State.OK, what)


def warning(what: str, why: str, remedy: str) -> Finding:
    """It works, but not as well as it could, or not for everything."""
    return Finding(State.WARNING, what, why, remedy)


def failed(what: str, why: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(State.FAILED, what, why, remedy)


def failed_by(error: Tp2Error) -> Finding:
    """It does not work, as whoever tried says."""
    return Finding(State.FAILED, error.what, error.why, error.remedy)


def not_applicable(what: str, why: str) -> Finding:
    """It was not looked at, for a reason."""
    return Finding(State.NOT_APPLICABLE, what, why)


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order of the checks."""

    findings: tuple[Finding, ...]

    @property
    def well(self) -> bool:
        """Whether nothing failed."""
        return not any(finding.state is State.FAILED for finding in self.findings)

    @property
    def first(self) -> Finding | None:
        """What to mend first: what failed first, or else the first warning; None if there is neither."""
        for state in (State.FAILED, State.WARNING):
            for finding in self.findings:
                if finding.state is state:
                    return finding
        return None

    def summary(self) -> str:
        """Say in a line what to mend first."""
        first = self.first
        if first is None:
            return "Nothing is wrong."
        beginning = "Mend this first" if first.state is State.FAILED else "Nothing failed. Worth a look"
        return f"{beginning}: {first.what} ({first.why}). {_sentence(first.remedy)}"

    def as_json(self) -> dict[str, Any]:
        """The object of ``tp2 doctor --json``."""
        first = self.first
        return {
            "ok": self.well,
            "first": None if first is None else first.as_json(),
            "findings": [finding.as_json() for finding in self.findings],
        }


def placed(findings: Iterable[Finding], check: str, place: Place, took: float) -> tuple[Finding, ...]:
    """Return *findings* as those of a check."""
    return tuple(replace(finding, check=check, place=place, took=took) for finding in findings)


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."
