"""A channel that is being opened on a connection that is up, in no task and with nothing that waits.

Most connections of a day are short, and a task with its timeouts costs more than they do. This is the way for the
ordinary case; :meth:`tp2.socks.tunnel.Tunnel.open` is the one for all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncssh

from tp2.socks.channel import Channel, End, Link
from tp2.socks.reasons import ChannelRefused, Refusal, channel_refused


class Opening:
    """Asks for a channel on *link* to *host* and *port* at once; when it is open it belongs to *end*.

    :param timeout: seconds for the answer.
    :param failed: called once if it does not open: with the reason, or with None if the connection was lost and it
        may be tried again on another one.
    :raises ConnectionError: the connection is gone.
    """

    def __init__(
        self,
        link: Link,
        end: End,
        host: str,
        port: int,
        timeout: float,
        failed: Callable[[ChannelRefused | None], None],
    ) -> None:
        self._end = end
        self._failed = failed
        self._timeout = timeout
        self._channel = Channel(link, self)
        self._timer = asyncio.get_running_loop().call_later(timeout, self._too_late)
        self._channel.open(host, port)

    def cancel(self) -> None:
        """Leave it: nobody is called any more, and a channel that opens later is closed. No-op once it is open."""
        self._timer.cancel()
        self._channel.cancel()

    # tp2.socks.channel.Opener

    def opened(self) -> End:
        """The channel is open."""
        self._timer.cancel()
        return self._end

    def refused(self, code: int, reason: str) -> None:
        """The endpoint says why not."""
        self._timer.cancel()
        self._failed(channel_refused(asyncssh.ChannelOpenError(code, reason)))

    def lost(self) -> None:
        """There is no connection any more."""
        self._timer.cancel()
        self._failed(None)

    def _too_late(self) -> None:
        self.cancel()
        self._failed(ChannelRefused(Refusal.TIMED_OUT, f"no answer within {self._timeout:g} s"))
