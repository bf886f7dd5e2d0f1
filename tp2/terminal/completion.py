"""What a shell completes after Tab: names of contexts, namespaces and live mappings.

Each function here is a ``shell_complete`` of a click parameter. It asks files of this machine and the running tp2, and
never the network: a person waits, for each Tab. Whatever goes wrong, there is nothing to complete, and not a word.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

from tp2.errors import Tp2Error
from tp2.system import quickyaml
from tp2.system.alarm import alarm
from tp2.types import Destination

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

#: Seconds that a completion may take. A tp2 that hangs, or a home that does, must not hold the shell.
PATIENCE: Final = 0.5

#: No kubeconfig of a person's own is longer, in bytes; reading one that is would keep them waiting.
_MAX_FILE: Final = 2_000_000


class Bash(BashComplete):
    """Completion for bash that knows of colons: contexts and addresses have them, and bash ends words there.

    The words are taken from the line as a whole, and of what is completed only the part after the last colon is
    handed back, since that is what bash replaces (bash(1), COMP_WORDBREAKS).
    """

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' type value
    while IFS=, read -r type value; do
        case $type in
            dir) COMPREPLY=(); compopt -o dirnames ;;
            file) COMPREPLY=(); compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT COMP_BREAKS=$COMP_WORDBREAKS \\
        %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode(errors="replace")
        words = split_arg_string(line)
        incomplete = words.pop() if line and not line[-1].isspace() else ""
        self._handed_back = incomplete.rfind(":") + 1 if ":" in os.environ.get("COMP_BREAKS", ":") else 0
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value[self._handed_back :]}"


add_completion_class(Bash, "bash")


def _silent(complete: Completer) -> Completer:
    @wraps(complete)
    def completed(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            with alarm(PATIENCE):
                return complete(ctx, param, incomplete)
        except Exception:  # noqa: BLE001 - words in the middle of a command line would only be in the way
            return []

    return completed


@_silent
def contexts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the contexts of the kubeconfig; beside each, its cluster."""
    found = {name: str(context.get("cluster") or "") for name, context in _contexts(ctx)}
    return _items(incomplete, found.items())


@_silent
def namespaces(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the namespaces that the running tp2 knows of, and those that contexts of the kubeconfig name."""
    found = {str(context["namespace"]): f"of {name}" for name, context in _contexts(ctx) if context.get("namespace")}
    with contextlib.suppress(Tp2Error, KeyError):
        found |= dict.fromkeys(_ask("namespaces")["namespaces"], "")
    chosen = ctx.params.get(param.name or "") or ()
    return _items(incomplete, sorted((name, words) for name, words in found.items() if name not in chosen))


@_silent
def mappings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the names of live mappings; beside each, its address."""
    found: dict[str, list[str]] = {}
    for row in _ask("mappings")["mappings"]:
        there = str(Destination(row["address"], row["port"]))
        # Addresses only for those who begin with one: each would stand beside its name otherwise.
        word = there if incomplete[:1] in tuple("[0123456789") else row["name"]
        found.setdefault(word, []).append(row["name"] if word == there else there)
    return _items(incomplete, sorted((word, ", ".join(words)) for word, words in found.items() if word))


def _items(incomplete: str, found: Iterable[tuple[str, str]]) -> list[CompletionItem]:
    return [CompletionItem(name, help=words or None) for name, words in found if name.startswith(incomplete)]


def _contexts(ctx: click.Context) -> Iterator[tuple[str, dict[str, Any]]]:
    import yaml

    seen = set()
    for path in _kubeconfigs(ctx.params.get("kubeconfig")):
        document = None
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError), path.open("rb") as file:
            document = quickyaml.load(file.read(_MAX_FILE))
        entries = document.get("contexts") if isinstance(document, dict) else None
        for entry in entries if isinstance(entries, list) else ():
            name = entry.get("name") if isinstance(entry, dict) else None
            if isinstance(name, str) and name not in seen:
                seen.add(name)
                context = entry.get("context")
                yield name, context if isinstance(context, dict) else {}


def _kubeconfigs(chosen: object) -> list[Path]:
    """Return the files that would be read, in the order of kubectl."""
    if chosen:
        return [Path(str(chosen)).expanduser()]
    listed = [Path(part) for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    return listed or [Path.home() / ".kube" / "config"]


def _ask(operation: str) -> dict[str, Any]:
    from tp2.control import client
    from tp2.forward.privilege import calling_user
    from tp2.runtime import RuntimeDirectory, default_directory

    configured = os.environ.get("TP2_RUNTIME_DIR")
    path = Path(configured).absolute() if configured else default_directory(calling_user().uid)
    return client.ask(RuntimeDirectory(path), operation)
