"""What has to be measured from inside a sandbox's laptop. Run there: ``python -m bench.inside WHAT ARGUMENT...``.

===================================== ==================================================================
nft COUNT                             seconds that each of COUNT ``nft add element`` processes took
lookups PORT FIRST COUNT              seconds that each of COUNT services' names, from number FIRST, took to
                                      be looked up at 127.0.0.1:PORT, one after the other
burst PORT FIRST COUNT                seconds that it took to look them all up at once
listing KUBECONFIG                    seconds that it takes to read what tp2 lists at its start, and to
                                      do nothing with it
changes KUBECONFIG PORT FIRST COUNT   for COUNT services from number FIRST, that the cluster does not
                                      have yet: seconds from asking the API to create it until the DNS
                                      server at 127.0.0.1:PORT gives its address, and from asking the
                                      API to delete it until the name does not exist
===================================== ==================================================================

The outcome goes to standard output as JSON.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from dnslib import A, DNSRecord

from bench.cluster import Name, cluster_service, name
from tp2.cluster.stream import Pace
from tp2.cluster.watch import ENDPOINT_SLICES, NAMESPACES, SERVICES
from tp2.sandbox.objects import Object

_TABLE: Final = "inet bench"
_SET_UP: Final = f"""\
add table {_TABLE}
add map {_TABLE} redirects {{ type ipv4_addr . inet_service : inet_service; }}
add chain {_TABLE} output {{ type nat hook output priority -105; policy accept; }}
add rule {_TABLE} output meta l4proto tcp redirect to :ip daddr . tcp dport map @redirects
"""

_CONTINUE: Final = re.compile(rb'"continue":\s*"([^"]+)"')

#: Seconds between two questions of the same: the machine is to do the work, not to answer questions.
_PAUSE: Final = 0.0005

#: Seconds after which a change has not happened.
_PATIENCE: Final = 20.0


def nft(count: int) -> list[float]:
    """Time *count* processes that each add one element to a map like tp2's, in a table of their own."""
    _nft(_SET_UP)
    try:
        times = []
        for number in range(count):
            element = f"{{ 10.97.{number // 250}.{1 + number % 250} . 80 : {20000 + number} }}"
            began = time.perf_counter()
            _nft(f"add element {_TABLE} redirects {element}")
            times.append(time.perf_counter() - began)
        return times
    finally:
        _nft(f"delete table {_TABLE}")


def lookups(port: int, first: int, count: int) -> list[float]:
    """Time looking up names, each of which has to have its address."""
    names = [name(number) for number in range(first, first + count)]
    with _client(port) as sock:
        times, replies = [], []
        for query in [DNSRecord.question(item.full).pack() for item in names]:
            began = time.perf_counter()
            sock.send(query)
            replies.append(sock.recv(4096))
            times.append(time.perf_counter() - began)
    _check(names, replies)
    return times


def burst(port: int, first: int, count: int) -> float:
    """Time looking up names all at once, each of which has to have its address."""
    names = [name(number) for number in range(first, first + count)]
    with _client(port) as sock:
        queries = [DNSRecord.question(item.full).pack() for item in names]
        began = time.perf_counter()
        for query in queries:
            sock.send(query)
        replies = [sock.recv(4096) for _ in queries]
        seconds = time.perf_counter() - began
    _check(names, replies)
    return seconds


def listing(kubeconfig: Path) -> float:
    """Time reading all Services, EndpointSlices and Namespaces, in pages as tp2 asks for them."""
    began = time.monotonic()
    api = _Api(json.loads(kubeconfig.read_text(encoding="utf-8")))
    for collection in (SERVICES, ENDPOINT_SLICES, NAMESPACES):
        query = {"limit": str(Pace().page)}
        while True:
            api.send("GET", f"{collection.path(None)}?{urlencode(query)}")
            page = api.receive(200)
            # The metadata stand at either end of the page: what is between them need not be understood.
            found = _CONTINUE.search(page)
            if found is None:
                break
            query["continue"] = found[1].decode()
    return time.monotonic() - began


def changes(kubeconfig: Path, port: int, first: int, count: int) -> dict[str, list[float]]:
    """Create and delete services, and time when the DNS server says so."""
    api = _Api(json.loads(kubeconfig.read_text(encoding="utf-8")))
    outcome: dict[str, list[float]] = {"created": [], "deleted": []}
    with _client(port) as sock:
        for number in range(first, first + count):
            item, wanted = cluster_service(number), name(number)
            collection = f"/api/v1/namespaces/{item['metadata']['namespace']}/services"
            if _addresses(sock, wanted):
                raise SystemExit(f"{wanted.full} exists already")
            began = api.send("POST", collection, item)
            seen = _until(sock, wanted, [wanted.address])
            api.receive(201)
            outcome["created"].append(seen - began)
            began = api.send("DELETE", f"{collection}/{item['metadata']['name']}")
            seen = _until(sock, wanted, [])
            api.receive(200)
            outcome["deleted"].append(seen - began)
    return outcome


class _Api:
    """One kept connection to the Kubernetes API."""

    def __init__(self, kubeconfig: dict[str, Any]) -> None:
        cluster = kubeconfig["clusters"][0]["cluster"]
        server = urlsplit(cluster["server"])
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        self._token = kubeconfig["users"][0]["user"]["token"]
        self._connection = HTTPSConnection(server.hostname or "", server.port, context=context, timeout=_PATIENCE)
        self._connection.connect()

    def send(self, method: str, path: str, body: Object | None = None) -> float:
        """Send a request; return when, on the monotonic clock."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        payload = None if body is None else json.dumps(body).encode()
        began = time.monotonic()
        self._connection.request(method, path, payload, headers)
        return began

    def receive(self, status: int) -> bytes:
        """Take the response, which has to have this *status*; return its body."""
        response = self._connection.getresponse()
        body = response.read()
        if response.status != status:
            raise SystemExit(f"the API answered {response.status}: {body!r}")
        return body


def _until(sock: socket.socket, wanted: Name, addresses: list[str]) -> float:
    """Ask until the answer is *addresses*; return when that came, on the monotonic clock."""
    deadline = time.monotonic() + _PATIENCE
    while _addresses(sock, wanted) != addresses:
        if time.monotonic() > deadline:
            raise SystemExit(f"{wanted.full} is not {addresses} after {_PATIENCE} s")
        time.sleep(_PAUSE)
    return time.monotonic()


def _client(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", port))
    sock.settimeout(_PATIENCE)
    return sock


def _addresses(sock: socket.socket, wanted: Name) -> list[str]:
    sock.send(DNSRecord.question(wanted.full).pack())
    return _read(sock.recv(4096))[1]


def _check(names: Sequence[Name], replies: Sequence[bytes]) -> None:
    """Let it be exactly *names* that *replies*, in any order, give the right addresses of."""
    if sorted(map(_read, replies)) != sorted((item.full, [item.address]) for item in names):
        raise SystemExit("some names were not looked up, or have another address than they should")


def _read(reply: bytes) -> tuple[str, list[str]]:
    """Return the name that a reply is about, and the addresses in it."""
    message = DNSRecord.parse(reply)
    return str(message.q.qname).rstrip("."), [str(record.rdata) for record in message.rr if isinstance(record.rdata, A)]


def _nft(command: str) -> None:
    # As cheap as a process can be started: what is measured is nft's cost and not Python's.
    process = os.posix_spawnp("nft", ["nft", command], os.environ)
    if os.waitpid(process, 0)[1] != 0:
        raise SystemExit(f"nft failed: {command}")


def main(arguments: list[str]) -> None:
    """Run what *arguments* say, and print the outcome."""
    outcome: object
    match arguments:
        case ["nft", count]:
            outcome = nft(int(count))
        case ["lookups", port, first, count]:
            outcome = lookups(int(port), int(first), int(count))
        case ["burst", port, first, count]:
            outcome = burst(int(port), int(first), int(count))
        case ["listing", kubeconfig]:
            outcome = listing(Path(kubeconfig))
        case ["changes", kubeconfig, port, first, count]:
            outcome = changes(Path(kubeconfig), int(port), int(first), int(count))
        case _:
            raise SystemExit(__doc__)
    json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
