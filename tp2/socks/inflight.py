"""How much of a channel is on its way to the other side: what the link needs, and not all that may be. Pure.

The other side's window (RFC 4254 section 5.2) says what it has room for; sshd's is 2 MB. All of a bulk transfer that is
on its way lies before whatever another channel sends next, in the buffers of the one TCP connection. On a link of a
millisecond, 2 MB are ten of them. So a channel begins with a part of the window, and gets more of it as long as it is
held back by that and the link is not near.
"""

from __future__ import annotations

from typing import Final

FIRST: Final = 384 * 1024
"""Bytes that are on their way at first, to an OpenSSH."""

NEAR: Final = 0.002
"""Seconds of a round trip in which more bytes on their way than :data:`FIRST` do no good: that is 1.5 Gbit/s."""

HELD_BACK: Final = 0.3
"""What part of the limit a channel takes in a round trip that is held back by it. It could be all; but sshd's word of
it waits for the acknowledgement of the one before (Nagle's algorithm), which comes once in a round trip."""

OPENSSH: Final = "SSH-2.0-OpenSSH_"


def first(server: str) -> int | None:
    """Return how many bytes may be on their way at first to a *server* of this version (RFC 4253 section 4.2).

    None for no limit. OpenSSH gives a window back once 96 KiB of it are taken; others may wait until half of it is, and
    would wait for ever for what is held back here.
    """
    return FIRST if server.startswith(OPENSSH) else None


class InFlight:
    """The limit of a channel.

    :param first: what :func:`first` says.
    :param window: bytes that the other side takes at first.
    :param now: monotonic seconds.
    """

    __slots__ = ("_reserve", "_since", "_taken", "limit")

    def __init__(self, first: int | None, window: int, now: float) -> None:
        #: Bytes that may be on their way.
        self.limit = window if first is None else min(window, first)
        self._reserve = window - self.limit
        self._since = now
        self._taken = 0

    def taken(self, size: int, now: float, round_trip: float) -> int:
        """Return how many bytes more than before may be on their way, now that the other side has taken *size* more.

        :param round_trip: seconds, the least that was seen on this link.
        """
        if not self._reserve or round_trip < NEAR:
            return 0
        self._taken += size
        passed = now - self._since
        if passed < round_trip:
            return 0
        held_back = self._taken * round_trip > HELD_BACK * self.limit * passed
        self._since, self._taken = now, 0
        if not held_back:
            return 0
        more = min(self._reserve, self.limit)
        self._reserve -= more
        self.limit += more
        return more
