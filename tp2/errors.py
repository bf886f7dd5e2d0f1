"""What failed, why, and what to do: every error that reaches a user carries all three.

A part raises :class:`Tp2Error` (or a subclass) where it knows the cause; nothing above it rewords the message.
The class decides the exit code, so that scripts can tell a missing privilege from an unreachable cluster.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the ``tp2`` command; docs/reference/scripting.md documents them and they do not change."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_RUNNING = 3
    ALREADY_RUNNING = 4
    PRIVILEGE = 5
    FORWARDER = 6
    CLUSTER = 7
    ENDPOINT = 8
    ADDRESS_IN_USE = 9
    INTERRUPTED = 130


class Tp2Error(Exception):
    """An error meant for the user.

    :param what: what failed, one clause, no trailing full stop.
    :param why: the cause, in the words of whoever reported it where those help.
    :param remedy: what the user can do about it, as an instruction.
    """

    exit_code: ExitCode = ExitCode.FAILURE

    lasting: bool = False
    """Whether trying again mends nothing: somebody has to change a key, a right or an option first."""

    def __init__(self, what: str, why: str, remedy: str) -> None:
        super().__init__(what, why, remedy)
        self.what = what
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


class NotRunning(Tp2Error):
    """No daemon answers on the control socket."""

    exit_code = ExitCode.NOT_RUNNING


class AlreadyRunning(Tp2Error):
    """Another daemon holds the runtime directory or the machine's capture."""

    exit_code = ExitCode.ALREADY_RUNNING


class PrivilegeError(Tp2Error):
    """The helper could not get, or was not given, the right to change forwarding rules."""

    exit_code = ExitCode.PRIVILEGE


class ForwarderError(Tp2Error):
    """The operating system refused a forwarding rule, or cannot have any."""

    exit_code = ExitCode.FORWARDER


class ClusterError(Tp2Error):
    """kubeconfig, credentials or the Kubernetes API are at fault."""

    exit_code = ExitCode.CLUSTER


class EndpointError(Tp2Error):
    """The SSH endpoint cannot be reached, is not who it should be, or does not let us in."""

    exit_code = ExitCode.ENDPOINT


class AddressInUse(Tp2Error):
    """A local address that tp2 was told to listen on belongs to another program."""

    exit_code = ExitCode.ADDRESS_IN_USE


class UsageError(Tp2Error):
    """An option's value makes no sense."""

    exit_code = ExitCode.USAGE
