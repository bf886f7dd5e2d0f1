"""What a service manager is told about tp2: a systemd unit or a launchd property list, as text. Pure.

The service starts as root and names its user as sudo would (``SUDO_UID``): as after ``sudo tp2 up``, the helper alone
keeps root's rights, and the daemon becomes the user (:mod:`tp2.forward.privilege`).

Sources: systemd.service(5), systemd.exec(5), systemd.syntax(7), launchd.plist(5).
"""

from __future__ import annotations

import plistlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tp2.errors import ExitCode
from tp2.forward.privilege import User

#: The first words of every file that ``tp2 service install`` writes: it replaces and removes no other.
MARK: Final = "Written by 'tp2 service install', removed by 'tp2 service uninstall'."

LABEL: Final = "tp2.daemon"
"""The service's name for launchd."""

#: Where programs are looked for. The user's own directories hold many a credential plugin; they come last, so that
#: what root starts by its name is the system's.
_SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/bin:/snap/bin"

#: What root needs until the helper has given up all but the first, and the daemon has become the user:
#: to read the user's directories, to change user, and to give up rights for good.
CAPABILITIES: Final = ("CAP_NET_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")

#: Exit codes that starting again cannot mend.
_LASTING: Final = (ExitCode.USAGE, ExitCode.ALREADY_RUNNING)

_SYSTEMD: Final = """\
# {mark}
[Unit]
Description=tp2, a Kubernetes cluster's services by name, for {user}
Documentation=man:tp2(1)
Wants=network-online.target
After=network-online.target nss-lookup.target
# A laptop may be offline for days: it is tried again for ever.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
# RuntimeDirectory= would belong to root; the plus signs are for the right to give it away, which the service lacks.
ExecStartPre=+/bin/sh -c "exec install -d -o {uid} -g {gid} -m 0700 {runtime}"
ExecStart={command}
ExecStopPost=+/bin/rm -rf {runtime}
{environment}
LimitNOFILE=524288

# The daemon lets go of the rules in order, and the helper ends with it.
KillMode=mixed
TimeoutStartSec=120
TimeoutStopSec=20
SuccessExitStatus={interrupted}
Restart=on-failure
RestartSec=5
RestartPreventExitStatus={lasting}

# The user's home stays writable, since credential plugins keep their tokens there.
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
ProtectSystem=full
PrivateTmp=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Service:
    """``tp2 up`` as a service manager is to run it.

    :param command: the program and its arguments; the program's path is absolute.
    :param user: who it works for.
    :param runtime: the runtime directory, directly below ``/run`` or ``/var/run``.
    :param environment: what it needs besides what every service of its user gets.
    """

    command: tuple[str, ...]
    user: User
    runtime: Path
    environment: Mapping[str, str]

    def variables(self) -> dict[str, str]:
        """Return the whole environment."""
        home = str(self.user.home)
        sudo = {"SUDO_UID": str(self.user.uid), "SUDO_GID": str(self.user.gid), "SUDO_USER": self.user.name}
        return {
            "HOME": home,
            "PATH": f"{_SYSTEM_PATH}:{home}/.local/bin:{home}/bin",
            "TP2_RUNTIME_DIR": str(self.runtime),
            **(sudo if self.user.uid != 0 else {}),
            **self.environment,
        }


def systemd_unit(service: Service) -> str:
    """Return a unit for systemd's system manager: ready when tp2 says so, hardened, started again after a failure."""
    user = service.user
    return _SYSTEMD.format(
        mark=MARK,
        user=user.name.replace("%", "%%"),
        uid=user.uid,
        gid=user.gid,
        runtime=service.runtime,
        command=_systemd_command(service.command),
        environment="\n".join(
            f"Environment={_systemd_quoted(f'{name}={value}')}" for name, value in service.variables().items()
        ),
        interrupted=int(ExitCode.INTERRUPTED),
        lasting=" ".join(str(int(code)) for code in _LASTING),
        capabilities=" ".join(CAPABILITIES),
    )


def launchd_plist(service: Service) -> str:
    """Return a property list for a daemon of launchd's system domain; it is started again after a failure."""
    runtime = shlex.quote(str(service.runtime))
    # launchd makes no directories, and /var/run is empty after a boot.
    prepare = f"install -d -o {service.user.uid} -g {service.user.gid} -m 0700 {runtime}"
    description = {
        "Label": LABEL,
        "ProgramArguments": ["/bin/sh", "-c", f"{prepare} && exec {shlex.join(service.command)}"],
        "EnvironmentVariables": service.variables(),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ExitTimeOut": 20,
        "StandardOutPath": "/var/log/tp2.log",
        "StandardErrorPath": "/var/log/tp2.log",
        "Umask": 0o077,
    }
    head, newline, rest = plistlib.dumps(description, sort_keys=False).decode().partition("\n")
    return f"{head}{newline}<!-- {MARK} -->\n{rest}"


def _systemd_command(arguments: Sequence[str]) -> str:
    # Of a command line systemd expands variables too.
    return " ".join(_systemd_quoted(argument).replace("$", "$$") for argument in arguments)


def _systemd_quoted(text: str) -> str:
    if text and all(character.isalnum() or character in "-_./:=,@+" for character in text):
        return text
    escaped = "".join(
        f"\\x{ord(character):02x}"
        if ord(character) < 0x20 or ord(character) == 0x7F
        else {"\\": "\\\\", '"': '\\"', "%": "%%"}.get(character, character)
        for character in text
    )
    return f'"{escaped}"'
