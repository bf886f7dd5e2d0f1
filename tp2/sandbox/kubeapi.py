"""A small Kubernetes API over TLS: for ``tp2 demo``, and for tests of what has to survive a real one.

It lists, pages, watches, creates, applies, replaces and deletes the objects that tp2 and its endpoint are about, and
answers as recordings of Kubernetes 1.36 do where a client can tell the difference. This is the program around
:class:`~tp2.sandbox.kubeapi_server.KubeApi`::

    python -m tp2.sandbox.kubeapi --listen ADDRESS:PORT --dir DIR [--objects FILE.json]... [--role NAME]

It keeps its CA and token in DIR, so a kubeconfig stays valid when it is started again. It writes ``DIR/kubeconfig``
once it listens, and then prints ``ready``. SIGHUP makes it take the token that is in DIR then, and no other: the
credentials that were good before have expired. SIGTERM and SIGINT end it. Its objects are those of the files at every
start: what was changed through the API is forgotten, and versions begin higher than they ended, as after a restart
of a real API server, whose watch cache starts empty.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import signal
import sys
import time
from pathlib import Path

from tp2.sandbox.kubeapi_resources import StatusError
from tp2.sandbox.kubeapi_server import KubeApi
from tp2.sandbox.kubeapi_store import Store
from tp2.sandbox.tls import KeyPair, new_authority, write_private


def main(arguments: list[str] | None = None) -> int:
    """Run the server until SIGTERM or SIGINT; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tp2.sandbox.kubeapi", description="a small Kubernetes API")
    parser.add_argument("--listen", required=True, metavar="ADDRESS:PORT", help="an IP address; [ADDRESS] for IPv6")
    parser.add_argument("--dir", required=True, type=Path, help="where CA, token and kubeconfig are kept")
    parser.add_argument("--objects", action="append", default=[], type=Path, help="a JSON list or List of objects")
    parser.add_argument("--namespace", default="default", help="the namespace of the kubeconfig's context")
    parser.add_argument("--role", default="", help="the Role and ClusterRole of the user, who may otherwise do all")
    options = parser.parse_args(arguments)
    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdigit():
        parser.error("--listen takes ADDRESS:PORT")
    # Seconds grow faster than versions do, so whoever remembers a version of an earlier life has one that is too old.
    store = Store(first_version=int(time.time()))
    try:
        for path in options.objects:
            store.load(json.loads(path.read_text(encoding="utf-8")))
        api = open_api(store, options.dir, host.strip("[]"), int(port), options.role)
        asyncio.run(_serve(api, options.dir, options.namespace))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StatusError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def open_api(store: Store, directory: Path, host: str, port: int, role: str = "") -> KubeApi:
    """A server whose CA and token are kept in *directory*, which is made if it is missing.

    :raises OSError: the directory cannot be written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        authority = KeyPair.read(directory, "ca")
        token = (directory / "token").read_text(encoding="ascii")
    except FileNotFoundError:
        authority, token = new_authority(), secrets.token_urlsafe(24)
        authority.write(directory, "ca")
        write_private(directory / "token", token.encode())
    return KubeApi(store, authority, token, host=host, port=port, role=role)


async def _serve(api: KubeApi, directory: Path, namespace: str) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)

    def expire() -> None:
        api.token = (directory / "token").read_text(encoding="ascii")
        api.end_watches()

    loop.add_signal_handler(signal.SIGHUP, expire)
    await api.start()
    try:
        # JSON is YAML, and needs no library to write.
        write_private(directory / "kubeconfig", json.dumps(api.kubeconfig(namespace), indent=2).encode())
        print("ready", flush=True)
        await stopped.wait()
    finally:
        await api.stop()


if __name__ == "__main__":
    sys.exit(main())
