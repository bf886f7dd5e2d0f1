"""The options that several commands have, and the forms of their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from tp2 import settings
from tp2.errors import Tp2Error
from tp2.settings import Mode, Rules, Settings, Via
from tp2.terminal import completion
from tp2.types import DNS_PORT

_Command = TypeVar("_Command", bound=Callable[..., Any])


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

_RUNNING: Final = (
    click.option(
        "--mode",
        type=click.Choice([mode.value for mode in Mode]),
        default=Mode.PORTMAP.value,
        show_default=True,
        help="How a connection's destination is known: a local port each, or the kernel's word for it.",
    ),
    click.option(
        "--kubeconfig", type=EXISTING_FILE, help="kubeconfig file. [default: KUBECONFIG, then ~/.kube/config]"
    ),
    click.option(
        "--context",
        help="kubeconfig context. [default: the current one]",
        shell_complete=completion.contexts,
    ),
    click.option(
        "--namespace",
        "-n",
        "namespaces",
        metavar="NS",
        multiple=True,
        shell_complete=completion.namespaces,
        envvar="TP2_NAMESPACE",
        help="Watch only this namespace, and look up short names in the first one. Repeatable. [default: all]",
    ),
    click.option(
        "--dns",
        metavar="IP",
        type=Parsed("ip", settings.parse_address),
        multiple=True,
        help="Nameserver whose port 53 is captured. Repeatable. [default: those of /etc/resolv.conf]",
    ),
    click.option(
        "--fallback",
        metavar="IP[:PORT]",
        multiple=True,
        type=Parsed("address", lambda text: settings.parse_socket_address(text, DNS_PORT)),
        help="Where names go that are not the cluster's. Repeatable. [default: the captured nameservers]",
    ),
    click.option(
        "--cluster-domain",
        metavar="DOMAIN",
        type=Parsed("domain", settings.parse_domain),
        default=settings.DEFAULT_CLUSTER_DOMAIN,
        show_default=True,
        help="The cluster's DNS domain.",
    ),
    click.option(
        "--exclude",
        metavar="NAME|CIDR",
        type=Parsed("exclusion", settings.parse_exclusion),
        multiple=True,
        help="Name that is never the cluster's, nor is any below it; or network whose addresses are not captured."
        " Repeatable.",
    ),
    click.option(
        "--remote",
        metavar="[USER@]HOST[:PORT]",
        type=Parsed("endpoint", settings.parse_remote),
        help="SSH endpoint with a way to the cluster's addresses. [default: the one in the cluster, see 'tp2 install']",
    ),
    click.option(
        "--via",
        type=click.Choice([via.value for via in Via]),
        default=Via.AUTO.value,
        show_default=True,
        help="The way to the installed endpoint: through the API server, or directly to its load balancer.",
    ),
    click.option(
        "--endpoint-namespace",
        metavar="NS",
        type=Parsed("namespace", settings.parse_namespace),
        default=settings.DEFAULT_ENDPOINT_NAMESPACE,
        show_default=True,
        help="Where the endpoint is installed.",
    ),
    click.option(
        "--socks-upstream",
        metavar="HOST:PORT",
        type=Parsed("proxy", settings.parse_proxy),
        help="SOCKS5 proxy that leads into the cluster, such as a running 'ssh -D', in place of an SSH endpoint.",
    ),
    click.option(
        "--dial-timeout",
        metavar="DURATION",
        type=Parsed("duration", settings.parse_duration),
        default="10s",
        show_default=True,
        help="How long a new connection waits while the tunnel reconnects.",
    ),
    click.option("--identity", "-i", type=EXISTING_FILE, help="SSH private key. [default: the SSH agent, then ~/.ssh]"),
    click.option(
        "--host-key",
        metavar="FILE",
        type=Parsed("key", settings.read_host_key),
        help="Public key that the endpoint must present. [default: as in ~/.ssh/known_hosts]",
    ),
    click.option(
        "--socks",
        metavar="ADDR:PORT",
        type=Parsed("address", settings.parse_socket_address),
        default=str(settings.DEFAULT_SOCKS),
        show_default=True,
        help="Where the SOCKS5 proxy listens.",
    ),
    click.option(
        "--socks-auth",
        metavar="FILE",
        type=EXISTING_FILE,
        help="File with the USERNAME:PASSWORD that SOCKS5 clients must give. [default: none is asked for]",
    ),
    click.option(
        "--idle-timeout",
        metavar="DURATION",
        type=Parsed("duration", settings.parse_duration),
        default="10m",
        show_default=True,
        help="When an unused mapping goes.",
    ),
    click.option(
        "--ports",
        metavar="LOW-HIGH",
        type=Parsed("ports", settings.parse_ports),
        default="20000-29999",
        show_default=True,
        help="Local ports for mappings.",
    ),
    click.option(
        "--containers",
        metavar="auto|off|IFACE",
        type=Parsed("interface", settings.parse_interface),
        multiple=True,
        default=(settings.AUTO,),
        help="Bridges whose containers reach the cluster too: those of container engines, none, or these. Repeatable."
        " [default: auto]",
    ),
    click.option(
        "--forwarder",
        type=click.Choice([rules.value for rules in Rules]),
        default=Rules.AUTO.value,
        show_default=True,
        help="Which forwarding rules are set: those that this machine has, nftables (Linux), or pf (macOS, FreeBSD).",
    ),
    click.option(
        "--metrics",
        metavar="ADDR:PORT",
        type=Parsed("address", settings.parse_listener),
        help="Let Prometheus read metrics there, at /metrics; a port alone is one of 127.0.0.1. [default: off]",
    ),
    click.option("--verbose/--no-verbose", "-v", help="Say what is done, a line for each DNS query included."),
)

_CLUSTER: Final = (
    click.option(
        "--context",
        help="kubeconfig context. [default: the current one]",
        shell_complete=completion.contexts,
    ),
    click.option("--kubeconfig", type=EXISTING_FILE, help="kubeconfig file. [default: as kubectl]"),
    click.option(
        "--namespace",
        "-n",
        metavar="NS",
        type=Parsed("namespace", settings.parse_namespace),
        default=settings.DEFAULT_ENDPOINT_NAMESPACE,
        show_default=True,
        help="Where the endpoint is.",
        shell_complete=completion.namespaces,
    ),
)


def running(command: _Command) -> _Command:
    """Add the options that say how tp2 runs, by the names of :class:`tp2.settings.Settings`."""
    return _with(_RUNNING, command)


def finding_a_cluster(command: _Command) -> _Command:
    """Add the options by which ``install`` and ``uninstall`` find their cluster."""
    return _with(_CLUSTER, command)


def as_settings(options: dict[str, Any]) -> Settings:
    """Return the settings that the options of :func:`running` mean."""
    words: dict[str, Callable[[str], Any]] = {"mode": Mode, "via": Via, "forwarder": Rules}
    return Settings(**{name: words[name](value) if name in words else value for name, value in options.items()})


def _with(options: Sequence[Callable[[_Command], _Command]], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command
