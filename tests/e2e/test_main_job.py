"""A name resolves, a port is mapped, bytes arrive: with nftables, OpenSSH's sshd and real clients."""

from __future__ import annotations

import hashlib
import subprocess
import sys

from tests.e2e.conftest import CLIENTS, Laptop, eventually
from tp2.sandbox.box import NAMESERVER, SITE, SITE_ADDRESS
from tp2.sandbox.objects import endpoint_slice, service
from tp2.sandbox.services import pattern

MB = 1_000_000


def test_every_form_of_a_services_name_resolves(connected: Laptop) -> None:
    for name in ("web.shop", "web.shop.svc", "web.shop.svc.cluster.local"):
        assert connected.lookup(name) == ["10.96.1.1"]
    assert connected.lookup("kubernetes") == ["10.96.0.1"]  # in the context's namespace
    assert connected.lookup("web.shop", "A", "+tcp") == ["10.96.1.1"]


def test_a_name_resolves_and_curl_gets_the_body(connected: Laptop) -> None:
    assert connected.curl("http://web.shop/") == "this is web.shop, port 80\n"
    assert connected.curl("http://WEB.Shop.svc.cluster.local/") == "this is web.shop, port 80\n"


def test_two_services_on_the_same_port_are_told_apart(connected: Laptop) -> None:
    assert connected.curl("http://web.shop/", "http://web.blog/") == (
        "this is web.shop, port 80\nthis is web.blog, port 80\n"
    )


def test_both_ports_of_a_service_arrive(connected: Laptop) -> None:
    assert connected.curl("http://api.shop:8080/", "http://api.shop:9090/") == (
        "this is api.shop, port 8080\nthis is api-admin.shop, port 9090\n"
    )


def test_a_headless_service_is_its_pods(connected: Laptop) -> None:
    assert sorted(connected.lookup("db.shop")) == ["10.244.1.10", "10.244.1.11"]
    assert connected.lookup("db-1.db.shop.svc.cluster.local") == ["10.244.1.11"]
    assert "220 db-1.db.shop" in connected.python("talk", "listen_first", "db-1.db.shop", "5432")


def test_what_does_not_exist_is_said_at_once(connected: Laptop) -> None:
    assert connected.rcode("nosuch.shop.svc.cluster.local") == "NXDOMAIN"
    assert connected.rcode("web.shop.svc.cluster.local", "AAAA") == "NOERROR"
    assert connected.lookup("web.shop.svc.cluster.local", "AAAA") == []
    soa = connected.run("dig", "web.shop", "AAAA").stdout
    assert "SOA" in soa


def test_the_answer_never_precedes_its_rule(connected: Laptop) -> None:
    names = [f"svc-{number}" for number in range(250)]
    addresses = [f"10.96.77.{number}" for number in range(250)]
    connected.box.create(*(service("blog", n, a, {"tcp": 7000}) for n, a in zip(names, addresses, strict=True)))
    connected.box.start_programs(*(f"greet:{address}:{address}:7000" for address in addresses))
    eventually(lambda: connected.lookup(f"{names[-1]}.blog.svc.cluster.local") != [])
    complaints = connected.python("hammer", NAMESERVER, "7000", *(f"{name}.blog" for name in names))
    assert complaints == ""


def test_200_mb_arrive_intact_in_both_directions(connected: Laptop) -> None:
    size = 200 * MB
    command = [*connected.host.command(), "curl", "--silent", "--fail", f"http://web.shop/bytes/{size}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as download:
        assert download.stdout is not None
        received = hashlib.file_digest(download.stdout, "sha256").hexdigest()  # type: ignore[arg-type]
    assert download.returncode == 0
    sent = hashlib.sha256(pattern(size)).hexdigest()
    assert received == sent

    body = connected.box.directory / "body"
    body.write_bytes(pattern(size))
    assert connected.curl("--max-time", "100", "--upload-file", str(body), "http://web.shop/hash") == sent
    body.unlink()


def test_200_connections_at_once_are_kept_apart(connected: Laptop) -> None:
    assert connected.python("talk", "many_at_once", "mail.shop", "25", timeout=100) == "all right\n"


def test_a_server_may_speak_first(connected: Laptop) -> None:
    assert connected.python("talk", "listen_first", "mail.shop", "25") == "b'220 mail.shop\\r\\n'\nb'hello\\n'\n"


def test_a_client_may_end_its_side_and_still_be_answered(connected: Laptop) -> None:
    assert connected.python("talk", "end_our_side", "mail.shop", "26") == "True\n"


def test_a_server_may_end_its_side_and_still_be_told(connected: Laptop) -> None:
    program = connected.box.start_programs("farewell:farewell:10.96.1.3:2700")
    connected.box.create(
        service("shop", "farewell", "10.96.1.3", {"tcp": 2700}),
    )
    eventually(lambda: connected.lookup("farewell.shop.svc") != [])
    assert connected.python("talk", "their_side_ends_first", "farewell.shop", "2700") == "b'goodbye from farewell\\n'\n"
    assert program.stdout is not None
    assert program.stdout.readline() == b"farewell received b'and to you'\n"


def test_a_service_that_nothing_stands_behind_resets(connected: Laptop) -> None:
    done = connected.run("curl", "--silent", "--show-error", "--max-time", "20", "http://dead.shop/")
    assert done.code in (52, 56), done.stderr  # empty reply, or connection reset: not a time-out


def test_a_created_service_resolves_within_a_second_and_a_deleted_one_is_gone(connected: Laptop) -> None:
    new = service("shop", "new", "10.96.1.50", {"http": 80})
    connected.box.start_programs("http:new.shop:10.96.1.50:80")
    connected.box.create(new, endpoint_slice("shop", "new", {"new-a": "10.244.1.50"}, {"http": 80}))
    assert eventually(lambda: connected.lookup("new.shop.svc.cluster.local") == ["10.96.1.50"]) < 1.0
    assert connected.curl("http://new.shop/") == "this is new.shop, port 80\n"
    connected.box.delete(new)
    assert eventually(lambda: connected.rcode("new.shop.svc.cluster.local") == "NXDOMAIN") < 1.0


def test_other_names_go_to_the_nameserver_that_was_asked(connected: Laptop) -> None:
    assert connected.lookup(SITE) == [SITE_ADDRESS]
    assert connected.rcode("nosuch.example") == "NXDOMAIN"
    assert connected.curl(f"http://{SITE}/") == f"this is {SITE}, port 80\n"


def test_other_traffic_is_left_alone(connected: Laptop) -> None:
    before = len(connected.mappings())
    assert connected.curl(f"http://{SITE_ADDRESS}/") == f"this is {SITE}, port 80\n"
    # An address of the cluster that nobody has asked for goes where it always went: the router refuses it.
    assert connected.python("talk", "fail_to_connect", "10.96.200.200", "80") == "No route to host\n"
    assert len(connected.mappings()) == before


def test_the_socks_proxy_is_useful_on_its_own(connected: Laptop) -> None:
    proxy = ("--proxy", "socks5h://127.0.0.1:1080")
    assert connected.curl(*proxy, "http://10.96.1.1/") == "this is web.shop, port 80\n"
    for name in ("web.shop", "WEB.shop.svc.cluster.local", "web.shop.svc"):
        assert connected.curl(*proxy, f"http://{name}/") == "this is web.shop, port 80\n"
    assert connected.curl(*proxy, f"http://{SITE_ADDRESS}/") == f"this is {SITE}, port 80\n"


def test_sshd_is_killed_and_restarted_and_the_next_request_works(connected: Laptop) -> None:
    connected.curl("http://web.shop/")
    client = connected.host.start(
        *(sys.executable, str(CLIENTS / "talk.py"), "wait_for_the_end", "mail.shop", "25"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert "220" in client.stdout.readline()
    connected.stop_endpoint()
    # What was open is visibly broken, not ended as if all had been said.
    assert client.stdout.readline() == "reset\n"
    assert connected.status()["state"] == "degraded"
    connected.start_endpoint()
    assert connected.curl("http://web.shop/") == "this is web.shop, port 80\n"
    tunnel = connected.status()["tunnel"]
    assert tunnel["state"] == "connected"
    assert tunnel["reconnects"] >= 1
    assert tunnel["remote"].endswith(":2222")


def test_a_request_during_the_outage_waits_for_the_tunnel(connected: Laptop) -> None:
    assert connected.lookup("web.shop") == ["10.96.1.1"]
    connected.stop_endpoint()
    eventually(lambda: connected.status()["tunnel"]["state"] == "reconnecting")
    command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "30", "http://web.shop/"]
    client = connected.host.start(*command, stdout=subprocess.PIPE, text=True)
    eventually(lambda: any(row["name"] == "web.shop" and row["connections"] for row in connected.mappings()))
    connected.start_endpoint()
    assert client.communicate(timeout=30)[0] == "this is web.shop, port 80\n"


def test_the_mappings_say_what_was_carried(connected: Laptop) -> None:
    connected.curl("--output", "/dev/null", "http://web.shop/bytes/100000")
    row = next(row for row in connected.mappings() if row["name"] == "web.shop")
    assert set(row) == {
        *("name", "address", "port", "local_address", "local_port", "state", "connections", "total_connections"),
        *("bytes_sent", "bytes_received", "last_used", "expires_in"),
    }
    assert (row["address"], row["port"], row["local_address"]) == ("10.96.1.1", 80, "127.0.0.1")
    assert row["bytes_received"] > 100_000
    assert row["total_connections"] >= 1
    assert row["expires_in"] is None or row["expires_in"] > 500
    ports = [row["local_port"] for row in connected.mappings()]
    assert len(ports) == len(set(ports))
    table = connected.tp2("mappings").stdout
    assert "web.shop" in table
    assert "10.96.1.1:80" in table
