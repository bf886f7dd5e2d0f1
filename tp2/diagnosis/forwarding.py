"""What tp2 needs of this machine before anything else: rules, the privilege to set them, files, ports, a directory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from tp2.diagnosis.machine import Machine
from tp2.diagnosis.model import Finding, failed, failed_by, not_applicable, ok, warning
from tp2.diagnosis.running import in_thread
from tp2.errors import Tp2Error
from tp2.forward.platforms import choose
from tp2.runtime import RuntimeDirectory
from tp2.settings import Settings
from tp2.system import limits

if TYPE_CHECKING:
    from tp2.forward.libnftables import Session

#: With fewer files there is hardly room for a page with its pictures.
LEAST_FILES: Final = 256
FEW_FILES: Final = 4096

_CAP_NET_ADMIN: Final = 12

#: libnftables keeps what is not its caller's in globals: one thread at a time.
_ONE_AT_A_TIME: Final = threading.Lock()


def _session() -> Session:
    from tp2.forward.libnftables import Session

    return Session()


class Forwarding:
    """The checks.

    :param status: what a running tp2 says of itself; None if none runs.
    :param session: opens libnftables.
    """

    def __init__(
        self,
        machine: Machine,
        settings: Settings,
        runtime: RuntimeDirectory,
        status: dict[str, Any] | None,
        session: Callable[[], Session] = _session,
    ) -> None:
        self._machine = machine
        self._settings = settings
        self._runtime = runtime
        self._status = status
        self._session = session

    async def forwarder(self) -> Finding:
        """Whether there are rules, and whether they can do what they have to."""
        try:
            kind = choose(self._settings.forwarder)
        except Tp2Error as error:
            return failed_by(error)
        if kind == "pf":
            if self._machine.is_linux() and self._machine.which("pfctl") is None:
                from tp2.forward.pfctl import no_pfctl

                return failed_by(no_pfctl())
            return ok("pf rules")
        return await in_thread(self._nftables)

    def _nftables(self) -> Finding:
        with _ONE_AT_A_TIME:
            return self._try_nftables()

    def _try_nftables(self) -> Finding:
        session = self._session()
        try:
            if self._may_set_rules() and self._status is None:
                from tp2.forward.nftables_needs import lack

                if (missing := lack(session)) is not None:
                    return failed_by(missing)
                able = "which can do what they have to"
            else:
                able = "in use" if self._status else "which only root can try out"
        finally:
            session.close()
        return ok(f"nftables rules, {able}")

    async def stopgap(self) -> Finding:
        """Whether addresses that have no route can be captured."""
        if not self._machine.is_linux():
            return not_applicable("a TUN device", "only Linux needs one")
        if self._machine.path("/dev/net/tun").exists():
            return ok("/dev/net/tun, for captured addresses that have no route")
        return warning(
            "captured addresses that have no route cannot be reached",
            "there is no /dev/net/tun, so that a machine that is offline, or has no IPv6, has no way to them at all",
            "as root: modprobe tun; in a container, pass the device in (--device /dev/net/tun)",
        )

    async def privilege(self) -> Finding:
        """Whether the helper can have what it needs."""
        if self._status is not None:
            return ok(f"process {self._status['forwarder']['helper_pid']} holds it")
        if self._machine.uid == 0:
            if not self._machine.is_linux() or self._may_set_rules():
                return ok("this is root")
            return failed(
                "forwarding rules may not be set",
                "this is root, but without the capability CAP_NET_ADMIN",
                "in a container, grant it: --cap-add NET_ADMIN",
            )
        sudo = self._machine.which("sudo")
        if sudo is None:
            return failed(
                "forwarding rules may not be set",
                "changing them needs root, this is an ordinary user, and there is no sudo",
                "run tp2 up as root, or install sudo and allow this user to run it",
            )
        try:
            ran = await self._machine.run(sudo, "--non-interactive", "true")
        except (OSError, TimeoutError) as error:
            return failed("forwarding rules may not be set", f"sudo does not work: {_text(error)}", "see 'sudo true'")
        if ran.code == 0:
            return ok("sudo, without a password")
        words = " ".join(ran.errors.split())
        if "password" in words:
            return ok("sudo, which will ask for a password")
        return failed(
            "forwarding rules may not be set",
            words or f"sudo ended with {ran.code}",
            "have an administrator allow this user to run sudo, or run tp2 up as root",
        )

    async def open_files(self) -> Finding:
        """Whether as many files may be open as there are mappings and connections."""
        soft, hard = self._machine.limit()
        most = soft if self._machine.uid != 0 and hard < soft else hard
        if most < 0 or most > 1 << 40:
            return ok("as many open files as wanted")
        room = limits.most_mappings(most)
        remedy = "raise it: ulimit -Hn, LimitNOFILE of a service, or nofile in /etc/security/limits.conf"
        if most < LEAST_FILES:
            return failed("too few files may be open", f"at most {most}, which is room for {room} mappings", remedy)
        if most < FEW_FILES:
            return warning("few files may be open", f"at most {most}, which is room for {room} mappings", remedy)
        return ok(f"{most} files may be open: room for {room} mappings")

    async def ports(self) -> Finding:
        """Whether the ports that tp2 listens on are free."""
        socks, ports = self._settings.socks, self._settings.ports
        if self._status is not None:
            return ok(f"{self._status['socks']['listen']} is tp2's")
        error = self._machine.bind(*socks)
        if error is not None and error.errno == errno.EADDRINUSE:
            who = await in_thread(lambda: self._machine.listener(*socks))
            return failed(
                f"the port of the SOCKS5 proxy, {socks}, is taken",
                f"process {who.pid} ({who.name}) listens there" if who else "another program listens there",
                "end that program, or give tp2 another address: --socks 127.0.0.1:1081",
            )
        if error is not None:
            return failed(
                f"tp2 cannot listen on {socks}",
                error.strerror or str(error),
                "give it an address of this machine: --socks 127.0.0.1:1080",
            )
        if self._machine.bind("127.0.0.1", ports[0]) and self._machine.bind("127.0.0.1", ports[len(ports) // 2]):
            return warning(
                "some of the local ports for mappings are taken",
                f"other programs listen on {ports[0]} and {ports[len(ports) // 2]} already",
                "give tp2 others if it runs out of them: --ports LOW-HIGH",
            )
        return ok(f"{socks} for the SOCKS5 proxy, {ports[0]} to {ports[-1]} for mappings")

    async def directory(self) -> Finding:
        """Whether tp2 can have its runtime directory, and what is in it."""
        path = self._runtime.path
        try:
            status = path.lstat()
        except FileNotFoundError:
            parent = next((each for each in path.parents if each.exists()), path)
            if os.access(parent, os.W_OK):
                return ok(f"{path}, which is not there yet")
            return self._unusable(f"{parent} may not be written")
        except OSError as error:
            return self._unusable(_text(error))
        if not stat.S_ISDIR(status.st_mode):
            return self._unusable("it is not a directory")
        # Root goes on as the user who called.
        if self._machine.uid not in (0, status.st_uid):
            return self._unusable(f"it belongs to user {status.st_uid}, and this is user {self._machine.uid}")
        left = [name for name in ("control.sock", "lock") if (path / name).exists()]
        if self._status is None and self._runtime.holder() is None and left:
            return warning(
                "a tp2 that was killed has left files behind",
                f"nobody holds {path}, which has {' and '.join(left)}",
                f"nothing has to be done: the next 'tp2 up' replaces them; 'rm -r {path}' removes them",
            )
        return ok(str(path))

    def _unusable(self, why: str) -> Finding:
        return failed(
            f"the runtime directory {self._runtime.path} cannot be used",
            why,
            "set TP2_RUNTIME_DIR to a directory of this user's own",
        )

    def _may_set_rules(self) -> bool:
        return has_net_admin(self._machine)


def has_net_admin(machine: Machine) -> bool:
    """Whether this process has CAP_NET_ADMIN (proc(5), CapEff)."""
    for line in (machine.read("/proc/self/status") or "").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1)
    return False


def has_table(machine: Machine, name: str, session: Callable[[], Session] = _session) -> bool:
    """Whether there is an nftables table of family inet with this name; False if that may not be asked.

    Asked by trying to create it, in a transaction that deletes it again: to list tables that have an owner makes
    libnftables 1.0.6, in its JSON, overwrite memory that is not its own.
    """
    if not machine.is_linux() or not has_net_admin(machine):
        return False
    try:
        with _ONE_AT_A_TIME, contextlib.closing(session()) as opened:
            error = opened.run(f"create table inet {name}\ndelete table inet {name}\n")
    except Tp2Error:
        return False
    # EEXIST; or EPERM, where somebody else owns it.
    return error is not None and ("exists" in error or "permitted" in error)


def _text(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
