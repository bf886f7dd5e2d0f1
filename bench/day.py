"""A laptop's day: the things that happen to it, each to a sandbox in which tp2 runs.

An :class:`Event` does something, waits until its cause has done its work, takes the cause away, and says when that was.
What a person's programs see of it meanwhile is measured by :mod:`bench.recovery`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from tp2.errors import Tp2Error
from tp2.sandbox.box import ENDPOINT_POD, NAMESERVER, Sandbox, tp2_command

#: Seconds after which something that should happen has not.
PATIENCE: Final = 40.0

#: How long the laptop sleeps by its own clock, in seconds; it really stands still for a few.
SLEEP: Final = 600.0

OTHER_PORT: Final = 6444
_FAKETIME: Final = "libfaketimeMT.so.1"


@dataclass
class Day:
    """A sandbox, and the tp2 in it.

    :param installed: whether tp2 uses the endpoint that is installed in the cluster, through the API server.
    """

    box: Sandbox
    installed: bool = False
    _pods: int = field(default=1, init=False)
    _current: str = field(default=ENDPOINT_POD, init=False)

    def __post_init__(self) -> None:
        box = self.box
        self.kubeconfig = box.directory / "day-kubeconfig"
        self.plugin = box.directory / "plugin"
        self.clock = box.directory / "clock"
        self.clock.write_text("+0\n")
        self._other = box.start_api((), "other", OTHER_PORT)
        self.mend_plugin()
        self.use("one")

    @property
    def environment(self) -> dict[str, str]:
        """tp2's environment: the laptop's clock can be set."""
        found = sorted(Path("/usr/lib").glob(f"*/faketime/{_FAKETIME}"))
        if not found:
            raise Tp2Error("the laptop cannot sleep", f"there is no {_FAKETIME}", "install it: apt install faketime")
        return {
            **self.box.environment,
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock),
            "FAKETIME_NO_CACHE": "1",
            # While a machine sleeps, its monotonic clock stands still (clock_gettime(2)).
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Else threads that wait for each other, as watchdog's do, do so by the hundredth of a second.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }

    def command(self) -> list[str]:
        """The command that brings tp2 up."""
        options = ["--kubeconfig", str(self.kubeconfig)]
        return self.box.up_command(*options, installed=self.installed)

    def status(self) -> dict[str, Any]:
        """What ``tp2 status`` says."""
        answer: dict[str, Any] = json.loads(
            # Its exit code says how tp2 is, and it need not be well.
            self.box.laptop.run(*tp2_command("status", "--json"), env=self.box.environment, check=False)
        )
        return answer

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until a *condition* holds of the status."""
        deadline = time.monotonic() + PATIENCE
        while not condition(self.status()):
            if time.monotonic() > deadline:
                raise Tp2Error("tp2 does not notice what happened", str(self.status()), "this is a bug")
            time.sleep(0.02)

    def restart_other(self) -> None:
        """Let the other cluster have what the first one has now."""
        self._other.kill()
        self._other.wait()
        self._other = self.box.start_api(self.box.objects, "other", OTHER_PORT)

    def use(self, context: str) -> None:
        """Switch the kubeconfig's context, as ``kubectl config use-context`` does."""
        clusters, users, contexts = [], [], []
        for name, directory in (("one", "api"), ("two", "other")):
            single = yaml.safe_load((self.box.directory / directory / "kubeconfig").read_text())
            clusters.append({"name": name, "cluster": single["clusters"][0]["cluster"]})
            contexts.append({"name": name, "context": {"cluster": name, "user": name}})
            users.append({"name": name, "user": single["users"][0]["user"]})
        users[0]["user"] = {
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": str(self.plugin),
                "interactiveMode": "Never",
            }
        }
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": clusters,
            "users": users,
            "contexts": contexts,
            "current-context": context,
        }
        _replace(self.kubeconfig, yaml.safe_dump(content), 0o600)

    def stop_endpoint(self) -> None:
        """Kill the endpoint in use with its connections."""
        if self.installed:
            self.box.stop_endpoint(self._current)
        else:
            self.box.stop_sshd()

    def start_endpoint(self) -> None:
        """Start it again."""
        if self.installed:
            self.box.start_endpoint(self._current)
        else:
            self.box.start_sshd()

    def replace_pod(self) -> None:
        """Put another pod in the place of the endpoint's, the new one first, as a rollout does."""
        self._pods += 1
        former, self._current = self._current, f"tp2-endpoint-{self._pods}"
        pod = self.box.start_endpoint(self._current, f"10.244.9.{self._pods}")
        self.box.create(pod)
        old = next(item for item in self.box.objects if item["metadata"]["name"] == former)
        self.box.delete(old)
        self.box.objects[:] = [item for item in self.box.objects if item is not old] + [pod]
        self.box.stop_endpoint(former)

    def expire_credentials(self) -> None:
        """The token is good no more; the plugin has the next one."""
        token = self.box.directory / "api" / "token"
        _replace(token, f"{token.read_text()}x", 0o600)
        os.kill(self.box.api.pid, signal.SIGHUP)

    def mend_plugin(self) -> None:
        """Let the credential plugin do its work."""
        self.set_plugin(f'token="$(cat {self.box.directory}/api/token)"')

    def set_plugin(self, script: str) -> None:
        """Let the credential plugin do something else first, and then say ``$token``."""
        answer = (
            '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"\'"$token"\'"}}'
        )
        _replace(self.plugin, f"#!/bin/sh\n{script}\necho '{answer}'\n", 0o755)


class Event(NamedTuple):
    """Something that happens to a laptop. ``happen`` returns when its cause was gone, on the monotonic clock."""

    name: str
    happen: Callable[[Day], float]


def ssh_is_killed(day: Day) -> float:
    """The SSH server is killed with its sessions, and started again."""
    day.stop_endpoint()
    day.start_endpoint()
    return time.monotonic()


def ssh_is_away(day: Day) -> float:
    """The same, but it takes three seconds to come back."""
    day.stop_endpoint()
    time.sleep(3)
    day.start_endpoint()
    return time.monotonic()


def pod_is_replaced(day: Day) -> float:
    """The endpoint's pod is replaced by another one, with another address and another key."""
    if day.installed:
        day.replace_pod()
    else:
        day.stop_endpoint()
        day.start_endpoint()
    return time.monotonic()


def api_restarts(day: Day) -> float:
    """The Kubernetes API server is killed and started again."""
    day.box.restart_api()
    return time.monotonic()


def context_is_switched(day: Day) -> float:
    """The context is switched to another cluster, which has the same names."""
    day.restart_other()
    day.use("two")
    return time.monotonic()


def context_is_switched_back(day: Day) -> float:
    """And back."""
    day.use("one")
    return time.monotonic()


def credentials_expire(day: Day) -> float:
    """The API server takes the former token no more."""
    day.expire_credentials()
    return time.monotonic()


def _with_plugin(script: str) -> Callable[[Day], float]:
    def happen(day: Day) -> float:
        day.set_plugin(script)
        day.expire_credentials()
        day.until(lambda status: not status["cluster"]["synced"])
        day.mend_plugin()
        _end_plugins(day)
        gone = time.monotonic()
        day.until(lambda status: status["cluster"]["synced"])
        return gone

    return happen


def _end_plugins(day: Day) -> None:
    """End what hangs."""
    for pid, words in day.box.laptop.commands().items():
        if str(day.plugin).encode() in words:
            day.box.laptop.kill(*day.box.laptop.family(pid))


plugin_fails = _with_plugin("echo 'no session: log in first' >&2; exit 1")
plugin_hangs = _with_plugin("sleep 1000")
plugin_prints_garbage = _with_plugin("echo 'Welcome! You have 3 new messages.'; exit 0")


def laptop_sleeps(day: Day) -> float:
    """The laptop sleeps for ten minutes: nothing on it moves, the link is down, the other ends have long given up when
    it wakes, and its clock has moved on."""
    laptop = day.box.laptop
    pids = laptop.processes()
    laptop.shell("ip link set eth0 down")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    # What ten minutes do to a silent connection: the server drops it, and nobody is there to be told.
    day.stop_endpoint()
    day.start_endpoint()
    day.box.restart_api()
    slept = float(day.clock.read_text()) + SLEEP
    _replace(day.clock, f"+{slept:.0f}\n", 0o644)
    laptop.shell("ip link set eth0 up; ip route replace default via 192.0.2.1")
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return time.monotonic()


def network_changes(day: Day) -> float:
    """Another network: another address, another gateway, another nameserver, and no goodbye to the former one."""
    day.box.internet.shell("ip addr replace 192.0.2.129/25 dev laptop")
    day.box.start_nameserver("192.0.2.57")
    _join(day, "192.0.2.130/25", "192.0.2.129", "192.0.2.57")
    return time.monotonic()


def network_comes_back(day: Day) -> float:
    """And back to the first one."""
    _join(day, "192.0.2.10/24", "192.0.2.1", NAMESERVER)
    return time.monotonic()


def _join(day: Day, address: str, gateway: str, nameserver: str) -> None:
    """Join another network, as a network manager does: with a few messages to the kernel, and then the file."""
    commands = [
        "link set eth0 down",
        "addr flush dev eth0",
        f"addr add {address} dev eth0",
        "link set eth0 up",
        f"route replace default via {gateway}",
    ]
    day.box.laptop.run("ip", "-batch", "-", stdin="\n".join(commands))
    day.box.laptop.write_etc("resolv.conf", f"nameserver {nameserver}\n")


EVENTS: Final = (
    Event("ssh is killed", ssh_is_killed),
    Event("ssh is away for 3 s", ssh_is_away),
    Event("the endpoint pod is replaced", pod_is_replaced),
    Event("the API server restarts", api_restarts),
    Event("the context is switched", context_is_switched),
    Event("the context is switched back", context_is_switched_back),
    Event("credentials expire", credentials_expire),
    Event("the exec plugin fails", plugin_fails),
    Event("the exec plugin hangs", plugin_hangs),
    Event("the exec plugin prints garbage", plugin_prints_garbage),
    Event("the laptop sleeps for ten minutes", laptop_sleeps),
    Event("the network changes", network_changes),
    Event("the network comes back", network_comes_back),
)


def _replace(path: Path, text: str, mode: int) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.chmod(mode)
    shutil.move(new, path)
