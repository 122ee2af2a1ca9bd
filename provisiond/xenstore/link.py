"""One connection to xenstored: requests in flight, replies, events. Over a Unix socket or xenbus.

Lost is lost: a link that has broken fails every request that it holds, and is never used again.
"""

import asyncio
import itertools
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from provisiond.errors import XenstoreUnavailable
from provisiond.xenstore.wire import (
    GET_DOMAIN_PATH,
    Event,
    NotXenstore,
    Reply,
    Splitter,
    build_request,
)

# oxenstored loses a watch's first event when over some 1,024 requests of one connection wait.
MAX_IN_FLIGHT = 256
_REQUEST_IDS = 1 << 32
_READ_SIZE = 1 << 16


@dataclass(slots=True)
class _Request:
    op: int
    payload: bytes
    transaction: int
    reply: asyncio.Future[bytes]


class Link(asyncio.Protocol):
    """Requests go out in the order in which they were asked for; it never stops reading."""

    def __init__(
        self, *, on_event: Callable[[Event], None], on_lost: Callable[[str], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._on_lost = on_lost
        self._splitter = Splitter()
        self._transport: asyncio.WriteTransport | None = None
        self._ids = itertools.count()
        self._in_flight: dict[int, _Request] = {}
        self._waiting: deque[_Request] = deque()
        self._is_sending = False  # what waits goes out in the next turn of the loop
        self._heard_at = self._loop.time()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        """Done, with the reason, once nothing can be asked here any more."""

    # ------------------------------------------------------------ for the client
    def request(self, op: int, payload: bytes, *, transaction: int = 0) -> asyncio.Future[bytes]:
        """Ask; the future is the reply's payload, OSError (xenstored's) or XenstoreUnavailable.

        At most 256 requests are in flight; the others wait here. Whoever cancels the future takes
        back a request that still waits, and gives up the reply of one that does not.
        """
        reply: asyncio.Future[bytes] = self._loop.create_future()
        if self.lost.done():
            _fail(reply, XenstoreUnavailable(self.lost.result()))
        else:
            self._waiting.append(_Request(op, payload, transaction, reply))
            self._send_soon()
        return reply

    def is_silent(self, *, seconds: float) -> bool:
        """Whether a reply is due, and nothing at all has come for so long."""
        return bool(self._in_flight) and self._loop.time() - self._heard_at > seconds

    def ping(self) -> asyncio.Future[bytes]:
        """Ask for what xenstored knows without looking into its store."""
        return self.request(GET_DOMAIN_PATH, b"0\0")

    def break_off(self, reason: str) -> None:
        """Fail every request with XenstoreUnavailable and let go of the connection."""
        if not self.lost.done():
            self.lost.set_result(reason)
            self._on_lost(reason)  # at once: nobody may find a lost link in use
        held = [*self._in_flight.values(), *self._waiting]
        self._in_flight.clear()
        self._waiting.clear()
        for request in held:
            if not request.reply.done():
                _fail(request.reply, XenstoreUnavailable(reason))
        if self._transport is not None:
            self._transport.abort()

    def _send_soon(self) -> None:
        """What is asked in this turn of the loop goes out together: one system call for all."""
        if not self._is_sending:
            self._is_sending = True
            self._loop.call_soon(self._send_waiting)

    def _send_waiting(self) -> None:
        self._is_sending = False
        if self._transport is None:
            return
        packets = []
        while self._waiting and len(self._in_flight) < MAX_IN_FLIGHT:
            request = self._waiting.popleft()
            if request.reply.done():
                continue
            if not self._in_flight:
                self._heard_at = self._loop.time()  # from now on a reply is due
            request_id = next(self._ids) % _REQUEST_IDS
            try:
                packet = build_request(
                    request.op,
                    request.payload,
                    request_id=request_id,
                    transaction=request.transaction,
                )
            except (OSError, ValueError, struct.error) as error:  # the caller's, not this turn's
                _fail(request.reply, error)
                continue
            self._in_flight[request_id] = request
            packets.append(packet)
        if isinstance(self._transport, _Device):
            for packet in packets:
                self._transport.write(packet)
        elif packets:
            # Not writelines: up to Python 3.13 it listens to a socket that was lost meanwhile.
            self._transport.write(b"".join(packets))

    # ------------------------------------------------------------ for the transport
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's: the connection stands."""
        if isinstance(transport, asyncio.WriteTransport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """asyncio's: bytes have come."""
        self._heard_at = self._loop.time()
        try:
            for packet in self._splitter.feed(data):
                if isinstance(packet, Event):
                    self._on_event(packet)
                else:
                    self._answer(packet)
        except NotXenstore as error:
            self.break_off(f"this is no xenstored: {error}")
            return
        if self._waiting:  # more than may be in flight; with what is asked because of these replies
            self._send_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: the other end has gone, or the transport has failed."""
        self.break_off(f"xenstored has hung up ({exc})" if exc else "xenstored has hung up")

    def _answer(self, reply: Reply) -> None:
        request = self._in_flight.pop(reply.request_id, None)
        if request is None:
            raise NotXenstore(f"an answer to request {reply.request_id}, which nobody asked")
        if request.reply.done():
            return  # whoever asked has gone
        try:
            request.reply.set_result(reply.result())
        except OSError as error:
            _fail(request.reply, error)


def _fail(reply: asyncio.Future[bytes], error: Exception) -> None:
    reply.set_exception(error)
    reply.exception()  # it counts as seen: an error that nobody waits for any more is no news


# ---------------------------------------------------------------- transports
async def open_link(address: Path, link: Link) -> None:
    """Connect to a socket, or open xenbus; raises OSError."""
    loop = asyncio.get_running_loop()
    if is_device(address):
        link.connection_made(_Device(loop, address, link))
    else:
        # Not asyncio's own connect: it takes EAGAIN, which is a full backlog here, for success.
        connecting = socket.socket(socket.AF_UNIX)
        try:
            connecting.setblocking(False)
            connecting.connect(str(address))
            await loop.create_unix_connection(lambda: link, sock=connecting)
        except BaseException:
            connecting.close()
            raise


def is_device(address: Path) -> bool:
    """Whether this is xenbus and no socket; raises OSError where it is nothing."""
    return not stat.S_ISSOCK(address.stat().st_mode)


class _Device(asyncio.Transport):
    """xenbus: a file that is read and written like a socket, one write a packet."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: Path, link: Link) -> None:
        super().__init__()
        self._loop = loop
        self._link = link
        self._file = os.open(address, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        self._unwritten: deque[bytes] = deque()
        self._closed = False
        try:
            loop.add_reader(self._file, self._read)
        except OSError:
            os.close(self._file)  # a file that can be no event of the loop's: no device
            raise

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue one packet."""
        if self._closed:
            return
        self._unwritten.append(bytes(data))
        if len(self._unwritten) == 1:
            self._write()

    def is_closing(self) -> bool:
        """asyncio's."""
        return self._closed

    def close(self) -> None:
        """asyncio's; what is not written yet is dropped."""
        self.abort()

    def abort(self) -> None:
        """Let go of the file."""
        self._end(None)

    def _read(self) -> None:
        try:
            data = os.read(self._file, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if data:
            self._link.data_received(data)
        else:
            self._end(None)

    def _write(self) -> None:
        try:
            while self._unwritten:
                # The kernel takes a packet as a whole; any other device may take a part of it.
                written = os.write(self._file, self._unwritten[0])
                rest = self._unwritten.popleft()[written:]
                if rest:
                    self._unwritten.appendleft(rest)
        except BlockingIOError:
            self._loop.add_writer(self._file, self._write)
            return
        except OSError as error:
            self._end(error)
            return
        self._loop.remove_writer(self._file)

    def _end(self, error: OSError | None) -> None:
        if self._closed:
            return
        self._closed = True
        self._unwritten.clear()
        self._loop.remove_reader(self._file)
        self._loop.remove_writer(self._file)
        os.close(self._file)
        self._loop.call_soon(self._link.connection_lost, error)
