"""libnftables, the library behind nft(8), by ctypes: commands in nft's own language go in, errors come out.

A :class:`Session` holds a netlink socket of its own. A table with the *owner* flag that was created through it
belongs to it, and is deleted by the kernel when it closes.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any, Final

from tp2.errors import ForwarderError

LIBRARY: Final = "libnftables.so.1"

# nftables/libnftables.h: NFT_CTX_OUTPUT_JSON | NFT_CTX_OUTPUT_NUMERIC_ALL
_JSON: Final = 0x10 | 0x780


class Session:
    """One libnftables context.

    :raises ForwarderError: there is no libnftables, or the kernel has no nftables.
    """

    def __init__(self) -> None:
        self._library = _load()
        self._context: int | None = self._library.nft_ctx_new(0)
        if not self._context:
            raise ForwarderError(
                "cannot use nftables",
                "libnftables could not open a netlink socket",
                "check that the kernel has nftables (modprobe nf_tables)",
            )
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_output_set_flags(self._context, _JSON)

    def run(self, commands: str) -> str | None:
        """Run *commands* as one transaction; return None, or in one line why nothing has changed."""
        if self._context is None:
            return "the table is closed"
        if self._library.nft_run_cmd_from_buffer(self._context, commands.encode("ascii")) == 0:
            return None
        text = self._library.nft_ctx_get_error_buffer(self._context) or b""
        # The library quotes the failing command and underlines it: the first line carries the reason.
        lines = text.decode("utf-8", "replace").strip().splitlines()
        return lines[0].partition("Error: ")[2] or lines[0] if lines else "no reason given"

    def read(self, command: str) -> list[dict[str, Any]]:
        """Return what a list *command* answers: objects of libnftables-json(5).

        :raises ForwarderError: it failed.
        """
        error = self.run(command)
        if error is None:
            answer = self._library.nft_ctx_get_output_buffer(self._context) or b""
            try:
                return list(json.loads(answer)["nftables"])
            except (ValueError, TypeError, KeyError):
                error = f"libnftables does not speak JSON: {answer[:80]!r}"
        raise ForwarderError("cannot read nftables", error, "see 'nft list ruleset'")

    def close(self) -> None:
        """Close the netlink socket; what it owns is gone when this returns. May be called twice."""
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
        self._context = None


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
        context = ctypes.c_void_p
        for name, result, arguments in (
            ("nft_ctx_new", context, [ctypes.c_uint32]),
            ("nft_ctx_free", None, [context]),
            ("nft_ctx_buffer_error", ctypes.c_int, [context]),
            ("nft_ctx_get_error_buffer", ctypes.c_char_p, [context]),
            ("nft_ctx_buffer_output", ctypes.c_int, [context]),
            ("nft_ctx_get_output_buffer", ctypes.c_char_p, [context]),
            ("nft_ctx_output_set_flags", None, [context, ctypes.c_uint]),
            ("nft_run_cmd_from_buffer", ctypes.c_int, [context, ctypes.c_char_p]),
        ):
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise ForwarderError(
            "cannot use nftables",
            f"the library {LIBRARY} could not be loaded ({error})",
            "install it: apt install libnftables1 (Debian, Ubuntu), dnf install nftables (Fedora)",
        ) from error
    return library
