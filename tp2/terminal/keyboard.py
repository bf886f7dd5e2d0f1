"""Keys as they are pressed, and the size of the terminal as it changes: termios(3) and nothing else."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: What terminals send for keys that are no character (xterm's ctlseqs, "PC-Style Function Keys"; vt100 sends ESC O).
_SEQUENCES: Final = {
    b"A": "up",
    b"B": "down",
    b"H": "home",
    b"F": "end",
    b"1~": "home",
    b"4~": "end",
    b"5~": "page up",
    b"6~": "page down",
}
_CHARACTERS: Final = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\x15": "clear"}


class Keyboard:
    """The keys of the terminal on standard input.

    :param wakeup: a descriptor that can be read when a signal has come.
    """

    def __init__(self, wakeup: int) -> None:
        self._wakeup = wakeup

    def wait(self, until: float) -> list[str]:
        """Return the keys that are pressed before *until* (monotonic), as soon as there are any; none when the
        terminal has another size, or when *until* has come.

        :raises EOFError: the terminal is gone.
        """
        stdin = sys.stdin.fileno()
        ready, _, _ = select.select([stdin, self._wakeup], [], [], max(0.0, until - time.monotonic()))
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
        if stdin not in ready:
            return []
        data = os.read(stdin, 4096)
        if not data:
            raise EOFError
        return list(keys(data))


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Read standard input, a terminal, key by key and without echo; Ctrl-C stays KeyboardInterrupt."""
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()
    former_wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # Only a signal with a handler wakes anybody.
    former_handler = signal.signal(signal.SIGWINCH, lambda *_: None)
    try:
        tty.setcbreak(stdin)
        yield Keyboard(reading)
    finally:
        termios.tcsetattr(stdin, termios.TCSAFLUSH, before)
        signal.signal(signal.SIGWINCH, former_handler)
        signal.set_wakeup_fd(former_wakeup)
        os.close(reading)
        os.close(writing)


def _pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing


def keys(data: bytes) -> Iterator[str]:
    """Give the keys that *data* from a terminal stands for: a character each, or a name such as ``up`` or ``escape``.

    What is not known gives nothing.
    """
    while data:
        if data[:1] == b"\x1b":
            if data[1:2] not in (b"[", b"O"):
                yield "escape"
                data = data[1:]
                continue
            end = 2
            # Parameters and intermediates, then one final byte (ECMA-48 section 5.4).
            while end < len(data) and 0x20 <= data[end] <= 0x3F:
                end += 1
            name = _SEQUENCES.get(data[2 : end + 1])
            if name is not None:
                yield name
            data = data[end + 1 :]
            continue
        length = 1 if data[0] < 0xC0 else 2 if data[0] < 0xE0 else 3 if data[0] < 0xF0 else 4
        text, data = data[:length].decode(errors="ignore"), data[length:]
        # More than one only where the terminal sends what is no UTF-8.
        for character in text:
            if character in _CHARACTERS:
                yield _CHARACTERS[character]
            elif character.isprintable():
                yield character
