"""The control socket: how ``tp2 status``, ``mappings``, ``map``, ``unmap`` and ``down`` speak to the daemon.

One connection, one question, one answer, each a line of JSON: ``{"op": "status"}`` (and what the operation takes
besides), then the answer's object, or ``{"error": TEXT}``, or for an error that the user can do something about
``{"error": [WHAT, WHY, REMEDY], "exit_code": N}``. The socket is 0600 in a 0700 directory, and both sides check who is
at the other end.
"""

from typing import Final

#: No question is longer, in bytes.
MAX_QUESTION: Final = 4096
