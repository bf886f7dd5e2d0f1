"""``--metrics``: read by curl, and by Prometheus' own parser of the text."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from tp2.errors import AddressInUse
from tp2.metrics import MetricsServer
from tp2.settings import SocketAddress, parse_listener

STATUS: dict[str, Any] = {
    "state": "ready",
    "mode": "portmap",
    "cluster": {"synced": True, "services": 142},
    "tunnel": {"state": "connected", "reconnects": 3},
    "dns": {"queries": 10, "cluster_answers": 5, "forwarded": 3, "failures": 2},
    "mappings": {"live": 7, "capacity": 1000, "made": 9, "failed_lookups": 1},
    "connections": {"open": 1, "total": 4, "bytes_sent": 5, "bytes_received": 6, "failed": {"timed out": 2}},
    "capture": {"refused": {"connections": 8}},
    "canary": {"ok": True, "took": 0.25},
}

EXPECTED = {
    "tp2_ready": 1,
    "tp2_dns_queries_total": 10,
    'tp2_dns_answers_total{by="cluster"}': 5,
    'tp2_dns_answers_total{by="upstream"}': 3,
    "tp2_dns_failures_total": 2,
    "tp2_cluster_synced": 1,
    "tp2_cluster_services": 142,
    "tp2_tunnel_connected": 1,
    "tp2_tunnel_reconnects_total": 3,
    "tp2_mappings": 7,
    "tp2_mappings_capacity": 1000,
    "tp2_mappings_made_total": 9,
    "tp2_mappings_failed_lookups_total": 1,
    "tp2_open_connections": 1,
    "tp2_connections_total": 4,
    "tp2_sent_bytes_total": 5,
    "tp2_received_bytes_total": 6,
    'tp2_connections_failed_total{reason="timed out"}': 2,
    "tp2_connections_refused_total": 8,
    "tp2_canary_ok": 1,
    "tp2_canary_duration_seconds": 0.25,
}


def free() -> SocketAddress:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return SocketAddress(*sock.getsockname())


@pytest.fixture
async def server() -> AsyncIterator[MetricsServer]:
    async def status() -> dict[str, Any]:
        return STATUS

    server = MetricsServer(free(), status)
    await server.start()
    yield server
    await server.close()


async def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["curl", "--silent", "--show-error", "--max-time", "20", *arguments]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)


def samples(families: Any) -> dict[str, float]:
    found = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def test_curl_reads_every_figure_of_the_status(server: MetricsServer) -> None:
    done = await curl("--fail", f"http://{server.address}/metrics")
    assert done.returncode == 0, done.stderr
    found = samples(plain(done.stdout))
    assert {name: found.get(name) for name in EXPECTED} == EXPECTED
    assert found["process_open_fds"] > 0


async def test_prometheus_may_ask_for_openmetrics(server: MetricsServer) -> None:
    accept = "Accept: application/openmetrics-text; version=1.0.0"
    done = await curl("--fail", "--include", "--header", accept, f"http://{server.address}/metrics")
    head, _, body = done.stdout.replace("\r", "").partition("\n\n")
    assert "content-type: application/openmetrics-text; version=1.0.0" in head.lower()
    families = openmetrics(body)  # type: ignore[no-untyped-call]
    assert samples(families)["tp2_dns_queries_total"] == 10


async def test_there_is_no_other_page(server: MetricsServer) -> None:
    done = await curl("--write-out", "%{http_code}", "--output", "/dev/null", f"http://{server.address}/")
    assert done.stdout == "404"


async def test_a_port_that_is_taken_is_one_message_that_names_its_holder(server: MetricsServer) -> None:
    async def status() -> dict[str, Any]:
        return STATUS

    with pytest.raises(AddressInUse) as caught:
        await MetricsServer(server.address, status).start()
    assert caught.value.what == f"metrics cannot be had at {server.address}"
    assert "in use by" in caught.value.why
    assert "--metrics" in caught.value.remedy
    with pytest.raises(AddressInUse, match="not this machine's"):
        await MetricsServer(SocketAddress("192.0.2.1", 9100), status).start()


def test_a_port_alone_is_one_of_loopback() -> None:
    assert parse_listener("9100") == ("127.0.0.1", 9100)
    assert parse_listener("0.0.0.0:9100") == ("0.0.0.0", 9100)
