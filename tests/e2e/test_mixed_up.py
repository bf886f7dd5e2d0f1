"""When a fault inside tp2 mixes its connections up, it ends at once and leaves nothing, as after SIGKILL."""

from __future__ import annotations

import subprocess
import sys

from tests.e2e.conftest import PATIENCE, Laptop
from tp2.sandbox.box import SSH_PORT

# tp2 as it is, with a fault: it closes the descriptor of its SSH connection when it is told to.
FAULTY = f"""
import os, socket, sys, threading
from tp2.cli import main

def descriptor():
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            sock = socket.socket(fileno=os.dup(number))
            if sock.getpeername()[1] == {SSH_PORT}:
                return number
        except (OSError, IndexError):
            continue

def lose():
    sys.stdin.readline()
    number = descriptor()
    # The next descriptor that is given out is the one that was lost.
    while os.open(os.devnull, os.O_RDONLY) < number:
        pass
    os.close(number)
    print("lost", flush=True)

threading.Thread(target=lose, daemon=True).start()
main()
"""


def test_a_daemon_that_lost_a_descriptor_ends_rather_than_reset_everything_for_ever(laptop: Laptop) -> None:
    before = laptop.ruleset()
    python, _, _, *arguments = laptop.box.up_command()
    assert python == sys.executable
    up = laptop.host.start(
        *(python, "-c", FAULTY, *arguments),
        env=laptop.box.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert up.stdin is not None
    assert up.stdout is not None
    assert up.stderr is not None
    assert any(line.startswith("ready") for line in up.stdout)
    assert laptop.lookup("web.shop") == ["10.96.1.1"]
    up.stdin.write("now\n")
    up.stdin.flush()
    assert up.stdout.readline() == "lost\n"
    laptop.run("curl", "--silent", "--max-time", "10", "http://10.96.1.1/")
    assert up.wait(PATIENCE) == 1
    assert "cannot be told apart" in up.stderr.read()
    assert laptop.ruleset() == before
    assert laptop.tp2("status").code == 3
