"""Where the byte path is measured: a sandbox of its own for each contender, all of them alike.

In its cluster run nginx and iperf3's server, each on the address of a service, and dnsmasq as the cluster's DNS. The
kernel there counts what comes, by whom: from the SSH server on the same host, or from the laptop itself; and what the
SSH server, or the API server in front of it, exchanges with the laptop. That is how it is known who carried the bytes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from tp2.errors import Tp2Error
from tp2.sandbox.box import API_PORT, SSH_PORT, Sandbox
from tp2.sandbox.objects import endpoint_slice, namespace, service

#: The services, and the address of the cluster's DNS.
WEB: Final = "10.96.9.1"
IPERF: Final = "10.96.9.2"
DNS: Final = "10.96.0.10"
WEB_PORT: Final = 80
IPERF_PORT: Final = 5201
#: What people type for them.
WEB_NAME: Final = "web.bench.svc.cluster.local"
IPERF_NAME: Final = "iperf.bench.svc.cluster.local"
#: The networks that are led into the cluster.
SERVICES: Final = "10.96.0.0/16"

OBJECTS: Final = [
    namespace("default"),
    namespace("bench"),
    service("bench", "web", WEB, {"http": WEB_PORT}),
    endpoint_slice("bench", "web", {"web-a": "10.244.9.1"}, {"http": WEB_PORT}),
    service("bench", "iperf", IPERF, {"iperf": IPERF_PORT}),
    endpoint_slice("bench", "iperf", {"iperf-a": "10.244.9.2"}, {"iperf": IPERF_PORT}),
]

#: Seconds that something may take that should happen soon.
PATIENCE: Final = 30.0

#: What nginx answers: as long as a short answer of an API.
BODY: Final = "x" * 200

_NGINX: Final = """
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    keepalive_timeout 1h;
    client_body_temp_path {directory}/nginx; proxy_temp_path {directory}/nginx; fastcgi_temp_path {directory}/nginx;
    uwsgi_temp_path {directory}/nginx; scgi_temp_path {directory}/nginx;
    server {{ listen {web}:{port} backlog=4096; location / {{ default_type text/plain; return 200 {body}; }} }}
    server {{ listen 127.0.0.1:81; location / {{ stub_status; }} }}
}}
"""

# What a payload passes on its way, in both directions. Locally means: from a process on the cluster's host itself.
_COUNTERS: Final = f"""
table inet bench {{
    counter up_tunnel {{ }}
    counter down_tunnel {{ }}
    counter up_straight {{ }}
    counter down_straight {{ }}
    counter up_local {{ }}
    counter down_local {{ }}
    chain input {{
        type filter hook input priority 0;
        iif eth0 tcp dport {{ {SSH_PORT}, {API_PORT} }} counter name up_tunnel
        iif eth0 ip daddr {SERVICES} meta l4proto tcp counter name up_straight
        iif lo ip daddr {SERVICES} meta l4proto tcp counter name up_local
    }}
    chain output {{
        type filter hook output priority 0;
        oif eth0 tcp sport {{ {SSH_PORT}, {API_PORT} }} counter name down_tunnel
        oif eth0 ip saddr {SERVICES} meta l4proto tcp counter name down_straight
        oif lo ip saddr {SERVICES} meta l4proto tcp counter name down_local
    }}
}}
"""


class Carried(NamedTuple):
    """Bytes that the cluster's kernel saw, headers included, by direction and by way."""

    up_tunnel: int
    down_tunnel: int
    up_straight: int
    down_straight: int
    up_local: int
    down_local: int

    def since(self, before: Carried) -> Carried:
        """What has come since then."""
        return Carried(*(now - then for now, then in zip(self, before, strict=True)))


class Site:
    """A sandbox with its programs; entering builds it, leaving leaves nothing."""

    box: Sandbox

    def __init__(self) -> None:
        self._delay: subprocess.Popen[bytes] | None = None
        self._questions = 0

    def __enter__(self) -> Site:
        with ExitStack() as stack:
            self.box = stack.enter_context(Sandbox(OBJECTS, programs=()))
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def directory(self) -> Path:
        """For files of whoever needs some; they go with the sandbox."""
        return self.box.directory

    def carried(self) -> Carried:
        """Return the counters."""
        objects = json.loads(self.box.cluster.run("nft", "--json", "list", "counters", "table", "inet", "bench"))
        counts = {
            item["counter"]["name"]: item["counter"]["bytes"] for item in objects["nftables"] if "counter" in item
        }
        return Carried(**counts)

    def requests(self) -> int:
        """Return how many requests nginx has answered, but for these questions."""
        status = self.box.cluster.run("curl", "--silent", "--show-error", "http://127.0.0.1:81/")
        self._questions += 1
        # "server accepts handled requests", then the three numbers; this request is among them.
        found = re.search(r"^ \d+ \d+ (\d+)", status, re.M)
        assert found is not None
        return int(found[1]) - self._questions

    def delay(self, milliseconds: int) -> None:
        """Let the link between laptop and cluster have this round trip from now on; 0 is as short as it can be."""
        relay = self._delay
        if relay is None:
            script = Path(__file__).with_name("delay.py")
            relay = self._delay = self.box.internet.start(
                *(sys.executable, script, "laptop", "cluster"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert relay.stdin is not None
        assert relay.stdout is not None
        line = b"%d\n" % milliseconds
        relay.stdin.write(line)
        relay.stdin.flush()
        if relay.stdout.readline() != line:
            raise Tp2Error("the link has no delay", "the relay for it ended; its words are above", "report this")

    def quiet(self) -> None:
        """Return when no transfer is left on its way to iperf3, which serves one at a time.

        :raises TimeoutError: one goes on.
        """
        deadline = time.monotonic() + PATIENCE
        while self.box.cluster.run("ss", "-Htn", "state", "established", "src", f"{IPERF}:{IPERF_PORT}"):
            if time.monotonic() > deadline:
                raise TimeoutError("a transfer that was broken off goes on")
            time.sleep(0.05)

    def inside(self, module: str, *arguments: object, timeout: float = 120) -> Any:
        """Run a module of the bench on the laptop; return what it prints, which is JSON."""
        return json.loads(self.box.laptop.run(*_python(module, arguments), env=_environment(), timeout=timeout))

    def start_inside(self, module: str, *arguments: object) -> subprocess.Popen[str]:
        """Start a module of the bench on the laptop."""
        return self.box.laptop.start(
            *_python(module, arguments), env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _start(self) -> None:
        cluster, directory = self.box.cluster, self.box.directory
        cluster.shell("\n".join(f"ip addr replace {address}/32 dev lo" for address in (WEB, IPERF, DNS)))
        cluster.run("nft", "-f", "-", stdin=_COUNTERS)
        (directory / "nginx").mkdir()
        config = directory / "nginx.conf"
        config.write_text(_NGINX.format(directory=directory, web=WEB, port=WEB_PORT, body=BODY), encoding="ascii")
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        cluster.start("nginx", "-c", config, **quiet)
        # It says of every transfer that is broken off that it was.
        iperf = ("iperf3", "--server", "--bind", IPERF, "--port", str(IPERF_PORT))
        cluster.start(*iperf, "--logfile", directory / "iperf3.log", **quiet)
        cluster.start(
            *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--user=", "--group="),
            *("--no-resolv", "--no-hosts", "--bind-interfaces", f"--listen-address={DNS}", "--local=/#/"),
            *(f"--address=/{WEB_NAME}/{WEB}", f"--address=/{IPERF_NAME}/{IPERF}", "--local-ttl=5"),
            **quiet,
        )
        for address, port in ((WEB, WEB_PORT), (IPERF, IPERF_PORT), (DNS, 53)):
            cluster.wait_listening(address, port)


def _python(module: str, arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
