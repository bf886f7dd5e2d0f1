"""What goes through the WebSocket of a port-forward: one TCP stream in one channel, its failure in another.

Pure. Every message begins with a byte that names its channel: data of the n-th port is channel 2n, errors about it
2n+1. The first two bytes on each of them, from the server only, are the port's number, little endian; what follows is
the stream itself, cut anywhere. There is no end of file: a stream ends with its WebSocket, or with a text for people
on the error channel, after which nothing can come.

The subprotocol is ``v4.channel.k8s.io``; its only description is the API server's and kubelet's source:
https://github.com/kubernetes/kubernetes/blob/v1.36.2/pkg/kubelet/cri/streaming/portforward/websocket.go
"""

from __future__ import annotations

from typing import Final

SUBPROTOCOL: Final = "v4.channel.k8s.io"

DATA: Final = 0
ERROR: Final = 1
"""The channels of the first port named in the request, which is the only one that tp2 names."""

PAYLOAD_LIMIT: Final = 32 * 1024
"""Bytes of the stream per message, as the server sends them too: less would cost headers, more would cost memory."""

_PORT_BYTES: Final = 2
_WORDS_LIMIT: Final = 500


class StreamFailed(Exception):
    """The server's words on the error channel, on one line: the pod could not be dialled, or went away."""


class NotPortForward(Exception):
    """A message that no port-forward has."""


def frame(payload: bytes) -> bytes:
    """The message that carries *payload*, at most :data:`PAYLOAD_LIMIT` bytes, to the pod."""
    return b"\0" + payload


class Reader:
    """Reads the messages of a port-forward to *port*, in order."""

    def __init__(self, port: int) -> None:
        self._expected = port.to_bytes(_PORT_BYTES, "little")
        self._heard = {DATA: b"", ERROR: b""}

    def read(self, message: bytes) -> bytes:
        """Return the bytes of the stream in *message*, which may be none.

        :raises StreamFailed: it reports an error.
        :raises NotPortForward: it is no message of a port-forward to this port.
        """
        if not message or message[0] not in self._heard:
            raise NotPortForward(f"a message for the unknown channel {message[0]}" if message else "an empty message")
        channel, payload = message[0], message[1:]
        if self._heard[channel] != self._expected:
            payload = self._read_port(channel, payload)
        if channel == ERROR and payload:
            raise StreamFailed(" ".join(payload.decode("utf-8", "replace").split())[:_WORDS_LIMIT])
        return payload

    def _read_port(self, channel: int, payload: bytes) -> bytes:
        missing = _PORT_BYTES - len(self._heard[channel])
        self._heard[channel] += payload[:missing]
        if not self._expected.startswith(self._heard[channel]):
            raise NotPortForward("a port number that was not asked for")
        return payload[missing:]
