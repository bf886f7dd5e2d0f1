"""The program ``tp2``, which is ``python -m tp2`` too: from its first moment to its last, Ctrl-C ends it quietly.

What the commands need takes a tenth of a second to import, in which Python would answer with a traceback.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """The console script; see :func:`tp2.cli.main`. Interrupted, it exits with 130."""
    # Whoever started it in the background may have it ignore interrupts.
    heeds = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if heeds:
            # There is nothing to undo yet, and an exception might get lost in what is being imported.
            signal.signal(signal.SIGINT, _end)
        from tp2 import cli

        if heeds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
    except KeyboardInterrupt:
        _end()
    finally:
        if heeds:
            # Everything is undone by now, and Python would not be interrupted quietly in its last moments.
            signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> NoReturn:
    os._exit(130)


if __name__ == "__main__":
    main()
