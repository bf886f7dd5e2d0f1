"""What the helper may do, for whom, and what another user may do to it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.forward.kit import PATIENCE, Helper, Sockets, arrives, ruleset, running
from tp2.errors import ForwarderError
from tp2.forward import protocol
from tp2.forward.capabilities import CAP_NET_ADMIN, OWN_USER
from tp2.forward.protocol import CaptureDns, Cluster, Request, Update
from tp2.sandbox.namespaces import Host
from tp2.types import Destination, Redirect

WEB = Destination("10.96.0.1", 80)
WEB6 = Destination("fd00:10:96::1", 80)
SOMEBODY = 12345

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

#: pidfd_getfd(2), the same number on every architecture.
_PIDFD_GETFD = 438
_PTRACE_ATTACH = 16


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_helper_holds_cap_net_admin_and_nothing_else(host: Host) -> None:
    with running(host) as helper:
        found = status(helper.process.pid)
        only = f"{1 << CAP_NET_ADMIN:016x}"
        assert {name: found[name] for name in ("CapPrm", "CapEff")} == {"CapPrm": only, "CapEff": only}
        assert {found[name] for name in ("CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
        assert found["NoNewPrivs"] == "1"
        assert found["Threads"] == "1"


@as_root
def test_the_helper_is_a_user_that_nobody_else_is(host: Host) -> None:
    with running(host) as helper:
        found = status(helper.process.pid)
        assert found["Uid"].split() == found["Gid"].split() == [str(OWN_USER)] * 4
        assert found["Groups"] == ""


def test_in_a_user_namespace_of_one_user_the_helper_works_too() -> None:
    # As for whoever runs "tp2 demo" without root: user 0 there is they themselves.
    with Host("outer") as outer:
        prefix = ["unshare", "--user", "--map-root-user", "--net"]
        helper = Helper(outer, *prefix)
        try:
            assert protocol.decode_reply(helper.hello)["kind"] == "nftables"
            helper.ask(Cluster((WEB.address,), (), None))
            assert status(helper.process.pid)["CapEff"] == f"{1 << CAP_NET_ADMIN:016x}"
        finally:
            helper.close()


def test_without_the_privilege_the_helper_says_so(host: Host) -> None:
    helper = Helper(host, "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")
    assert b"grant CAP_NET_ADMIN" in helper.hello
    assert helper.process.wait(PATIENCE) == 1
    helper.close()


@as_root
def test_started_by_an_ordinary_user_the_helper_can_do_nothing(host: Host) -> None:
    # Modules first: an ordinary user need not be able to read this interpreter.
    parts = ", ".join(f"tp2.forward.{name}" for name in ("capabilities", "listeners", "nftables", "stopgap"))
    become = f"os.setgroups([]); os.setuid({SOMEBODY})"
    program = f"import os, {parts}; import tp2.forward.helper as helper; {become}; helper.main()"
    before = ruleset(host)
    helper = Helper(host, program=("-c", program))
    assert b"the capability CAP_NET_ADMIN is missing" in helper.hello
    assert helper.process.wait(PATIENCE) == 1
    assert ruleset(host) == before
    helper.close()


def requests(address: str | None = None) -> list[Request]:
    """Return a request of each kind that redirects to port 20000."""
    return [
        CaptureDns(("192.0.2.53",), 20000),
        CaptureDns(("2001:db8::53",), 20000),
        Update((Redirect(WEB, 20000, address),), ()),
        Update((Redirect(WEB6, 20000),), ()),
        Update((Redirect(Destination("10.96.0.9", 9), 20009), Redirect(WEB, 20000)), ()),
        Cluster((WEB.address,), (), 20000),
        Cluster((WEB6.address,), (), 20000),
        Cluster((), (), 20000),
    ]


def test_nothing_is_redirected_to_a_port_that_nobody_listens_on(host: Host, sockets: Sockets) -> None:
    sockets.listen("127.0.0.1", 20009)
    with running(host) as helper:
        before = ruleset(host)
        for request in requests()[:-1]:
            with pytest.raises(ForwarderError, match="nobody listens there"):
                helper.ask(request)
            assert ruleset(host) == before


@as_root
def test_nothing_is_redirected_to_another_users_socket(host: Host, sockets: Sockets) -> None:
    sockets.listen("127.0.0.1", 20009)
    for address in ("127.0.0.1", "::1"):
        sockets.listen(address, 20000, user=SOMEBODY)
        sockets.udp(address, 20000, user=SOMEBODY)
    with running(host) as helper:
        before = ruleset(host)
        for request in requests():
            with pytest.raises(ForwarderError, match=f"user {SOMEBODY} listens there"):
                helper.ask(request)
            assert ruleset(host) == before


@as_root
def test_a_further_loopback_address_has_to_be_listened_on_by_itself(host: Host, sockets: Sockets) -> None:
    sockets.listen("127.0.0.1", 20000)
    sockets.listen("127.0.0.3", 20000, user=SOMEBODY)
    with running(host) as helper:
        for address, why in (("127.0.0.2", "nobody"), ("127.0.0.3", f"user {SOMEBODY}")):
            with pytest.raises(ForwarderError, match=f"{why} listens there"):
                helper.ask(Update((Redirect(WEB, 20000, address),), ()))


def test_one_family_is_no_licence_for_the_other(host: Host, sockets: Sockets) -> None:
    sockets.listen("127.0.0.1", 20000)
    with running(host) as helper:
        helper.ask(Cluster((WEB.address,), (), 20000))
        with pytest.raises(ForwarderError, match="nobody listens there"):
            helper.ask(Cluster((WEB6.address,), (), 20000))


def test_a_port_for_addresses_that_are_there_already_is_checked_too(host: Host, sockets: Sockets) -> None:
    sockets.listen("127.0.0.1", 20000)
    with running(host) as helper:
        helper.ask(Cluster((WEB.address, WEB6.address), (), None))
        for port in (20000, 20001):
            with pytest.raises(ForwarderError, match="nobody listens there"):
                helper.ask(Cluster((), (), port))


# Asks, as a user, over a channel it was given, for a redirect of 10.96.0.1:80 to a port.
_ASK = """
import os, socket, sys
from tp2.forward import protocol
from tp2.types import Destination, Redirect
os.setuid(int(sys.argv[1]))
channel = socket.socket(fileno=0)
request = protocol.Update((Redirect(Destination("10.96.0.1", 80), int(sys.argv[2])),), ())
channel.sendall(protocol.encode_request(request))
"""


@as_root
def test_the_listener_has_to_be_of_the_user_who_asks(host: Host, sockets: Sockets) -> None:
    # As under sudo: root makes the channel, and the daemon then becomes the user.
    theirs = sockets.listen("127.0.0.1", 20000, user=SOMEBODY)
    sockets.listen("127.0.0.1", 20001)
    with running(host) as helper:

        def ask(port: int) -> None:
            command = [sys.executable, "-c", _ASK, str(SOMEBODY), str(port)]
            subprocess.run(command, stdin=helper.channel.fileno(), check=True, timeout=PATIENCE)
            protocol.decode_reply(helper.lines.readline())

        with pytest.raises(ForwarderError, match=rf"user 0 listens there, and not tp2's user \({SOMEBODY}\)"):
            ask(20001)
        ask(20000)
        arrives(sockets.connect(WEB), theirs)


def _as_somebody(attempt: Callable[[], None]) -> int:
    """Run *attempt* as another user in a process of its own; return the error number of what it came to."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.setgroups([])
            os.setgid(SOMEBODY)
            os.setuid(SOMEBODY)
            attempt()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@as_root
def test_another_user_can_neither_take_the_helpers_channel_nor_stop_it(host: Host) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with running(host) as helper:
        pid = helper.process.pid
        descriptors = [int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()]

        def checked(result: int) -> None:
            if result < 0:
                raise OSError(ctypes.get_errno(), "refused")

        def take(descriptor: int) -> None:
            checked(libc.syscall(_PIDFD_GETFD, os.pidfd_open(pid), descriptor, 0))

        for descriptor in descriptors:
            assert _as_somebody(lambda number=descriptor: take(number)) == 1  # type: ignore[misc]  # EPERM
        assert _as_somebody(lambda: checked(libc.ptrace(_PTRACE_ATTACH, pid, 0, 0))) == 1
        assert _as_somebody(lambda: os.kill(pid, signal.SIGKILL)) == 1
        assert _as_somebody(lambda: print(*Path(f"/proc/{pid}/fd").iterdir())) == 13  # EACCES
        assert _as_somebody(lambda: print(Path(f"/proc/{pid}/mem").read_bytes())) == 13
        helper.ask(protocol.Refused())


def test_many_descriptors_without_a_request_end_the_helper(host: Host) -> None:
    with running(host) as helper:
        for _ in range(3):
            socket.send_fds(helper.channel, [b" "], [0] * 10)
        assert helper.process.wait(PATIENCE) == 2


_BECOME = """
import os
from pathlib import Path
from tp2.forward.privilege import User, become
# macOS has neither.
del os.setresuid, os.setresgid
become(User(65534, 65534, "nobody", Path("/")))
print("".join(line for line in open("/proc/self/status") if line.startswith(("Uid", "Gid", "CapPrm"))), end="")
try:
    os.seteuid(0)
except PermissionError:
    print("for good")
"""


@as_root
def test_whoever_gave_up_root_does_not_get_it_back() -> None:
    done = subprocess.run([sys.executable, "-c", _BECOME], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Uid:", *["65534"] * 4, "Gid:", *["65534"] * 4, "CapPrm:", "0" * 16, "for", "good"]
