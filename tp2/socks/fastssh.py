"""The packets of an SSH connection after its login, without what asyncssh spends on each: all of it that reaches in.

asyncssh does the handshake, the login, the keys (again whenever they are due), keepalives and everything that is rare.
Once a login is complete, :func:`take_over` puts a :class:`FastLink` between the connection and its transport. It
makes and reads the packets of an established connection itself (RFC 4253 section 6, RFC 5647), in one pass and with
few copies, sends those of one turn of the event loop together, and leaves out what only other ciphers need: asyncssh
sends an SSH_MSG_IGNORE before each packet, which guards CBC, and formats a log record for each.

It holds to one rule: **what asyncssh keeps of a connection is at all times as if asyncssh had made and read every
packet.** The nonces above all: none is ever used twice, whoever makes the next packet. So a packet that is not one of
the few that are known here, or is not as it should be (too long, wrongly signed), is given to asyncssh untouched, and
there is no second implementation of anything that is rare. While asyncssh is busy with such a packet (a key exchange),
all that comes goes through it, until it is idle again.

The stock path stays: with an asyncssh that is not one of :data:`TESTED`, with another cipher than AES-GCM, or with
:data:`ENABLED` off, nothing is taken over, and the tunnel uses asyncssh's channels.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import struct
import time
from collections import deque
from typing import Final, cast

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.connection import SSHConnection
from asyncssh.encryption import GCMEncryption
from asyncssh.packet import SSHPacket, SSHPacketLogger
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tp2.socks import channel as channels
from tp2.socks import inflight
from tp2.socks.channel import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_WINDOW_ADJUST,
    Channel,
    ProtocolViolation,
)
from tp2.socks.transport import SocketReader, StreamReader, tune

logger = logging.getLogger(__name__)

#: The series of asyncssh whose inner workings are known here, and tested.
TESTED: Final = ("2.24.",)

#: Off for comparisons, and for a person who suspects this module.
ENABLED = os.environ.get("TP2_FAST_SSH", "1") != "0"

READ_SIZE: Final = 256 * 1024
"""Bytes taken from the socket in one turn of the event loop: then others have theirs."""

LARGEST: Final = 256 * 1024
"""The longest packet that is read here; OpenSSH's own limit (PACKET_MAX_SIZE). A longer one is asyncssh's to refuse."""

UNSENT: Final = 128 * 1024
"""Bytes that wait in the kernel, and as many here, before channels have to wait for their turn: it comes soon then."""

SPARE: Final = 64 * 1024 * 1024
"""Bytes that the windows of all channels together may have grown by."""

SHORT: Final = 0.002
"""Seconds of a round trip below which a delayed acknowledgement does no harm."""

_TAG: Final = 16
_LARGEST_COUNT: Final = (1 << 64) - 1
_LENGTH: Final = struct.Struct(">I")
_NUMBERS: Final = struct.Struct(">II")
_CONFIRMATION: Final = struct.Struct(">IIII")
_DATA_HEAD: Final = struct.Struct(">BBII")

SHORTEST: Final = 16
"""A packet's least length with a cipher of 16-octet blocks: there are always as many octets to look at."""

MSG_KEXINIT: Final = 20
MSG_KEX_LAST: Final = 49
"""Messages up to this number are of the transport layer (RFC 4250 section 4.1.2), and asyncssh's own business."""

_KNOWN: Final = {
    channels.MSG_CHANNEL_OPEN_CONFIRMATION: 17,
    channels.MSG_CHANNEL_WINDOW_ADJUST: 9,
    channels.MSG_CHANNEL_EOF: 5,
    channels.MSG_CHANNEL_CLOSE: 5,
}
"""Messages that are read here, with the size that they have if they are as they should be. DATA is the other one."""


def take_over(connection: asyncssh.SSHClientConnection, *, socket_below: bool) -> FastLink | None:
    """Read and write the packets of *connection* from now on; None if it has to stay as it is.

    :param connection: logged in, and nobody's channel on it yet.
    :param socket_below: whether its transport is one of the event loop's own, which can read into a buffer.
    """
    if not ENABLED or not asyncssh.__version__.startswith(TESTED):
        logger.debug("asyncssh %s is used as it is", asyncssh.__version__)
        return None
    link = FastLink(connection)
    if not link.start(socket_below):
        logger.debug("the cipher is not AES-GCM: asyncssh is used as it is")
        return None
    return link


class _Keys:
    """One direction's cipher: the key of asyncssh's *encryption*, and its nonce, which is asyncssh's to keep."""

    def __init__(self, encryption: GCMEncryption) -> None:
        self.encryption = encryption
        self.cipher = encryption._cipher
        aead = AESGCM(self.cipher._key)
        self.encrypt = aead.encrypt
        self.decrypt = aead.decrypt

    def take_nonce(self) -> bytes:
        """Return the next packet's nonce, which is never returned again."""
        nonce: bytes = self.cipher._iv
        # RFC 5647 section 7.1: four octets that stay, then the invocation counter.
        self.cipher._iv = nonce[:4] + ((int.from_bytes(nonce[4:], "big") + 1) & _LARGEST_COUNT).to_bytes(8, "big")
        return nonce


class FastLink:
    """The packets of *connection*; a :class:`tp2.socks.channel.Link`. Made by :func:`take_over`."""

    def __init__(self, connection: SSHConnection) -> None:
        loop = asyncio.get_running_loop()
        self.time = loop.time
        self.free = True
        self.first = inflight.first(str(connection.get_extra_info("server_version")))
        self.nearest = math.inf
        self._round_trip = 0.0
        self._loop = loop
        self._connection = connection
        self._transport = cast(asyncio.Transport, connection._transport)
        self._channels: dict[int, Channel] = {}
        self._spare = SPARE
        # Sending.
        self._keys_out: _Keys | None = None
        self._exchanging_keys = False
        self._padding = b""
        self._padded = 0
        self._out: list[bytes] = []
        self._out_size = 0
        self._flushing = False
        self._socket_takes = True
        self._turns: deque[Channel] = deque()
        # Receiving.
        self._keys_in: _Keys | None = None
        self._asyncssh_reads = False
        self._buffer = memoryview(bytearray(READ_SIZE + LARGEST + 4 + _TAG))
        self._start = self._end = 0
        self._heard = 0.0
        self._acknowledge = tune(self._transport, UNSENT)

    def start(self, socket_below: bool) -> bool:
        """Take the connection over; False if it is not of the kind that can be."""
        connection = self._connection
        if connection._compressor or connection._decompressor or not connection._auth_complete:
            return False
        self._keys_out = self._keys(self._keys_out, connection._send_encryption)
        if self._keys_out is None or not self._take_receiving():
            return False
        self._transport.pause_reading()
        self._transport.set_protocol(SocketReader(self) if socket_below else StreamReader(self))
        self._transport.set_write_buffer_limits(high=UNSENT)
        connection.send_packet = self._send_packet  # type: ignore[method-assign]
        connection._send = self._enqueue  # type: ignore[assignment, method-assign]
        connection._send_deferred_packets = self._keys_are_new  # type: ignore[method-assign]
        self._transport.resume_reading()
        self._read()
        return True

    # For channels.

    def register(self, channel: Channel) -> int:
        """Return our number for a new channel."""
        try:
            number = self._connection.add_channel(cast(SSHChannel[bytes], _ForAsyncssh(channel)))
        except asyncssh.ChannelOpenError as error:
            raise ConnectionError(str(error)) from None
        self._channels[number] = channel
        return number

    def forget(self, number: int) -> None:
        """Nothing comes for this number any more."""
        if self._channels.pop(number, None):
            self._connection.remove_channel(number)

    def answered(self, seconds: float) -> None:
        """Learn how far it is: soon when it is nearer than thought, slowly when it seems farther."""
        self._round_trip = min(seconds, self._round_trip + (seconds - self._round_trip) / 4)
        self.nearest = min(self.nearest, seconds)

    def wait_turn(self, channel: Channel) -> None:
        """Let the channel send when there is room."""
        self._turns.append(channel)

    def lend(self, size: int) -> bool:
        """Let a window grow."""
        if size > self._spare:
            return False
        self._spare -= size
        return True

    def give_back(self, size: int) -> None:
        """Let other windows grow instead."""
        self._spare += size

    def send(self, message: bytes) -> None:
        """Send a message."""
        if self._may_send():
            self._put(message)
        else:
            SSHConnection.send_packet(self._connection, message[0], message[1:])

    def send_data(self, peer: int, data: bytes | memoryview) -> None:
        """Send data on a channel."""
        size = len(data)
        if not self._may_send():
            SSHConnection.send_packet(self._connection, MSG_CHANNEL_DATA, _NUMBERS.pack(peer, size), bytes(data))
            return
        # The padding fills a block, and is at least four octets (RFC 4253 section 6): of 10 + size here.
        padding = (2 - size) % 16 + 4
        self._encrypt(b"".join((_DATA_HEAD.pack(padding, MSG_CHANNEL_DATA, peer, size), data, self._pad(padding))))
        if self._out_size >= UNSENT:
            self._flush()

    # Sending.

    def _may_send(self) -> bool:
        """Whether a packet can be made here: not while keys are exchanged, nor when they should be."""
        connection, keys = self._connection, self._keys_out
        if not connection._kex_complete or connection._rekey_bytes_sent >= connection._rekey_bytes:
            return False
        if keys is None or keys.encryption is not connection._send_encryption:
            self._keys_out = keys = self._keys(keys, connection._send_encryption)
        return keys is not None

    def _keys(self, known: _Keys | None, encryption: object) -> _Keys | None:
        """Return the keys of *encryption*, which may be those that are *known*; None if it is not AES-GCM."""
        if known and known.encryption is encryption:
            return known
        return _Keys(encryption) if isinstance(encryption, GCMEncryption) else None

    def _put(self, payload: bytes) -> None:
        padding = (11 - len(payload)) % 16 + 4
        self._encrypt(b"".join((bytes((padding,)), payload, self._pad(padding))))

    def _pad(self, size: int) -> bytes:
        """Return *size* random octets, which are drawn from the system by the thousand."""
        start = self._padded
        if start + size > len(self._padding):
            self._padding = os.urandom(4096)
            start = 0
        self._padded = start + size
        return self._padding[start : start + size]

    def _encrypt(self, packet: bytes) -> None:
        keys, connection = self._keys_out, self._connection
        assert keys is not None
        length = _LENGTH.pack(len(packet))
        sealed = keys.encrypt(keys.take_nonce(), packet, length)
        connection._send_seq = (connection._send_seq + 1) & 0xFFFFFFFF
        connection._rekey_bytes_sent += len(packet)
        self._enqueue(length, sealed)

    def _enqueue(self, *data: bytes) -> None:
        """Send bytes with all others of this turn of the event loop: in place of :meth:`SSHConnection._send`."""
        self._out += data
        self._out_size += len(data[-1])
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out, self._out, self._out_size = self._out, [], 0
        if out and not self._transport.is_closing():
            self._transport.writelines(out)

    def _send_packet(self, pkttype: int, *args: bytes, handler: SSHPacketLogger | None = None) -> None:
        """asyncssh sends a packet: in place of :meth:`SSHConnection.send_packet`."""
        if pkttype > MSG_KEX_LAST and self._may_send():
            self._put(b"".join((bytes((pkttype,)), *args)))
            return
        if pkttype == MSG_KEXINIT:
            # From here on to the new keys asyncssh keeps what is sent. Channels keep their data themselves.
            self._exchanging_keys = True
            self._see_whether_free()
        SSHConnection.send_packet(self._connection, pkttype, *args)

    def _keys_are_new(self) -> None:
        """A key exchange is over: in place of :meth:`SSHConnection._send_deferred_packets`, which comes last in it."""
        SSHConnection._send_deferred_packets(self._connection)
        self._exchanging_keys = False
        self._see_whether_free()

    def socket_takes(self, more: bool) -> None:
        """The transport has room, or has not."""
        self._socket_takes = more
        self._see_whether_free()

    def _see_whether_free(self) -> None:
        self.free = self._socket_takes and not self._exchanging_keys
        while self.free and self._turns:
            channel = self._turns.popleft()
            if channel.take_turn():
                self._turns.append(channel)

    # Receiving.

    def space(self) -> memoryview:
        """Return where the next bytes go."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end + READ_SIZE > len(self._buffer):
            rest = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, len(rest)
            self._buffer[: self._end] = rest
        return self._buffer[self._end : self._end + READ_SIZE]

    def filled(self, size: int) -> None:
        """Bytes have come to where they should."""
        self._end += size
        self._read()
        if size == READ_SIZE:
            # There is more, and the transport would go on for long before others have their turn.
            self._transport.pause_reading()
            self._loop.call_soon(self._transport.resume_reading)

    def fed(self, data: bytes) -> None:
        """Bytes have come from a transport that cannot put them where they should be."""
        for start in range(0, len(data), READ_SIZE):
            part = data[start : start + READ_SIZE]
            self.space()[: len(part)] = part
            self._end += len(part)
            self._read()

    def ended(self, cause: Exception | None) -> None:
        """The transport has ended."""
        self._connection.connection_lost(cause)

    def _read(self) -> None:
        """Read the packets that are complete."""
        connection = self._connection
        if connection._transport is None:
            # It was closed, and only waits to be told so by its transport.
            self._start = self._end
            return
        self._heard_something()
        try:
            while not self._asyncssh_reads and self._read_known():
                self._ask_asyncssh()
        except ProtocolViolation as violation:
            error = asyncssh.ProtocolError(str(violation))
            connection._send_disconnect(error.code, error.reason, error.lang)
            connection._force_close(error)
        except Exception:  # noqa: BLE001  as asyncssh has it: what is not understood ends the connection
            connection.internal_error()
        if self._asyncssh_reads and self._start < self._end:
            data = bytes(self._buffer[self._start : self._end])
            self._start = self._end
            connection.data_received(data)
            if self._take_receiving():
                self._read()

    def _heard_something(self) -> None:
        connection = self._connection
        now = self.time()
        # asyncssh sets the timer again for every read. A quarter of its time is as good, and costs nothing.
        if now - self._heard > connection._keepalive_interval / 4:
            self._heard = now
            connection._reset_keepalive_timer()
            if connection._rekey_seconds and time.monotonic() >= connection._rekey_time:
                # The next packet is then asyncssh's, which begins with new keys.
                connection._rekey_bytes_sent = connection._rekey_bytes
        if self._acknowledge and self._round_trip > SHORT:
            self._acknowledge()

    def _read_known(self) -> bool:
        """Read packets while they are complete and known here; return whether there is one for asyncssh."""
        connection, keys, buffer = self._connection, self._keys_in, self._buffer
        assert keys is not None
        cipher = keys.cipher
        position, end = self._start, self._end
        while end - position >= 4:
            (length,) = _LENGTH.unpack_from(buffer, position)
            if not SHORTEST <= length <= LARGEST:
                return True
            after = position + 4 + length + _TAG
            if after > end:
                break
            try:
                packet = keys.decrypt(cipher._iv, buffer[position + 4 : after], buffer[position : position + 4])
            except InvalidTag:
                return True
            size = length - 1 - packet[0]
            kind = packet[1]
            number, argument = _NUMBERS.unpack_from(packet, 2)
            channel = self._channels.get(number)
            if channel is None or size != (9 + argument if kind == MSG_CHANNEL_DATA else _KNOWN.get(kind)):
                return True
            # It counts as read from here on: what goes wrong now is not for asyncssh to see again.
            self._start = position = after
            keys.take_nonce()
            connection._recv_seq = (connection._recv_seq + 1) & 0xFFFFFFFF
            if kind == MSG_CHANNEL_DATA:
                channel.data(memoryview(packet)[10 : 10 + argument])
            elif kind == MSG_CHANNEL_WINDOW_ADJUST:
                channel.adjusted(argument)
            elif kind == MSG_CHANNEL_EOF:
                channel.eof()
            elif kind == MSG_CHANNEL_CLOSE:
                channel.closed()
            else:
                _, peer, window, packet_size = _CONFIRMATION.unpack_from(packet, 2)
                channel.opened(peer, window, packet_size)
        return False

    def _ask_asyncssh(self) -> None:
        """Let asyncssh read the packet that begins the buffer, and go on after it if that is all it takes."""
        connection = self._connection
        (length,) = _LENGTH.unpack_from(self._buffer, self._start)
        after = min(self._end, self._start + 4 + length + _TAG)
        data = bytes(self._buffer[self._start : after])
        self._start = after
        self._asyncssh_reads = True
        connection.data_received(data)
        self._take_receiving()

    def _take_receiving(self) -> bool:
        """Go on from where asyncssh is in its reading, if it is idle; return whether that is so."""
        connection = self._connection
        if connection._recv_handler == connection._recv_packet:
            # It has looked at a header, of which nothing has come yet.
            connection._inpbuf = connection._packet + connection._inpbuf
            connection._packet = b""
            connection._recv_handler = connection._recv_pkthdr
        self._keys_in = self._keys(self._keys_in, connection._recv_encryption)
        if connection._transport is None or connection._recv_handler != connection._recv_pkthdr or not self._keys_in:
            return False
        if connection._inpbuf:
            # The beginning of a packet, since it is idle; whatever there was here, it has.
            self._start, self._end = 0, len(connection._inpbuf)
            self._buffer[: self._end] = connection._inpbuf
            connection._inpbuf = b""
        self._asyncssh_reads = False
        return True


class _ForAsyncssh:
    """What asyncssh has in place of a channel of its own, for the packets that it reads itself."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def log_received_packet(self, *_: object) -> None:
        pass

    def process_packet(self, kind: int, _sequence: int, packet: SSHPacket) -> bool:
        channel = self._channel
        try:
            match kind:
                case channels.MSG_CHANNEL_DATA:
                    data = packet.get_string()
                    packet.check_end()
                    channel.data(memoryview(data))
                case channels.MSG_CHANNEL_WINDOW_ADJUST:
                    channel.adjusted(packet.get_uint32())
                case channels.MSG_CHANNEL_EOF:
                    channel.eof()
                case channels.MSG_CHANNEL_CLOSE:
                    channel.closed()
                case channels.MSG_CHANNEL_REQUEST:
                    packet.get_string()
                    channel.requested(packet.get_boolean())
                case _:
                    return False
        except ProtocolViolation as violation:
            raise asyncssh.ProtocolError(str(violation)) from None
        return True

    def process_open_confirmation(self, peer: int, window: int, packet_size: int, _packet: SSHPacket) -> None:
        try:
            self._channel.opened(peer, window, packet_size)
        except ProtocolViolation as violation:
            raise asyncssh.ProtocolError(str(violation)) from None

    def process_open_failure(self, code: int, reason: str, _language: str) -> None:
        try:
            self._channel.refused(code, reason)
        except ProtocolViolation as violation:
            raise asyncssh.ProtocolError(str(violation)) from None

    def process_connection_close(self, _cause: Exception | None) -> None:
        self._channel.lost()

    def close(self) -> None:
        """Before the connection is closed; it is lost right after."""
