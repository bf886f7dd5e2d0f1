"""``tp2 service``: takes the options of ``tp2 up``, and hands them on as they were given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

#: A service does not go to the background.
_NOT_FOR_SERVICES = ("detach",)

_ARGUMENTS = "tp2.service.arguments"


class _AsGiven(click.Command):
    """A command that keeps the words of its command line beside what they were parsed to."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


def group(up: click.Command) -> click.Group:
    """Return ``tp2 service``; *up* is the command whose options its services are given."""
    options = [param for param in up.params if param.name not in _NOT_FOR_SERVICES]

    @click.group("service")
    def service() -> None:
        """Start tp2 with the machine, kept by systemd or launchd."""

    # The same prefix as that of `up`, so that TP2_REMOTE and its like count here too.
    @service.command("install", cls=_AsGiven, context_settings={"auto_envvar_prefix": "TP2"})
    @click.option("--print", "print_only", is_flag=True, help="Print what would be written, and change nothing.")
    @click.option("--start/--no-start", default=True, help="Start it now too, and wait until it is ready. [default]")
    @click.option(
        "--trust-installation",
        "trusting",
        is_flag=True,
        help="Accept that tp2 is installed where others than root can change it: they could become root.",
    )
    @click.pass_context
    def install(ctx: click.Context, /, print_only: bool, start: bool, trusting: bool, **_: Any) -> None:
        """Have tp2 started with the machine, for the user who called sudo, with these options of 'tp2 up'.

        Safe to repeat: the new options replace the former ones. If the service does not start, all is as before.
        Keys in an SSH agent are out of its reach: name one without a passphrase with --identity.
        """
        from tp2.service import service as work

        given = list(_given(ctx, options))
        if print_only:
            click.echo(work.text(given), nl=False)
        else:
            work.install(given, start=start, trusting=trusting, say=click.echo)

    install.params += options

    @service.command("uninstall")
    def uninstall() -> None:
        """Stop the service, and leave nothing of it."""
        from tp2.service import service as work

        work.uninstall(say=click.echo)

    return service


def _given(ctx: click.Context, options: list[click.Parameter]) -> Iterator[str]:
    """The options on the command line and in the environment, whatever directory they are read in."""
    words, _, _ = ctx.command.make_parser(ctx).parse_args(list(ctx.meta[_ARGUMENTS]))
    for option in options:
        value = words.get(str(option.name))
        if value is None:
            value = option.value_from_envvar(ctx)
        name = max(option.opts, key=len)
        if isinstance(option, click.Option) and option.is_flag:
            if value is not None:
                # Said either way, so that a configuration file has no say in it.
                yield name if click.BOOL(value) else max(option.secondary_opts, key=len)
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is not None:
                yield f"{name}={_wherever(option, str(each))}"


def _wherever(option: click.Parameter, value: str) -> str:
    """Return a file's absolute path; other values as they are."""
    path = Path(value).expanduser()
    # A host key may be a file or the key itself.
    is_file = isinstance(option.type, click.Path) or (option.name == "host_key" and path.is_file())
    return str(path.absolute()) if is_file else value
