"""The control socket: how ``tp2 status``, ``mappings`` and ``down`` speak to the daemon.

One connection, one question, one answer, each a line of JSON: ``{"op": "status"}``, then the answer's object, or
``{"error": TEXT}``. The socket is 0600 in a 0700 directory, and both sides check who is at the other end.
"""

from typing import Final

#: No question is longer, in bytes.
MAX_QUESTION: Final = 4096
