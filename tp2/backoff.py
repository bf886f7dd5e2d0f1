"""When to try again: the one reconnect policy, for the Kubernetes API and the SSH tunnel alike.

Pure: the caller passes the time and a random source, and does the waiting.

========== =================================== ===============================================
state      event                               next
========== =================================== ===============================================
up         :meth:`Backoff.failed`              wait 0 s: the first retry is immediate
waiting    :meth:`Backoff.failed`              wait, doubling from ``first`` up to ``ceiling``
waiting    :meth:`Backoff.succeeded`           up; the delay starts over once ``settled`` seconds
                                               have passed without a failure
waiting    :meth:`Backoff.reset`               wait 0 s (woke from sleep, network changed)
========== =================================== ===============================================

Delays are jittered over the upper half of their range, so that many clients that lost the same server do not
return in step, and none returns much earlier than planned.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """The state of one connection's retries. All times are seconds on a monotonic clock.

    :param first: the delay after the second consecutive failure, in seconds.
    :param ceiling: no delay is longer than this, in seconds.
    :param settled: a success must have lasted this many seconds before the delay starts over; a server that
        accepts and drops at once is thus not hammered.
    """

    first: float = 0.1
    ceiling: float = 5.0
    settled: float = 5.0
    random: random.Random = field(default_factory=random.Random)
    failures: int = 0
    _up_since: float | None = None

    def failed(self, now: float) -> float:
        """Note a failure at *now* and return how many seconds to wait before the next attempt."""
        if self._up_since is not None and now - self._up_since >= self.settled:
            self.failures = 0
        self._up_since = None
        self.failures += 1
        if self.failures == 1:
            return 0.0
        # The exponent is bounded: a weekend offline must not overflow a float.
        delay = min(self.ceiling, self.first * 2.0 ** min(self.failures - 2, 60))
        return delay * self.random.uniform(0.5, 1.0)

    def succeeded(self, now: float) -> None:
        """Note that the connection came up at *now*."""
        self._up_since = now

    def reset(self) -> None:
        """Forget past failures: the environment changed, so the next attempt is made at once."""
        self.failures = 0
