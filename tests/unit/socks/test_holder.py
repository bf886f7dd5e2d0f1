"""Who holds a port can be told, or is not known, but asking never fails."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tp2.socks.holder import holder_of


def test_a_listening_program_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        holder = holder_of(listener.getsockname()[1])
        assert holder
        assert holder.endswith(f"(pid {os.getpid()})")


def test_a_port_that_is_only_connected_from_has_no_holder() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        assert holder_of(client.getsockname()[1]) is None


def test_without_proc_it_is_not_known(tmp_path: Path) -> None:
    assert holder_of(80, tmp_path) is None
