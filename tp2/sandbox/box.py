"""The cluster in a box: a laptop, an internet and a cluster, each a host of its own.

::

    laptop 192.0.2.10 ----- 192.0.2.1 internet 198.51.100.1 ----- 198.51.100.10 cluster
                            192.0.2.53 dnsmasq                    :6443 Kubernetes API, :2222 sshd
                            203.0.113.80 a web site               10.96.0.0/16 services, 10.244.0.0/16 pods

The sshd on the node is an endpoint of somebody's own, for ``--remote``; that of ``tp2 install`` runs in a pod, where
only the API server's port-forward leads to it. The internet has no way to the cluster's services and pods, as it is in
life: it refuses packets to them. All addresses are of the ranges for documentation (RFC 5737) or private, and exist in
these namespaces only.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncssh
import yaml

from tp2.cluster import manifest, sshd
from tp2.errors import Tp2Error
from tp2.sandbox.contents import OBJECTS, PROGRAMS, program
from tp2.sandbox.kubeapi_resources import BY_KIND
from tp2.sandbox.namespaces import SEARCH_PATH, Host
from tp2.sandbox.objects import Object
from tp2.sandbox.pod import PodFiles, pod_object
from tp2.types import DNS_PORT

NAMESERVER: Final = "192.0.2.53"
SITE: Final = "site.example"
SITE_ADDRESS: Final = "203.0.113.80"
NODE: Final = "198.51.100.10"
API_PORT: Final = 6443
ENDPOINT_POD: Final = "tp2-endpoint-1"
ENDPOINT_ADDRESS: Final = "10.244.9.1"
SSH_PORT: Final = 2222

#: What a sandbox is made with, and the Debian packages to have it from.
TOOLS: Final = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "nft": "nftables",
    "sshd": "openssh-server",
    "dnsmasq": "dnsmasq-base",
    "curl": "curl",
}

_SSHD_CONFIG: Final = """
ListenAddress {node}:{port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/.ssh/id_ed25519.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding local
PermitTTY no
MaxStartups 200
"""


@dataclass
class _Pod:
    files: PodFiles
    address: str
    process: subprocess.Popen[Any] | None = None


class Sandbox:
    """Three hosts with their programs; entering builds them, leaving leaves nothing.

    :param objects: what the Kubernetes API starts with.
    :param programs: the servers in the cluster, as :meth:`start_programs` takes them.

    ``objects`` is what the API starts with, the installed endpoint's included.
    """

    laptop: Host
    internet: Host
    cluster: Host
    sshd: subprocess.Popen[Any]
    api: subprocess.Popen[Any]

    def __init__(self, objects: Iterable[Object] = OBJECTS, programs: Iterable[str] = PROGRAMS) -> None:
        self.objects = [*objects, *manifest.objects(manifest.NAMESPACE, manifest.IMAGE, ())]
        self._programs = programs
        self._pods: dict[str, _Pod] = {}

    def __enter__(self) -> Sandbox:
        """:raises Tp2Error: a tool is missing, or the machine does not allow namespaces."""
        _check_tools()
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tp2-sandbox-")))
            try:
                self.laptop = stack.enter_context(Host("laptop"))
                self.internet = stack.enter_context(Host("internet", self.laptop))
                self.cluster = stack.enter_context(Host("cluster", self.laptop))
                self._connect()
            except (RuntimeError, subprocess.CalledProcessError) as error:
                raise Tp2Error(
                    "cannot build the sandbox",
                    f"this machine refuses network namespaces ({error})",
                    "run it as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)",
                ) from error
            self._make_keys()
            self._start_internet()
            self.objects.append(self.start_endpoint(ENDPOINT_POD))
            self.api = self.start_api(self.objects)
            self.start_sshd()
            self.start_programs(*self._programs)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig for the sandbox's API."""
        return self.directory / "api" / "kubeconfig"

    @property
    def identity(self) -> Path:
        """The SSH private key that the endpoint lets in."""
        return self.directory / ".ssh" / "id_ed25519"

    @property
    def host_key(self) -> Path:
        """The SSH endpoint's public key."""
        return self.directory / "host_key.pub"

    @property
    def remote(self) -> str:
        """The SSH endpoint, as ``--remote`` takes it."""
        return f"{pwd.getpwuid(os.getuid()).pw_name}@{NODE}:{SSH_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a person at the laptop: nothing of the caller's tp2, sudo or agent."""
        unwanted = ("TP2_", "SUDO_", "SSH_", "KUBECONFIG", "XDG_RUNTIME_DIR", "COLUMNS", "LINES")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
        return {
            **kept,
            "PATH": SEARCH_PATH,
            "TP2_RUNTIME_DIR": str(self.directory / "run"),
            "HOME": str(self.directory),
        }

    def up_command(self, *options: str, installed: bool = False) -> list[str]:
        """Return the command that brings tp2 up here, with more *options*.

        :param installed: whether to use the endpoint that is installed in the cluster, for which nothing need be said.
        """
        endpoint = ["--remote", self.remote, "--identity", str(self.identity), "--host-key", str(self.host_key)]
        return tp2_command("up", "--mode", "portmap", *([] if installed else endpoint), *options)

    def request(self, method: str, path: str, body: Object | None = None, kubeconfig: Path | None = None) -> Object:
        """Ask a Kubernetes API something as its administrator; return the answer.

        :param kubeconfig: which API, if not the sandbox's own.
        """
        login = yaml.safe_load((kubeconfig or self.kubeconfig).read_text())
        token, server = login["users"][0]["user"]["token"], login["clusters"][0]["cluster"]["server"]
        form = "merge-patch+json" if method == "PATCH" else "json"
        answer = self.cluster.run(
            *("curl", "--silent", "--show-error", "--fail-with-body", "--insecure", "--request", method),
            *("--header", f"Authorization: Bearer {token}", "--header", f"Content-Type: application/{form}"),
            *(["--data-binary", "@-"] if body is not None else []),
            f"{server}{path}",
            stdin="" if body is None else json.dumps(body),
        )
        result: Object = json.loads(answer)
        return result

    def create(self, *objects: Object) -> None:
        """Create Kubernetes objects."""
        for item in objects:
            self.request("POST", _collection(item), item)

    def delete(self, *objects: Object) -> None:
        """Delete Kubernetes objects."""
        for item in objects:
            self.request("DELETE", f"{_collection(item)}/{item['metadata']['name']}")

    def start_api(
        self, objects: Iterable[Object] = (), name: str = "api", port: int = API_PORT, role: str = ""
    ) -> subprocess.Popen[Any]:
        """Start a Kubernetes API and return it when it answers.

        :param objects: what it starts with.
        :param name: of the directory for its keys and its kubeconfig; the same name has the same keys.
        :param role: the Role and ClusterRole among *objects* that its user is bound to, if they may not do everything.
        """
        file = self.directory / f"{name}.json"
        file.write_text(json.dumps(list(objects)))
        files = ["--dir", str(self.directory / name), "--objects", str(file), "--role", role]
        return self._python(self.cluster, "tp2.sandbox.kubeapi", "--listen", f"{NODE}:{port}", *files)

    def restart_api(self) -> None:
        """Kill the cluster's API and start it again, with a history of its own."""
        self.api.kill()
        self.api.wait()
        self.api = self.start_api(self.objects)

    def start_sshd(self, **directives: str) -> None:
        """Start the SSH endpoint, with other *directives* in its configuration; return when it listens."""
        config = self.directory / "sshd_config"
        first = "".join(f"{name} {value}\n" for name, value in directives.items())
        config.write_text(first + _SSHD_CONFIG.format(node=NODE, port=SSH_PORT, directory=self.directory))
        command = [shutil.which("sshd", path=SEARCH_PATH) or "sshd", "-D", "-e", "-f", str(config)]
        uid, gid = os.getuid(), os.getgid()
        if uid != 0:
            # As root of a namespace sshd would want to become other users, whom the namespace does not have.
            command = ["unshare", "--user", f"--map-user={uid}", f"--map-group={gid}", "--", *command]
        log = self.directory / "sshd.log"
        with log.open("ab") as stderr:
            self.sshd = self.cluster.start(*command, stdin=subprocess.DEVNULL, stderr=stderr)
        self.cluster.wait_listening(NODE, SSH_PORT)

    def stop_sshd(self) -> None:
        """Kill the SSH endpoint, its sessions included."""
        self.cluster.kill(*self.cluster.family(self.sshd.pid))
        self.sshd.wait()

    def start_endpoint(self, name: str, address: str = ENDPOINT_ADDRESS) -> Object:
        """Start the pod of an installed endpoint, or start its containers again; return its object, for
        :meth:`create`, when it takes connections."""
        pod = self._pods.get(name) or _Pod(PodFiles(self.directory / name, address, sshd.PORT), address)
        self._pods[name] = pod
        address = pod.address
        shutil.copyfile(self.identity.with_suffix(".pub"), pod.files.authorized_keys)
        self.cluster.run("ip", "addr", "replace", f"{address}/32", "dev", "lo")
        log = self.cluster.run(*pod.files.command("initContainers"))
        with (self.directory / name / "log").open("ab") as stderr:
            command = pod.files.command("containers")
            pod.process = self.cluster.start(*command, stdin=subprocess.DEVNULL, stderr=stderr)
        self.cluster.wait_listening(address, sshd.PORT)
        return pod_object(name, address, log)

    def stop_endpoint(self, name: str) -> None:
        """Kill the containers of an installed endpoint's pod with all their connections."""
        process = self._pods[name].process
        assert process is not None
        self.cluster.kill(*self.cluster.family(process.pid))
        process.wait()

    def endpoint_processes(self, name: str) -> list[int]:
        """Return the processes of an installed endpoint's pod."""
        process = self._pods[name].process
        return self.cluster.family(process.pid) if process is not None else []

    def start_programs(self, *specifications: str) -> subprocess.Popen[Any]:
        """Start servers in the cluster, on addresses that become the cluster's; return when they listen."""
        addresses = dict.fromkeys(program(specification)[2] for specification in specifications)
        lengths = {address: 128 if ":" in address else 32 for address in addresses}
        self.cluster.shell("\n".join(f"ip addr replace {a}/{length} dev lo" for a, length in lengths.items()))
        return self._python(self.cluster, "tp2.sandbox.services", *specifications)

    def _connect(self) -> None:
        self.laptop.link("eth0", "192.0.2.10/24", self.internet, "laptop", "192.0.2.1/24")
        self.cluster.link("eth0", f"{NODE}/24", self.internet, "cluster", "198.51.100.1/24")
        self.laptop.shell("ip route add default via 192.0.2.1")
        self.cluster.shell("ip route add default via 198.51.100.1")
        self.internet.shell(f"""
            echo 1 >/proc/sys/net/ipv4/ip_forward
            ip addr add {SITE_ADDRESS}/32 dev lo
            ip route add unreachable 10.0.0.0/8""")
        self.laptop.own_etc(
            {
                "resolv.conf": f"nameserver {NAMESERVER}\n",
                "hosts": "127.0.0.1 localhost laptop\n",
                "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
            }
        )

    def _make_keys(self) -> None:
        """Make the person's key, the endpoint's, and the place where kubectl and tp2 look for a kubeconfig."""
        (self.directory / ".kube").mkdir(mode=0o700)
        (self.directory / ".kube" / "config").symlink_to(self.kubeconfig)
        self.identity.parent.mkdir(mode=0o700)
        for name, path in (("identity", self.identity), ("host_key", self.directory / "host_key")):
            key = asyncssh.generate_private_key("ssh-ed25519", comment=f"tp2 sandbox {name}")
            path.touch(mode=0o600)
            key.write_private_key(path)
            key.write_public_key(path.with_suffix(".pub"))

    def start_nameserver(self, address: str) -> subprocess.Popen[Any]:
        """Start a nameserver of the internet on one of its addresses; return when it answers."""
        length, options = (128, ["nodad"]) if ":" in address else (32, [])
        self.internet.run("ip", "addr", "replace", f"{address}/{length}", "dev", "lo", *options)
        process = self.internet.start(
            *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--user=", "--group="),
            *("--no-resolv", "--no-hosts", "--bind-interfaces", f"--listen-address={address}"),
            # The rest of the world does not exist: NXDOMAIN.
            *(f"--address=/{SITE}/{SITE_ADDRESS}", "--local=/#/"),
            stdin=subprocess.DEVNULL,
        )
        self.internet.wait_listening(address, DNS_PORT)
        return process

    def _start_internet(self) -> None:
        self.start_nameserver(NAMESERVER)
        self._python(self.internet, "tp2.sandbox.services", f"http:{SITE}:{SITE_ADDRESS}:80")

    def _python(self, host: Host, module: str, *arguments: str) -> subprocess.Popen[Any]:
        """Start a module of ours that says ``ready``; return when it has."""
        process = host.start(
            *(sys.executable, "-m", module, *arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise Tp2Error(f"cannot start {module} in the sandbox", "it ended; its words are above", "report this")
        return process


def tp2_command(*arguments: str) -> list[str]:
    """Return the command line of this very tp2."""
    return [sys.executable, "-m", "tp2", *arguments]


def _collection(item: Object) -> str:
    group = "/api/v1" if item["apiVersion"] == "v1" else f"/apis/{item['apiVersion']}"
    plural = BY_KIND[item["kind"]].plural
    where = item["metadata"].get("namespace")
    return f"{group}/namespaces/{where}/{plural}" if where else f"{group}/{plural}"


def _check_tools() -> None:
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool, path=SEARCH_PATH) is None]
    if sys.platform != "linux":
        raise Tp2Error("cannot build the sandbox", "it is made of Linux namespaces", "run it on Linux")
    if missing:
        raise Tp2Error(
            "cannot build the sandbox",
            f"this machine lacks {', '.join(missing)}",
            f"install them: apt install {' '.join(missing)}",
        )
