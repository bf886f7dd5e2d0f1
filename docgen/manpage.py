"""The manual page tp2(1), from the commands themselves: what ``--help`` says, in man(7)'s macros.

One page for all commands, as it is looked for: click-man makes one for each, cuts their first lines short, and lets a
line that begins with an apostrophe, such as ``'kubectl apply'``, become a macro.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import click

from tp2 import __version__
from tp2.cli import cli
from tp2.errors import ExitCode

#: What docs/reference/scripting.md says of each; the words of the classes are about whose fault it is.
_EXITS: Final = {
    ExitCode.OK: "done",
    ExitCode.FAILURE: "failed",
    ExitCode.USAGE: "usage",
    ExitCode.NOT_RUNNING: "not running",
    ExitCode.ALREADY_RUNNING: "running already",
    ExitCode.PRIVILEGE: "privilege missing",
    ExitCode.FORWARDER: "forwarding rules refused, or lost",
    ExitCode.CLUSTER: "kubeconfig, credentials or the Kubernetes API",
    ExitCode.ENDPOINT: "SSH endpoint",
    ExitCode.ADDRESS_IN_USE: "a local address is taken",
    ExitCode.INTERRUPTED: "interrupted before it was ready",
}

_ENVIRONMENT: Final = {
    "TP2_RUNTIME_DIR": "Where the control socket, the lock and the log of an instance are.",
    "TP2_OPTION": "Any option of tp2 up, in capitals and with underscores: TP2_REMOTE, TP2_HOST_KEY. Of an option that"
    " may be repeated, the values are separated by spaces.",
    "KUBECONFIG": "The kubeconfig files, as for kubectl(1).",
    "SSH_AUTH_SOCK": "The SSH agent whose keys are offered to the endpoint.",
}

_UP: Final = cli.commands["up"]

_FILES: Final = {
    "~/.config/tp2/config.toml": "What is not said otherwise, by the long names of the options of tp2 up.",
    "~/.kube/config": "The kubeconfig, unless another one is named.",
    "~/.ssh/known_hosts": "Which key an SSH endpoint of --remote must present, unless --host-key says it.",
    "/run/tp2-UID": "The runtime directory of a service; otherwise it is below XDG_RUNTIME_DIR.",
    "/etc/systemd/system/tp2.service": "What tp2 service install writes.",
}


def page() -> str:
    """Return the page."""
    return "".join(f"{line}\n" for line in _page())


def _page() -> Iterator[str]:
    yield '.\\" Written by scripts/docs from the commands of tp2.'
    yield f'.TH TP2 1 "" "tp2 {__version__}" "User Commands"'
    yield ".SH NAME"
    yield f"tp2 \\- {_escaped(_first_sentence(cli))}"
    yield ".SH SYNOPSIS"
    for names, command in _commands(cli, ["tp2"]):
        yield from _synopsis(names, command)
    yield ".SH DESCRIPTION"
    yield from _paragraphs(cli.help or "")
    yield ".SH COMMANDS"
    for names, command in _commands(cli, ["tp2"]):
        yield f".SS {_escaped(' '.join(names))}"
        yield from _paragraphs(command.help or "")
        yield from _options(names, command)
    yield ".SH EXIT STATUS"
    for code in ExitCode:
        yield from _item(str(int(code)), _EXITS[code])
    yield ".SH ENVIRONMENT"
    for name, words in _ENVIRONMENT.items():
        yield from _item(name, words)
    yield ".SH FILES"
    for name, words in _FILES.items():
        yield from _item(name, words)
    yield ".SH SEE ALSO"
    yield ".BR kubectl (1),\n.BR ssh (1),\n.BR nft (8),\n.BR resolv.conf (5),\n.BR systemd.service (5)"


def _commands(group: click.Group, names: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from _commands(command, [*names, name])
        else:
            yield [*names, name], command


def _synopsis(names: list[str], command: click.Command) -> Iterator[str]:
    with click.Context(command) as ctx:
        yield ".HP"
        yield f"\\fB{_escaped(' '.join(names))}\\fR {_escaped(' '.join(command.collect_usage_pieces(ctx)))}"


def _options(names: list[str], command: click.Command) -> Iterator[str]:
    shared = [param for param in command.params if command is not _UP and param in _UP.params]
    with click.Context(command, info_name=names[-1]) as ctx:
        for param in command.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and param not in shared and "--help" not in param.opts:
                yield from _item(*record)
    if shared:
        yield from _item(", ".join(max(param.opts, key=len) for param in shared), "As for tp2 up.")


def _item(name: str, words: str) -> Iterator[str]:
    yield ".TP"
    yield f"\\fB{_escaped(name)}\\fR"
    yield _escaped(" ".join(words.split()))


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        yield ".PP"
        yield _escaped(" ".join(paragraph.split()))


def _first_sentence(command: click.Command) -> str:
    return " ".join((command.help or "").partition("\n\n")[0].split()).rstrip(".")


def _escaped(text: str) -> str:
    """Return *text* so that nothing in it is a request or an escape of roff(7)."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    # An apostrophe that opens is not one that closes; at the beginning of a line it would be a request.
    escaped = escaped.replace("'", "\\(aq").replace("`", "\\(ga").replace("…", "...").replace("’", "\\(cq")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped
