"""``tp2 doctor``: whatever is broken on the way is named first, with cause and remedy; and nothing if all is well.

What needs a cluster with rights, certificates and plugins of its own is in tests/integration/diagnosis, and what needs
other machines than this one, in tests/unit/diagnosis.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Laptop, Up
from tests.e2e.test_failures import another_cluster, changed_kubeconfig, endpoint_pod, listening
from tests.e2e.test_ready import answers_dropped, connections_taken, forwarding_off, resolver_bypassed
from tp2.sandbox.box import API_PORT, NAMESERVER, NODE, tp2_command
from tp2.sandbox.kubeapi_resources import LOG
from tp2.sandbox.namespaces import SEARCH_PATH
from tp2.sandbox.objects import namespace

TUN = Path("/dev/net/tun").exists()
ORDINARY = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]


def own_endpoint(laptop: Laptop) -> list[str]:
    """Return the options for the endpoint of somebody's own."""
    box = laptop.box
    return ["--remote", box.remote, "--identity", str(box.identity), "--host-key", str(box.host_key)]


def doctor(
    laptop: Laptop, *options: str, before: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return what ``tp2 doctor --json`` says; its exit code agrees, and nothing is changed."""
    tables = laptop.host.run("nft", "list", "tables")
    done = subprocess.run(
        [*laptop.host.command(), *before, *tp2_command("doctor", "--json", *options)],
        env={**laptop.box.environment, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if answer["ok"] else 1), done.stderr
    assert laptop.host.run("nft", "list", "tables") == tables
    return answer


def assert_first(answer: dict[str, Any], check: str, *words: str, state: str = "failed") -> None:
    """Assert that *check* is what is to be mended first, in these words."""
    first = answer["first"]
    assert first is not None, answer
    assert (first["check"], first["state"]) == (check, state), first
    assert first["why"]
    assert first["remedy"]
    text = f"{first['what']} {first['why']} {first['remedy']}"
    for word in words:
        assert word in text, text


def wrong(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the findings that something is wrong, but for a driver that the machine of the tests may lack."""
    bad = [finding for finding in answer["findings"] if finding["state"] in ("failed", "warning")]
    return [finding for finding in bad if TUN or finding["check"] != "stopgap"]


# A machine that is well


def test_before_tp2_is_up_nothing_is_reported_of_what_is_well(laptop: Laptop) -> None:
    answer = doctor(laptop)
    assert answer["ok"]
    assert wrong(answer) == []
    states = {finding["check"]: finding["state"] for finding in answer["findings"]}
    for check in ("forwarder", "privilege", "resolv.conf", "API", "rights", "installed", "handshake", "forwarding"):
        assert states[check] == "ok", answer
    assert states["connections"] == "not applicable"


def test_while_tp2_is_up_the_whole_way_is_tried(laptop: Laptop, up: Callable[..., Up]) -> None:
    running = up()
    # Nobody has to say again what the running one was told.
    answer = doctor(laptop)
    assert wrong(answer) == []
    states = {finding["check"]: finding["state"] for finding in answer["findings"]}
    for check in ("tp2", "handshake", "forwarding", "connections", "resolver", "rule", "way there and back"):
        assert states[check] == "ok", answer
    assert "installed" not in states
    assert laptop.mappings() == []
    assert running.stop() == 0


def test_people_read_what_to_mend_first_in_the_last_line(laptop: Laptop) -> None:
    done = laptop.tp2("doctor")
    assert done.code == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == [
        "this machine",
        "Kubernetes",
        "endpoint",
        "end to end",
        *(["Nothing is wrong."] if TUN else lines[-1:]),
    ]
    assert "\x1b" not in done.stdout
    with resolver_bypassed(laptop):
        done = laptop.tp2("doctor")
    assert done.code == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith("Mend this first: programs that use the system's resolver ask no nameserver")
    assert "Add 'dns' to the hosts line" in last


# This machine


def test_without_libnftables(laptop: Laptop) -> None:
    ldconfig = shutil.which("ldconfig", path=SEARCH_PATH)
    assert ldconfig is not None
    library = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=True).stdout
    path = next(line.split()[-1] for line in library.splitlines() if "libnftables.so.1 " in line)
    hidden = ["unshare", "--mount", "sh", "-c", f'mount --bind /dev/null {path} && exec "$@"', "sh"]
    assert_first(doctor(laptop, before=hidden), "forwarder", "libnftables", "apt install")


def test_a_user_without_sudo(laptop: Laptop) -> None:
    answer = doctor(laptop, before=[*ORDINARY, "env", "PATH=/nonexistent"])
    assert_first(answer, "privilege", "no sudo", "as root")


def test_a_user_whom_sudo_refuses(laptop: Laptop) -> None:
    assert_first(doctor(laptop, before=ORDINARY), "privilege", "sudo")


def test_root_without_the_capability(laptop: Laptop) -> None:
    without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    assert_first(doctor(laptop, before=without), "privilege", "CAP_NET_ADMIN")


def test_a_port_that_is_taken(laptop: Laptop) -> None:
    with listening(laptop, 1080) as pid:
        assert_first(doctor(laptop), "ports", "127.0.0.1:1080", str(pid), "--socks")


def test_another_tp2_is_named_before_the_ports_that_it_has_taken(laptop: Laptop, up: Callable[..., Up]) -> None:
    running = up()
    answer = doctor(laptop, env={"TP2_RUNTIME_DIR": str(laptop.box.directory / "other")})
    assert_first(answer, "leftovers", "another tp2", "process", "tp2 down")
    assert running.stop() == 0


def test_a_table_that_nobody_holds(laptop: Laptop) -> None:
    laptop.host.run("nft", "add", "table", "inet", "tp2")
    try:
        assert_first(doctor(laptop), "leftovers", "inet tp2", "nft delete table inet tp2")
    finally:
        laptop.host.run("nft", "delete", "table", "inet", "tp2")


def test_a_device_that_is_left(laptop: Laptop) -> None:
    laptop.host.shell("""
        ip link add tp2-stopgap type veth peer name other-end
        ip link set tp2-stopgap up
        ip route add 10.96.0.1/32 dev tp2-stopgap""")
    try:
        assert_first(doctor(laptop), "leftovers", "ip link delete tp2-stopgap", state="warning")
    finally:
        laptop.host.run("ip", "link", "delete", "tp2-stopgap")


def test_what_a_killed_tp2_leaves_does_no_harm(laptop: Laptop) -> None:
    running = Up(laptop)
    laptop.host.kill(*laptop.host.family(running.process.pid))
    running.process.wait()
    try:
        answer = doctor(laptop)
    finally:
        shutil.rmtree(laptop.box.environment["TP2_RUNTIME_DIR"])
    assert answer["ok"]
    assert_first(answer, "directory", "killed", "lock", "the next 'tp2 up'", state="warning")


def test_another_tool_of_the_kind(laptop: Laptop) -> None:
    script = laptop.box.directory / "sshuttle"
    script.write_text("import sys; print('ready', flush=True); sys.stdin.read()\n")
    process = laptop.host.start(
        sys.executable, str(script), "-r", "bastion", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        answer = doctor(laptop)
    finally:
        process.kill()
        process.wait()
    assert_first(answer, "other tools", "sshuttle", f"process {process.pid}", "end it", state="warning")


# Names


@contextmanager
def etc(laptop: Laptop, name: str, content: str) -> Iterator[None]:
    """Another file in /etc."""
    before = laptop.host.run("cat", f"/etc/{name}")
    laptop.host.write_etc(name, content)
    try:
        yield
    finally:
        laptop.host.write_etc(name, before)


def test_a_machine_without_a_nameserver(laptop: Laptop) -> None:
    with etc(laptop, "resolv.conf", "# Generated by NetworkManager\n"):
        assert_first(doctor(laptop), "resolv.conf", "names no nameserver", "NetworkManager", "--dns")


def test_a_resolver_that_is_bypassed(laptop: Laptop) -> None:
    with resolver_bypassed(laptop):
        assert_first(doctor(laptop), "nsswitch.conf", "ask no nameserver", "hosts: files", "add 'dns'")


def test_names_that_another_tool_left_in_the_hosts_file(laptop: Laptop) -> None:
    with etc(laptop, "hosts", "127.0.0.1 localhost\n127.1.27.1 web.shop.svc.cluster.local\n"):
        assert_first(doctor(laptop), "hosts file", "127.1.27.1", "kubefwd", state="warning")


def test_dns_over_tls(laptop: Laptop) -> None:
    programs = laptop.box.directory / "systemd"
    programs.mkdir()
    resolvectl = programs / "resolvectl"
    resolvectl.write_text(f"""#!/bin/sh
cat <<END
Global
         Protocols: -LLMNR -mDNS -DNSOverTLS DNSSEC=no/unsupported
  resolv.conf mode: stub

Link 2 (eth0)
    Current Scopes: DNS
         Protocols: +DefaultRoute -LLMNR -mDNS +DNSOverTLS DNSSEC=no/unsupported
Current DNS Server: {NAMESERVER}
       DNS Servers: {NAMESERVER}
END
""")
    resolvectl.chmod(0o755)
    laptop.host.shell("mkdir -p /run/systemd/resolve")
    try:
        with etc(laptop, "resolv.conf", "nameserver 127.0.0.53\n"):
            answer = doctor(laptop, env={"PATH": f"{programs}:{SEARCH_PATH}"})
    finally:
        laptop.host.shell("rmdir /run/systemd/resolve")
    assert_first(answer, "systemd-resolved", "DNS goes over TLS", "eth0", "resolvectl dnsovertls eth0 no")


def test_a_nameserver_that_does_not_answer(laptop: Laptop) -> None:
    with etc(laptop, "resolv.conf", "nameserver 192.0.2.1\n"):
        assert_first(doctor(laptop), "nameservers", "192.0.2.1", "refused", "firewall")


def test_a_machine_without_a_route(laptop: Laptop) -> None:
    laptop.host.shell("ip link set eth0 down")
    try:
        answer = doctor(laptop)
    finally:
        laptop.host.shell("ip link set eth0 up; ip route replace default via 192.0.2.1")
    assert_first(answer, "nameservers", "no route", NAMESERVER, "ip route")
    assert any("network is unreachable" in str(finding["why"]) for finding in wrong(answer))


# Routes


@contextmanager
def vpn(laptop: Laptop, address: str, *routes: str) -> Iterator[None]:
    """A device with an address, and routes into it."""
    laptop.host.shell(f"""
        ip link add tun9 type veth peer name other-end
        ip addr add {address} dev tun9
        ip link set tun9 up""")
    for route in routes:
        laptop.host.run("ip", "route", "add", route, "dev", "tun9")
    try:
        yield
    finally:
        laptop.host.run("ip", "link", "delete", "tun9")


def test_a_vpn_with_a_route_over_the_range_of_the_services(laptop: Laptop) -> None:
    with vpn(laptop, "10.8.0.2/24", "10.96.0.0/12"):
        answer = doctor(laptop)
    assert answer["ok"]
    assert_first(answer, "networks", "10.96.0.0/12", "tun9", "--exclude 10.96.0.0/12", state="warning")


def test_a_network_with_the_addresses_of_the_services(laptop: Laptop) -> None:
    with vpn(laptop, "10.96.0.77/16"):
        assert_first(doctor(laptop), "networks", "10.96.0.0/16", "tun9", "left alone")


# Kubernetes and the endpoint


def test_an_api_that_cannot_be_reached(laptop: Laptop) -> None:
    kubeconfig = changed_kubeconfig(laptop, f"{NODE}:{API_PORT}", f"{NODE}:1")
    answer = doctor(laptop, "--kubeconfig", kubeconfig)
    assert_first(answer, "API", f"{NODE}:1", "refused", "VPN")
    left_out = {f["check"] for f in answer["findings"] if f["why"] and "API has to be well first" in f["why"]}
    assert {"rights", "services", "installed"} <= left_out


def test_an_endpoint_that_is_not_installed(laptop: Laptop) -> None:
    with another_cluster(laptop, namespace("default")) as kubeconfig:
        assert_first(doctor(laptop, "--kubeconfig", kubeconfig), "installed", "no SSH endpoint", "`tp2 install`")


def test_an_endpoint_that_no_node_takes(laptop: Laptop) -> None:
    why = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient memory."}
    pod = endpoint_pod(laptop, phase="Pending", conditions=[why], containerStatuses=[])
    with another_cluster(laptop, pod) as kubeconfig:
        assert_first(doctor(laptop, "--kubeconfig", kubeconfig), "ready", "Insufficient memory", "add a node")


def test_an_endpoint_with_another_key_than_the_api_vouches_for(laptop: Laptop) -> None:
    pod = endpoint_pod(laptop)
    pod["metadata"]["annotations"][LOG] = laptop.box.host_key.read_text()
    with another_cluster(laptop, pod) as kubeconfig:
        answer = doctor(laptop, "--kubeconfig", kubeconfig)
    assert_first(answer, "handshake", "is not who it should be", "SHA256:", "find out who")


def test_an_endpoint_with_another_key_than_the_pinned_one(laptop: Laptop) -> None:
    options = own_endpoint(laptop)
    options[-1] = str(laptop.box.identity.with_suffix(".pub"))
    assert_first(doctor(laptop, *options), "handshake", "is not who it should be", "SHA256:")


def test_an_endpoint_that_does_not_know_the_key(laptop: Laptop) -> None:
    answer = doctor(laptop, "--identity", str(laptop.box.directory / "host_key"))
    assert_first(answer, "handshake", "does not know your key", "`tp2 install`")


def test_an_endpoint_that_is_away(laptop: Laptop) -> None:
    laptop.box.stop_sshd()
    try:
        assert_first(doctor(laptop, *own_endpoint(laptop)), "handshake", "refused", "--remote")
    finally:
        laptop.box.start_sshd()


def test_an_endpoint_that_forwards_nothing(laptop: Laptop) -> None:
    with forwarding_off(laptop):
        answer = doctor(laptop, *own_endpoint(laptop))
    assert_first(answer, "forwarding", "does not allow TCP forwarding", "AllowTcpForwarding")


# From end to end, while tp2 is up


def test_a_firewall_that_takes_captured_connections(laptop: Laptop, up: Callable[..., Up]) -> None:
    running = up()
    with connections_taken(laptop):  # type: ignore[attr-defined]
        assert_first(doctor(laptop), "rule", "do not arrive", "nft list ruleset")
    assert running.stop() == 0


def test_a_firewall_that_drops_the_answers(laptop: Laptop, up: Callable[..., Up]) -> None:
    running = up()
    with answers_dropped(laptop):  # type: ignore[attr-defined]
        answer = doctor(laptop)
    assert_first(answer, "nameservers", "does not answer", "firewall")
    assert any(finding["check"] == "resolver" for finding in wrong(answer))
    assert running.stop() == 0


@contextmanager
def half_dead(laptop: Laptop) -> Iterator[None]:
    """The tunnel's connection is open, and nobody at its other end does anything."""
    box = laptop.box
    sessions = [pid for pid in box.cluster.family(box.sshd.pid) if pid != box.sshd.pid]
    assert sessions
    for pid in sessions:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        box.cluster.kill(*sessions)


def while_half_dead(laptop: Laptop, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what is answered before tp2 notices by its keepalives, after 20 s at the latest, and reconnects."""
    for _ in range(3):
        assert laptop.tp2("status", "--wait", "60s").code == 0
        began = time.monotonic()
        with half_dead(laptop):
            answer = ask()
            # A machine that is too busy to answer in that time has answered another question.
            if time.monotonic() - began < 14:
                return answer
    pytest.skip("this machine is too busy")


def test_a_tunnel_that_is_half_dead(laptop: Laptop, up: Callable[..., Up]) -> None:
    running = up()
    answer = while_half_dead(laptop, lambda: doctor(laptop))
    assert_first(answer, "way there and back", "tunnel", "20 s")
    assert running.stop() == 0


def test_a_tp2_whose_endpoint_is_gone(laptop: Laptop, up: Callable[..., Up]) -> None:
    running = up()
    laptop.box.stop_sshd()
    try:
        answer = doctor(laptop)
    finally:
        laptop.box.start_sshd()
    assert_first(answer, "handshake", "refused", "--remote")
    assert any("reconnecting" in finding["what"] for finding in wrong(answer))
    assert running.stop() == 0


def test_a_tp2_that_does_not_answer(laptop: Laptop, up: Callable[..., Up]) -> None:
    running = up()
    os.kill(running.process.pid, signal.SIGSTOP)
    try:
        answer = doctor(laptop)
    finally:
        os.kill(running.process.pid, signal.SIGCONT)
    assert_first(answer, "tp2", "does not answer", str(running.process.pid), "kill")
    assert running.stop() == 0


def test_it_takes_seconds_and_no_more_than_that(laptop: Laptop) -> None:
    path = Path(changed_kubeconfig(laptop, f"{NODE}:{API_PORT}", "198.51.100.99:6443"))
    answer = doctor(laptop, "--kubeconfig", str(path))
    assert_first(answer, "API", "198.51.100.99")
    assert max(finding["took"] for finding in answer["findings"]) < 10
