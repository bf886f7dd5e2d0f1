"""The commands of README and first steps, word for word, as somebody types them who has never seen tp2.

A comment ``<!-- newcomer: NAME -->`` stands before each block that is meant. In a ``console`` block the lines after a
command are what it should print: numbers may differ, ``...`` stands for any lines, and of a line that reports a stage
(``tunnel   me@bastion:22``) only the stage counts.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.conftest import PATIENCE, Ended, Laptop
from tests.e2e.kubelet import Kubelet
from tests.e2e.test_as_the_user import open_the_way_to_python
from tests.e2e.test_install import bare_cluster, kubeconfig
from tp2.sandbox.box import Sandbox, tp2_command

README = Path(__file__).parents[2] / "README.md"
FIRST_STEPS = Path(__file__).parents[2] / "docs" / "first-steps.md"

UID, NAME = 1742, "newcomer"

_BLOCK = re.compile(
    r"^<!-- newcomer: (?P<name>\w+) -->\n```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Step:
    """A command, and the lines that it should print; None where the README does not say."""

    command: str
    expected: tuple[str, ...] | None = None


def steps(name: str, readme: Path = README) -> list[Step]:
    """Return the commands of a marked block.

    :raises LookupError: there is no such block.
    """
    for block in _BLOCK.finditer(readme.read_text(encoding="utf-8")):
        if block["name"] == name:
            lines = block["text"].splitlines()
            return list(_session(lines)) if block["kind"] == "console" else [Step(line) for line in lines if line]
    raise LookupError(f"{readme} has no block after <!-- newcomer: {name} -->")


def _session(lines: Sequence[str]) -> Iterator[Step]:
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield Step(lines[start].removeprefix("$ "), tuple(lines[start + 1 : end]))


def differences(expected: Sequence[str], printed: Sequence[str]) -> list[str]:
    """Return how *printed* is not what was *expected*; empty if it is."""
    pattern = "".join("(?:.*\n)*" if line == "..." else f"{re.escape(_shape(line))}\n" for line in expected)
    shapes = [_shape(line) for line in printed]
    if re.fullmatch(pattern, "".join(f"{shape}\n" for shape in shapes)):
        return []
    return ["expected:", *expected, "printed:", *printed]


def _shape(line: str) -> str:
    stage = re.match(r"(\w+) {2,}\S", line)
    return stage[1] if stage else re.sub(r"\d+", "1", re.sub(r"(\s|─)+", r"\1", line.strip()))


class Newcomer:
    """Somebody at a laptop, with a kubeconfig and an SSH key, and nothing in their cluster.

    :param home: of theirs; below it, ``.tp2/bin/tp2`` is tp2.
    :param name: of a user who may call sudo without a password: there is nobody to type one.
    """

    def __init__(self, laptop: Laptop, home: Path, uid: int, name: str) -> None:
        self.laptop = laptop
        self.home = home
        self._name = name
        # As after a login, with tp2 on the path. Root's has it too, as if it had come with a package.
        path = f"{home}/.tp2/bin:/usr/local/bin:/usr/bin:/bin"
        laptop.host.shell(f"""
            printf '%s\\n' 'Defaults:{name} secure_path="{home}/.tp2/bin:/usr/sbin:/usr/bin:/sbin:/bin"' \\
                '{name} ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/newcomer
            chmod 440 /etc/sudoers.d/newcomer
            echo "127.0.0.1 $(hostname)" >>/etc/hosts""")
        variables = {
            "HOME": str(home),
            "USER": name,
            "LOGNAME": name,
            "PATH": path,
            "LC_ALL": "C.UTF-8",
            "SHELL": "/bin/sh",
        }
        self._command = [
            *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups", "env", "-i", "-C", str(home)),
            *(f"{key}={value}" for key, value in variables.items()),
            *("bash", "-c"),
        ]

    def type(self, line: str) -> Ended:
        """Type a command, and wait until it has ended."""
        return self.laptop.run(*self._command, line)

    def shows(self, line: str, size: tuple[int, int] = (80, 24), kind: str = "") -> Iterator[bytes]:
        """Type a command in a terminal; yield what comes there, as it comes, until the command has ended.

        :param size: of the terminal: columns, rows.
        :param kind: what ``TERM`` says; empty for nothing.
        """
        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (size[1], size[0]))
        process: subprocess.Popen[Any] = self.laptop.host.start(
            *self._command,
            f"export TERM={kind}; {line}" if kind else line,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        try:
            while select.select([ours], [], [], PATIENCE)[0]:
                yield os.read(ours, 65536)
        except OSError:
            # EIO: nobody has the terminal any more.
            pass
        finally:
            os.close(ours)
            process.wait(PATIENCE)

    def see(self, line: str) -> list[str]:
        """Type a command in a terminal, and return the lines that it has shown there, but for empty ones."""
        shown = b"".join(self.shows(line)).decode(errors="replace")
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.replace("\r", ""))
        return [text for text in text.splitlines() if text.strip()]

    @contextmanager
    def typed(self, line: str) -> Iterator[None]:
        """Type a command that goes on until ``tp2 down``; it has to become ready."""
        process: subprocess.Popen[Any] = self.laptop.host.start(
            *self._command, line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        printed = []
        for text in process.stdout:
            printed.append(text.rstrip("\n"))
            if text.startswith("ready"):
                break
        assert "".join(printed[-1:]).startswith("ready"), "\n".join(printed)
        try:
            yield
        finally:
            down = self.type("tp2 down")
            assert down.code == 0, down.stderr
            assert process.wait(30) == 0


@contextmanager
def newcomer(laptop: Laptop, home: Path, uid: int, name: str) -> Iterator[Newcomer]:
    """Give a laptop to somebody, whose kubeconfig is that of a cluster without an endpoint."""
    with bare_cluster(laptop), Kubelet(laptop.box, kubeconfig(laptop), "10.244.9.72"):
        someone = Newcomer(laptop, home, uid, name)
        (home / ".kube").mkdir(exist_ok=True)
        (home / ".kube" / "config").write_bytes(kubeconfig(laptop).read_bytes())
        if not (home / ".ssh" / "id_ed25519").exists():
            subprocess.run(
                [
                    "sh",
                    "-euc",
                    'mkdir -p "$1/.ssh"; ssh-keygen -q -t ed25519 -N "" -f "$1/.ssh/id_ed25519"',
                    "sh",
                    home,
                ],
                check=True,
            )
        subprocess.run(["chown", "-R", f"{uid}:{uid}", home / ".kube", home / ".ssh"], check=True)
        yield someone


def prepare(laptop: Laptop) -> tuple[Path, int, str]:
    """Make room on a laptop for somebody who has the tp2 of this checkout; return home, uid and name."""
    box = laptop.box
    open_the_way_to_python(laptop)
    for directory in (box.directory, box.directory / "api"):
        directory.chmod(0o755)
    home = box.directory / "home"
    program = home / ".tp2" / "bin" / "tp2"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {" ".join(tp2_command())} "$@"\n')
    program.chmod(0o755)
    os.chown(home, UID, UID)
    laptop.host.shell(f"""
        echo '{NAME}:x:{UID}:{UID}::{home}:/bin/sh' >>/etc/passwd
        echo '{NAME}:*:20000:0:99999:7:::' >>/etc/shadow""")
    return home, UID, NAME


def look(someone: Newcomer) -> None:
    """Do what the first steps show, and see that it is as they show it."""
    for step in steps("look", FIRST_STEPS):
        assert step.expected is not None
        assert (wrong := differences(step.expected, someone.see(step.command))) == [], "\n".join([step.command, *wrong])


def use(someone: Newcomer, install: bool = True) -> None:
    """Do what "Use it" says, and fetch a page by its name.

    :param install: False where tp2 is there already, and the lines that install it are not to be typed.
    """
    for step in steps("use"):
        words = shlex.split(step.command, comments=True)
        if "up" in words:
            with someone.typed(step.command):
                assert (
                    someone.type("curl --silent --show-error http://web.shop/").stdout == "this is web.shop, port 80\n"
                )
        elif "pip" not in step.command or install:
            done = someone.type(step.command)
            assert done.code == 0, done.stderr


def main() -> None:
    """``python -m tests.e2e.readme HOME UID NAME``: on a machine where tp2 was installed by the README's words."""
    home, uid, name = sys.argv[1:]
    with Sandbox() as box, newcomer(Laptop(box), Path(home), int(uid), name) as someone:
        use(someone, install=False)
        print("newcomer: 'Use it' works as the README says")
        look(someone)
        print("newcomer: what the first steps show is what happens")


if __name__ == "__main__":
    main()
