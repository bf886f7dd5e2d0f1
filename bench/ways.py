"""The contenders of the byte path: ways from the laptop to the cluster's services, as a person would set them up.

Each runs in a :class:`~bench.site.Site` of its own, from its start to the end of the bench. :data:`WAYS` says which
there are; to add one is to add a line there.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from bench.contenders import PATIENCE, Tp2
from bench.site import DNS, IPERF_NAME, SERVICES, WEB_NAME, Carried, Site
from tp2.errors import Tp2Error
from tp2.sandbox.box import ENDPOINT_POD, NAMESERVER, NODE, SSH_PORT

#: The peers that come from PyPI; scripts/bench makes it.
PEERS: Final = Path(__file__).parent.parent / ".venv-bench" / "bin"


_REDIRECT: Final = """
table ip redsocks {{
    chain output {{
        type nat hook output priority -100;
        ip daddr {services} meta l4proto tcp redirect to :{port}
    }}
}}
"""


class NotCarried(Tp2Error):
    """A contender did not carry what was sent through it."""

    def __init__(self, who: str, why: str) -> None:
        super().__init__(f"{who} did not carry the traffic", why, "there is no figure for this; see what it says")


class Way:
    """A contender that is up.

    ``resolves`` says whether it gives names of the cluster an address, so that DNS can be asked through it.
    """

    resolves: ClassVar[bool] = False
    over_ssh: ClassVar[bool] = True

    def __init__(self, name: str, site: Site) -> None:
        self.name = name
        self.site = site
        self._log = site.directory / "way.log"
        self._processes: list[subprocess.Popen[Any]] = []

    def processes(self) -> list[int]:
        """Return the ids of its processes: on the laptop, and those of the SSH server that it talks to."""
        box = self.site.box
        roots = [process.pid for process in self._processes]
        if self.over_ssh:
            roots.append(box.sshd.pid)
        return [pid for root in roots for pid in box.laptop.family(root)]

    def check(self, carried: Carried, *, up: int = 0, down: int = 0) -> None:
        """Accept that *up* and *down* bytes of payload were among those that were *carried* meanwhile.

        :raises NotCarried: they were not, or something else carried them.
        """
        if self.over_ssh:
            seen = {
                "up to the SSH server": (carried.up_tunnel, up),
                "from it to the service": (carried.up_local, up),
                "down from the SSH server": (carried.down_tunnel, down),
                "to it from the service": (carried.down_local, down),
            }
            astray = carried.up_straight + carried.down_straight
        else:
            seen = {"up": (carried.up_straight, up), "down": (carried.down_straight, down)}
            astray = carried.up_local + carried.down_local
        for where, (counted, wanted) in seen.items():
            if counted < wanted:
                raise NotCarried(self.name, f"{wanted} bytes were sent {where}, and {counted} came")
        if astray:
            raise NotCarried(self.name, f"{astray} bytes went another way")

    def stop(self) -> None:
        """End it."""
        for process in reversed(self._processes):
            process.terminate()
        Way.wait(self)

    def wait(self) -> None:
        """Return when it has ended, which somebody else told it to."""
        for process in self._processes:
            process.wait(PATIENCE)

    def _start(self, *command: str | Path, **options: Any) -> subprocess.Popen[Any]:
        with self._log.open("ab") as log:
            process = self.site.box.laptop.start(
                *command,
                env=self.site.box.environment,
                stdin=subprocess.DEVNULL,
                **{"stdout": log, "stderr": log, **options},
            )
        self._processes.append(process)
        return process

    def _failed(self, what: str) -> Tp2Error:
        return Tp2Error(what, f"it says:\n{self._log.read_text(encoding='utf-8')}", "look into that, then try again")


class Straight(Way):
    """Nothing between: the internet has a route to the cluster's services."""

    over_ssh = False

    def __init__(self, name: str, site: Site) -> None:
        super().__init__(name, site)
        site.box.internet.run("ip", "route", "replace", SERVICES, "via", NODE)


class Redsocks(Way):
    """redsocks, which is redirected to, and OpenSSH's ``ssh -D``, which it asks for each connection."""

    SOCKS_PORT: Final = 1080
    PORT: Final = 12345

    def __init__(self, name: str, site: Site, *options: str) -> None:
        """:param options: more of ssh(1)'s."""
        super().__init__(name, site)
        ssh = ssh_command(site, "-N", "-D", f"127.0.0.1:{self.SOCKS_PORT}", *options)
        self._start(*ssh, f"{user()}@{NODE}")
        config = site.directory / "redsocks.conf"
        config.write_text(
            "base { log_debug = off; log_info = off; log = stderr; daemon = off; redirector = iptables; }\n"
            f"redsocks {{ local_ip = 127.0.0.1; local_port = {self.PORT}; "
            f"ip = 127.0.0.1; port = {self.SOCKS_PORT}; type = socks5; }}\n",
            encoding="ascii",
        )
        self._start("redsocks", "-c", config)
        laptop = site.box.laptop
        laptop.wait_listening("127.0.0.1", self.SOCKS_PORT)
        laptop.wait_listening("127.0.0.1", self.PORT)
        laptop.run(*("nft", "-f", "-"), stdin=_REDIRECT.format(services=SERVICES, port=self.PORT))

    def stop(self) -> None:
        """End both of them."""
        self.site.box.laptop.run("nft", "delete", "table", "ip", "redsocks")
        super().stop()


class Sshuttle(Way):
    """sshuttle with its nft method, and its DNS."""

    resolves = True

    def __init__(self, name: str, site: Site) -> None:
        super().__init__(name, site)
        began = time.monotonic()
        self._start(*sshuttle_command(site))
        laptop = site.box.laptop
        while not re.search(r"redirect", laptop.run("nft", "list", "ruleset")):
            if self._processes[0].poll() is not None or time.monotonic() > began + PATIENCE:
                raise self._failed("sshuttle did not come up")
            time.sleep(0.02)


class Tp2Way(Way):
    """``tp2 up``, with more of its options.

    :param installed: whether it goes to the endpoint that is installed in the cluster, through the API server.
    """

    resolves = True

    def __init__(self, name: str, site: Site, *options: str, installed: bool = False) -> None:
        super().__init__(name, site)
        self._installed = installed
        self.tp2 = Tp2(site.box, *options, installed=installed)
        for wanted in (WEB_NAME, IPERF_NAME):
            site.box.laptop.run("getent", "ahostsv4", wanted)

    def processes(self) -> list[int]:
        """The daemon, its helper, and the SSH server. The sandbox's API server is not a contender's."""
        box = self.site.box
        if not self._installed:
            return [*box.laptop.family(self.tp2.pid), *super().processes()]
        return [*box.laptop.family(self.tp2.pid), *box.endpoint_processes(ENDPOINT_POD)]

    def stop(self) -> None:
        """End it."""
        self.tp2.stop()
        super().stop()

    def wait(self) -> None:
        """Return when it has ended, and well."""
        self.tp2.wait()


class Tp2Upstream(Tp2Way):
    """``tp2 up --socks-upstream``, and the ``ssh -D`` that it hands connections to."""

    PORT: Final = 1090

    def __init__(self, name: str, site: Site) -> None:
        proxy = f"127.0.0.1:{self.PORT}"
        ssh = site.box.laptop.start(
            *ssh_command(site, "-N", "-D", proxy),
            f"{user()}@{NODE}",
            env=site.box.environment,
            stdin=subprocess.DEVNULL,
        )
        site.box.laptop.wait_listening("127.0.0.1", self.PORT)
        super().__init__(name, site, "--socks-upstream", proxy, installed=True)
        self._installed = False
        self._processes.append(ssh)


#: Starts a contender, given its name, and returns when it is up.
Start = Callable[[str, Site], Way]

STRAIGHT: Final = "nothing between"
REDSOCKS: Final = "redsocks + ssh -D"
SSHUTTLE: Final = "sshuttle"
TP2: Final = "tp2 portmap"
ORIGDST: Final = "tp2 origdst"
API: Final = "tp2 through the API"
UPSTREAM: Final = "tp2 + ssh -D"

#: The contenders, in the order of the table.
WAYS: Final[dict[str, Start]] = {
    STRAIGHT: Straight,
    REDSOCKS: Redsocks,
    SSHUTTLE: Sshuttle,
    TP2: Tp2Way,
    ORIGDST: lambda name, site: Tp2Way(name, site, "--mode", "origdst"),
    API: lambda name, site: Tp2Way(name, site, installed=True),
    UPSTREAM: Tp2Upstream,
}


def user() -> str:
    """Return the name to log in as."""
    return pwd.getpwuid(os.getuid()).pw_name


def ssh_command(site: Site, *options: str) -> Sequence[str]:
    """Return an ssh(1) that can log in at the endpoint, as a person would have it in ``~/.ssh``."""
    known = site.directory / "known_hosts"
    if not known.exists():
        known.write_text(f"[{NODE}]:{SSH_PORT} {site.box.host_key.read_text(encoding='ascii')}", encoding="ascii")
    files = (f"UserKnownHostsFile={known}", f"IdentityFile={site.box.identity}", "IdentitiesOnly=yes", "BatchMode=yes")
    return ["ssh", "-F", "none", "-p", str(SSH_PORT), *(word for file in files for word in ("-o", file)), *options]


def sshuttle_command(site: Site) -> Sequence[str]:
    """Return the sshuttle that leads the cluster's services and its DNS there."""
    return [
        str(PEERS / "sshuttle"),
        *("--method", "nft", "--dns", "--ns-hosts", NAMESERVER, "--to-ns", DNS),
        *("--ssh-cmd", " ".join(ssh_command(site)), "--remote", f"{user()}@{NODE}:{SSH_PORT}"),
        SERVICES,
    ]
