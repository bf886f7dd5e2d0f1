"""Cuts a watch's byte stream into lines: one JSON object each, of any size up to a bound.

Pure. A chunk may hold several lines or a hundredth of one (an EndpointSlice with 1,000 endpoints is 250 kB, etcd
allows 1.5 MiB and more). The HTTP library's own ``readline`` has a smaller bound and an error that is hard to
catch, so tp2 cuts for itself. What follows the last line end when the stream ends was cut off: it is never returned.
"""

from __future__ import annotations


class LineTooLong(Exception):
    """A line passed the bound: the stream cannot be followed any further."""


class LineSplitter:
    """Feed it chunks; it returns whole lines without their line ends.

    :param limit: a longer line raises :class:`LineTooLong`, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that *chunk* completes; empty lines are left out.

        :raises LineTooLong: the line in progress is longer than the limit.
        """
        *lines, rest = chunk.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._parts, lines[0]))
            self._parts.clear()
            self._size = 0
        # Parts are kept in a list: joining them for every chunk would cost the square of a long line.
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
        if self._size > self._limit or any(len(line) > self._limit for line in lines):
            raise LineTooLong(f"a line of more than {self._limit} bytes")
        return [line for line in lines if line.strip()]
