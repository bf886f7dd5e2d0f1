"""The commands: parse, call, print. No logic.

``tp2 mappings`` and ``status`` must answer in about the time that Python takes to start, so what is heavy (the
Kubernetes and SSH clients, tables) is imported where it is used.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from tp2 import __version__, configuration, settings
from tp2.control import client
from tp2.errors import ExitCode, Tp2Error
from tp2.options import EXISTING_FILE, Parsed, as_settings, finding_a_cluster, running
from tp2.runtime import RuntimeDirectory, default_directory
from tp2.service import commands as service_commands
from tp2.terminal import completion

#: What ``tp2 mappings`` can be sorted by. The functions are in :mod:`tp2.terminal.rows`, not needed for ``--help``.
SORT_KEYS = ("name", "address", "state", "open", "total", "sent", "received", "rate", "used")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tp2")
def cli() -> None:
    """Reach a Kubernetes cluster's services by name, from any program on this machine.

    The control socket, lock and log of a running tp2 are in TP2_RUNTIME_DIR (default: a directory of this user's own
    below /run). Exit codes: 0 done, 1 failed, 2 usage, 3 not running, 4 running already, 5 privilege,
    6 forwarding rules, 7 cluster, 8 SSH endpoint, 9 address in use, 130 interrupted.
    """


@cli.command(context_settings={"auto_envvar_prefix": "TP2"})
@running
@click.option("--detach/--no-detach", "-d", help="Return when ready, and go on in the background.")
def up(detach: bool, **options: Any) -> None:
    """Make the cluster reachable until Ctrl-C, or 'tp2 down'.

    Every option can be set as TP2_OPTION too, and in a configuration file by its long name, as in
    namespace = ["shop", "blog"]. A flag goes before the environment, and that before the file.
    """
    from tp2 import start

    raise SystemExit(start.up(as_settings(options), _runtime(), detach=detach))


up.params.append(configuration.option())


@cli.command(context_settings={"auto_envvar_prefix": "TP2"})
@click.option("--json", "as_json", is_flag=True, help="Print an object for programs.")
@click.pass_context
def config(ctx: click.Context, /, as_json: bool, **_: Any) -> None:
    """Show each setting that 'tp2 up' would have with these options, and where it comes from."""
    from tp2 import provenance

    answer = provenance.describe(ctx, up.params, _runtime().path)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    from tp2.terminal import screen

    screen.configuration(answer)


config.params += up.params


@cli.command()
@click.argument("words", metavar="[FILTER]...", nargs=-1, shell_complete=completion.mappings)
@click.option("--watch", "-w", is_flag=True, help="Go on showing them, with rates, until Ctrl-C.")
@click.option(
    "--sort",
    type=click.Choice(SORT_KEYS),
    default="name",
    show_default=True,
    help="What comes first: in the order of this column, or with the most of it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print an object for programs; with --watch, one a line.")
def mappings(words: tuple[str, ...], watch: bool, sort: str, as_json: bool) -> None:
    """Show which local port stands for which cluster address.

    FILTER is a part of a name, of an address with its port, or a state; each of several has to be there.
    """
    from tp2.terminal import live

    live.mappings(_runtime(), words=words, sort=sort, watch=watch, as_json=as_json)


@cli.command()
@click.argument("words", metavar="[FILTER]...", nargs=-1)
@click.option("--sort", type=click.Choice(SORT_KEYS), default="name", show_default=True, help="What comes first.")
def top(words: tuple[str, ...], sort: str) -> None:
    """Show mappings, rates, recent DNS questions and the tunnel, live, until q.

    Off a terminal it is printed once. The keys are on the screen's last line.
    """
    from tp2.terminal import top as work

    work.top(_runtime(), sort=sort, words=words)


@cli.command("map")
@click.argument(
    "target",
    metavar="IP:PORT|NAME[:PORT]",
    type=Parsed("target", settings.check_target),
    shell_complete=completion.mappings,
)
@click.option("--json", "as_json", is_flag=True, help="Print an object for programs.")
def map_(target: str, as_json: bool) -> None:
    """Map a destination without a lookup, and keep it mapped until 'tp2 unmap'."""
    answer = client.ask(_runtime(), "map", target=target)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    from tp2.terminal import screen

    screen.mappings(answer)


@cli.command()
@click.argument(
    "target",
    metavar="IP:PORT|NAME[:PORT]",
    type=Parsed("target", settings.check_target),
    shell_complete=completion.mappings,
)
@click.option("--json", "as_json", is_flag=True, help="Print an object for programs.")
def unmap(target: str, as_json: bool) -> None:
    """Let go of a mapping: at once if nobody uses it, else when that ends."""
    answer = client.ask(_runtime(), "unmap", target=target)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    for gone in answer["gone"]:
        click.echo(f"{gone} is not mapped any more")
    if answer["mappings"]:
        from tp2.terminal import screen

        click.echo("still in use, and gone when that ends:")
        screen.mappings(answer)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print an object for programs.")
@click.option(
    "--wait",
    metavar="DURATION",
    type=Parsed("duration", settings.parse_duration),
    help="Wait until it is ready, for so long at the most.",
)
def status(as_json: bool, wait: float | None) -> None:
    """Show how the running tp2 is. The exit code is 0 only if it is ready, 1 if it runs and is not."""
    answer = client.ask(_runtime(), "status") if wait is None else client.wait_until_ready(_runtime(), wait)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        from tp2.terminal import screen

        screen.status(answer)
    if answer["state"] != "ready":
        raise SystemExit(int(ExitCode.FAILURE))


@cli.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written, until that tp2 ends or Ctrl-C.")
@click.option("--tail", "-n", "last", metavar="LINES", type=click.IntRange(min=0), help="Begin so many lines before.")
def logs(follow: bool, last: int | None) -> None:
    """Show the log of a tp2 in the background, or what the last one has left if it failed."""
    from tp2.terminal import logs as work

    work.show(_runtime(), follow=follow, last=last)


@cli.command()
def down() -> None:
    """Stop the running tp2, and return when everything of it is gone."""
    client.stop(_runtime())


cli.add_command(service_commands.group(up))


@cli.command(context_settings={"auto_envvar_prefix": "TP2"})
@click.option("--json", "as_json", is_flag=True, help="Print an object for programs.")
def doctor(as_json: bool, **options: Any) -> None:
    """Find out what is wrong, before or while tp2 is up, and what to mend first.

    Takes the options of 'up', from the environment and the configuration file too; if tp2 is up, it is by default as
    it was told. The exit code is 0 if nothing failed, else 1.
    """
    from tp2.diagnosis import doctor as room

    source = click.get_current_context().get_parameter_source
    given = {name for name in options if source(name) is not ParameterSource.DEFAULT}
    report = room.examine(as_settings(options), _runtime(), given)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        from tp2.diagnosis import show

        show.report(report)
    if not report.well:
        raise SystemExit(int(ExitCode.FAILURE))


doctor.params += [option for option in up.params if option.name != "detach"]


@cli.command()
@click.argument(
    "target",
    metavar="NAME[:PORT]|IP:PORT",
    type=Parsed("target", settings.check_target),
    shell_complete=completion.mappings,
)
@click.option("--connect", is_flag=True, help="Make a connection in the end.")
@click.option("--json", "as_json", is_flag=True, help="Print an object for programs.")
def explain(target: str, connect: bool, as_json: bool) -> None:
    """Follow a name through everything as it would go now, and show where it breaks.

    The exit code is 0 if it does not break, else 1.
    """
    from tp2.diagnosis import explain as room

    report = room.explain(target, _runtime(), connect=connect)
    if as_json:
        click.echo(json.dumps(room.as_json(target, report), indent=2))
    else:
        from tp2.diagnosis import show

        show.steps(report, room.conclusion(target, report))
    if not report.well:
        raise SystemExit(int(ExitCode.FAILURE))


@cli.command()
@finding_a_cluster
@click.option("--image", metavar="REF", help="Image with OpenSSH's sshd. [default: a public one, pinned by version]")
@click.option("--identity", "-i", type=EXISTING_FILE, help="Key to let in. [default: the SSH agent's, then ~/.ssh]")
@click.option(
    "--timeout",
    metavar="DURATION",
    type=Parsed("duration", settings.parse_duration),
    default="3m",
    show_default=True,
    help="How long the endpoint may take to become ready.",
)
@click.option("--print", "print_only", is_flag=True, help="Print what would be applied, and touch no cluster.")
def install(print_only: bool, **options: Any) -> None:
    """Put the SSH endpoint into the cluster, let your key in, and wait until it is ready.

    Safe to repeat: what is there already stays, other people's keys included. --print writes the manifest for
    'kubectl apply -f'; it holds a key only if --identity names one.
    """
    from tp2 import installing

    if print_only:
        click.echo(installing.manifest(options["namespace"], options["image"], options["identity"]), nl=False)
    else:
        installing.install(say=click.echo, **options)


@cli.command()
@finding_a_cluster
def uninstall(**options: Any) -> None:
    """Take the SSH endpoint out of the cluster again, whole, and return when it is gone."""
    from tp2 import installing

    installing.uninstall(say=click.echo, **options)


@cli.command()
@click.option("--shell", is_flag=True, help="Leave me in a shell on the laptop side, with tp2 up.")
def demo(shell: bool) -> None:
    """Show the main job on a cluster in a box: network namespaces, gone at the end; no cluster is needed."""
    from tp2.sandbox import demo as demonstration

    raise SystemExit(demonstration.run(shell=shell))


def main() -> NoReturn:
    """The console script. No traceback leaves it: an error is a message, and a bug says that it is one."""
    try:
        _settings_of_sudos_caller()
        cli(standalone_mode=False)
        code = int(ExitCode.OK)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except Tp2Error as error:
        print_error(error)
        code = int(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output (head, a pager) left; what Python flushes at exit has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = int(ExitCode.OK)
    except Exception as error:
        import logging

        logging.getLogger("tp2").debug("unexpected", exc_info=True)
        print_error(
            Tp2Error(
                "tp2 failed",
                f"{type(error).__name__}: {error}",
                "this is a bug: please report it, with --verbose output",
            )
        )
        code = int(ExitCode.FAILURE)
    sys.exit(code)


def _settings_of_sudos_caller() -> None:
    """Under sudo, take the TP2_ variables that the caller has set and sudo has dropped."""
    if os.geteuid() == 0 and "SUDO_UID" in os.environ:
        from tp2.forward.caller import environment_of_sudos_caller

        for name, value in environment_of_sudos_caller().items():
            if name.startswith("TP2_"):
                os.environ.setdefault(name, value)


def print_error(error: Tp2Error) -> None:
    """Print what failed, why, and what to do, on standard error."""
    click.echo(f"tp2: {error.what}\n  why: {error.why}\n  try: {error.remedy}", err=True)


def _runtime() -> RuntimeDirectory:
    if configured := os.environ.get("TP2_RUNTIME_DIR"):
        return RuntimeDirectory(Path(configured).absolute())
    from tp2.forward.privilege import calling_user

    return RuntimeDirectory(default_directory(calling_user().uid))
