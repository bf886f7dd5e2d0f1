"""The commands: parse, call, print. No logic.

``tp2 mappings`` and ``status`` must answer in about the time that Python takes to start, so what is heavy (the
Kubernetes and SSH clients, tables) is imported where it is used.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from tp2 import __version__, settings
from tp2.control import client
from tp2.errors import ExitCode, Tp2Error
from tp2.runtime import RuntimeDirectory, default_directory
from tp2.settings import Mode, Settings, Via


class Parsed(click.ParamType[Any]):
    """An option whose form one function of :mod:`tp2.settings` knows."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse *value* unless it is a default that needs no parsing."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except Tp2Error as error:
            self.fail(f"{error.what}: {error.why}; {error.remedy}.", param, ctx)


EXISTING_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tp2")
def cli() -> None:
    """Reach a Kubernetes cluster's services by name, from any program on this machine.

    The control socket, lock and log of a running tp2 are in TP2_RUNTIME_DIR (default: a directory of this user's own
    below /run). Exit codes: 0 done, 1 failed, 2 usage, 3 not running, 4 running already, 5 privilege,
    6 forwarding rules, 7 cluster, 8 SSH endpoint, 9 address in use, 130 interrupted.
    """


@cli.command(context_settings={"auto_envvar_prefix": "TP2"})
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.PORTMAP.value,
    show_default=True,
    help="How a connection's destination is known: a local port each, or the kernel's word for it.",
)
@click.option("--kubeconfig", type=EXISTING_FILE, help="kubeconfig file. [default: KUBECONFIG, then ~/.kube/config]")
@click.option("--context", help="kubeconfig context. [default: the current one]")
@click.option(
    "--namespace",
    "-n",
    "namespaces",
    metavar="NS",
    multiple=True,
    envvar="TP2_NAMESPACE",
    help="Watch only this namespace, and look up short names in the first one. Repeatable. [default: all]",
)
@click.option(
    "--dns",
    metavar="IP",
    type=Parsed("ip", settings.parse_address),
    multiple=True,
    help="Nameserver whose port 53 is captured. Repeatable. [default: those of /etc/resolv.conf]",
)
@click.option(
    "--fallback",
    metavar="IP[:PORT]",
    multiple=True,
    type=Parsed("address", lambda text: settings.parse_socket_address(text, 53)),
    help="Where names go that are not the cluster's. Repeatable. [default: the captured nameservers]",
)
@click.option(
    "--cluster-domain",
    metavar="DOMAIN",
    type=Parsed("domain", settings.parse_domain),
    default=settings.DEFAULT_CLUSTER_DOMAIN,
    show_default=True,
    help="The cluster's DNS domain.",
)
@click.option(
    "--exclude",
    metavar="NAME",
    type=Parsed("domain", settings.parse_domain),
    multiple=True,
    help="Name that is never the cluster's, nor is any below it. Repeatable.",
)
@click.option(
    "--remote",
    metavar="[USER@]HOST[:PORT]",
    type=Parsed("endpoint", settings.parse_remote),
    help="SSH endpoint with a way to the cluster's addresses. [default: the one in the cluster, see 'tp2 install']",
)
@click.option(
    "--via",
    type=click.Choice([via.value for via in Via]),
    default=Via.AUTO.value,
    show_default=True,
    help="The way to the installed endpoint: through the API server, or directly to its load balancer.",
)
@click.option(
    "--endpoint-namespace",
    metavar="NS",
    type=Parsed("namespace", settings.parse_namespace),
    default=settings.DEFAULT_ENDPOINT_NAMESPACE,
    show_default=True,
    help="Where the endpoint is installed.",
)
@click.option(
    "--dial-timeout",
    metavar="DURATION",
    type=Parsed("duration", settings.parse_duration),
    default="10s",
    show_default=True,
    help="How long a new connection waits while the tunnel reconnects.",
)
@click.option("--identity", "-i", type=EXISTING_FILE, help="SSH private key. [default: the SSH agent, then ~/.ssh]")
@click.option(
    "--host-key",
    metavar="FILE",
    type=Parsed("key", settings.read_host_key),
    help="Public key that the endpoint must present. [default: as in ~/.ssh/known_hosts]",
)
@click.option(
    "--socks",
    metavar="ADDR:PORT",
    type=Parsed("address", settings.parse_socket_address),
    default=str(settings.DEFAULT_SOCKS),
    show_default=True,
    help="Where the SOCKS5 proxy listens.",
)
@click.option(
    "--idle-timeout",
    metavar="DURATION",
    type=Parsed("duration", settings.parse_duration),
    default="10m",
    show_default=True,
    help="When an unused mapping goes.",
)
@click.option(
    "--ports",
    metavar="LOW-HIGH",
    type=Parsed("ports", settings.parse_ports),
    default="20000-29999",
    show_default=True,
    help="Local ports for mappings.",
)
@click.option("--detach", "-d", is_flag=True, help="Return when ready, and go on in the background.")
@click.option("--verbose", "-v", is_flag=True, help="Say what is done, a line for each DNS query included.")
def up(detach: bool, **options: Any) -> None:
    """Make the cluster reachable until Ctrl-C, or 'tp2 down'. Every option can be set as TP2_OPTION too."""
    from tp2 import start

    chosen = {**options, "mode": Mode(options["mode"]), "via": Via(options["via"])}
    raise SystemExit(start.up(Settings(**chosen), _runtime(), detach=detach))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print an object for programs.")
def mappings(as_json: bool) -> None:
    """Show which local port stands for which cluster address."""
    answer = client.ask(_runtime(), "mappings")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    from tp2 import screen

    screen.mappings(answer)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print an object for programs.")
def status(as_json: bool) -> None:
    """Show how the running tp2 is."""
    answer = client.ask(_runtime(), "status")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    from tp2 import screen

    screen.status(answer)


@cli.command()
def down() -> None:
    """Stop the running tp2, and return when everything of it is gone."""
    client.stop(_runtime())


def _cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options by which ``install`` and ``uninstall`` find their cluster."""
    for option in (
        click.option("--context", help="kubeconfig context. [default: the current one]"),
        click.option("--kubeconfig", type=EXISTING_FILE, help="kubeconfig file. [default: as kubectl]"),
        click.option(
            "--namespace",
            "-n",
            metavar="NS",
            type=Parsed("namespace", settings.parse_namespace),
            default=settings.DEFAULT_ENDPOINT_NAMESPACE,
            show_default=True,
            help="Where the endpoint is.",
        ),
    ):
        command = option(command)
    return command


@cli.command()
@_cluster_options
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
@_cluster_options
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
    from tp2.forward.privilege import calling_user

    configured = os.environ.get("TP2_RUNTIME_DIR")
    return RuntimeDirectory(Path(configured).absolute() if configured else default_directory(calling_user().uid))
