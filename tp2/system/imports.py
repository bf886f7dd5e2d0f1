"""Importing what is heavy, without what those imports do besides: a third of the time that tp2 takes to start.

aiohttp reads all certificate authorities of the machine when it is imported, for connections that say nothing of their
own; all of tp2's say which they trust. asyncssh looks for two libraries that it can do without, and ctypes asks the C
compiler where they might be. And the garbage collector walks again and again through modules that are there to stay.
"""

from __future__ import annotations

import ctypes.util
import gc
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

#: Where ctypes looks after it has asked the dynamic linker's cache.
_SLOW_SEARCHES: Final = ("_findLib_gcc", "_findLib_ld")


@contextmanager
def quickly() -> Iterator[None]:
    """Let imports within it be quick; what they bring is left alone by the garbage collector from then on."""
    with ExitStack() as stack:
        for search in _SLOW_SEARCHES:
            stack.enter_context(_in_place_of(ctypes.util, search, lambda _name: None))
        stack.enter_context(_in_place_of(ssl, "create_default_context", _trusting_nobody))
        gc.disable()
        try:
            yield
        finally:
            gc.enable()
            gc.freeze()


def _trusting_nobody(*_: Any, **__: Any) -> ssl.SSLContext:
    """Return a context that accepts no server: whoever forgot to bring one of their own finds out at once."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@contextmanager
def _in_place_of(module: Any, name: str, other: Callable[..., Any]) -> Iterator[None]:
    own = getattr(module, name, None)
    if own is None:
        yield
        return
    setattr(module, name, other)
    try:
        yield
    finally:
        setattr(module, name, own)
