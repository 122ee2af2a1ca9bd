"""The listening sockets and their connections: whose they are, and how long a request may take.

uvicorn and h11 have one importer: this module.
"""

import asyncio
import errno
import logging
import pwd
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from provisiond.api.callers import (
    Caller,
    LocalRoles,
    RemoteRoles,
    local_caller,
    remote_caller,
)
from provisiond.api.limits import Traffic
from provisiond.api.tls import ServerTls

log = logging.getLogger(__name__)

BACKLOG = 128  # connections that wait to be taken
_GRACEFUL_SECONDS = 3
_DATE_SECONDS = 1.0  # what the Date of a reply is exact to
_HANDSHAKE_SECONDS = 10.0
_MAX_UNKNOWN = 100
_ACCEPT_PAUSE = 0.5
_MAX_HEAD = 16 * 1024  # bytes of a request before its body
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_GROUPS_SIZE = 1024  # bytes, the most that Python takes: 256 groups
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_INCOMPLETE = (h11.IDLE, h11.SEND_BODY)  # what a client is in whose request is not whole


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket, how to tell who has connected to it, and its TLS."""

    socket: socket.socket
    caller_of: Callable[[asyncio.BaseTransport], Caller]
    tls: ServerTls | None = None

    @property
    def address(self) -> str:
        """A path, or an address and a port."""
        name = self.socket.getsockname()
        return name if isinstance(name, str) else f"{name[0]} port {name[1]}"


def on_unix(listener: socket.socket, roles: LocalRoles) -> Listener:
    """The API on a Unix socket: the kernel says who has connected."""
    return Listener(listener, partial(_local_caller, roles=roles))


def on_tcp(listener: socket.socket, roles: RemoteRoles, tls: ServerTls) -> Listener:
    """The API over mutual TLS: the client's certificate says who has connected."""
    return Listener(listener, partial(_remote_caller, roles=roles), tls)


def _local_caller(transport: asyncio.BaseTransport, *, roles: LocalRoles) -> Caller:
    peer = transport.get_extra_info("socket")
    got = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(got)
    groups = {gid, *_more_groups(peer)}
    return local_caller(pid=pid, uid=uid, user=_user(uid), groups=groups, roles=roles)


def _more_groups(peer: socket.socket) -> Iterator[int]:
    """The supplementary groups of a peer; none where it has more than fit."""
    try:
        got = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        return
    for (group,) in struct.iter_unpack("I", got):
        yield group


def _user(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _remote_caller(transport: asyncio.BaseTransport, *, roles: RemoteRoles) -> Caller:
    host, port, *_ = transport.get_extra_info("peername")
    certificate = transport.get_extra_info("peercert") or {}
    return remote_caller(certificate, address=f"{host} port {port}", roles=roles)


# ---------------------------------------------------------------- one connection
class _Connection(H11Protocol):
    """HTTP/1.1 for one caller, whose requests have to come in whole within a time."""

    def __init__(
        self,
        *args: Any,
        listener: Listener,
        traffic: Traffic,
        on_end: Callable[[], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._on_end = on_end
        self._listener = listener
        self._traffic = traffic
        self._caller: Caller | None = None
        self._too_slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        try:
            caller = self._listener.caller_of(transport)
        except BaseException:
            self.transport.abort()
            raise
        if not self._traffic.connect(caller.counted_as):
            self.transport.abort()
            return
        self._caller = caller
        self.app_state = {"caller": caller}
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
        if self._caller is not None:
            self._traffic.disconnect(self._caller.counted_as)
            self._caller = None
        self._on_end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # takes up what came behind the request
        if self.conn.their_state is h11.SEND_BODY:
            self._watch()

    def _watch(self) -> None:
        """Start the clock while a request is not whole, and stop it when it is."""
        incomplete = self.conn.their_state in _INCOMPLETE
        if incomplete and self._too_slow is None:
            seconds = self._traffic.limits.request_seconds
            self._too_slow = self.loop.call_later(seconds, self.transport.abort)
        elif not incomplete and self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None


# ---------------------------------------------------------------- TLS
class _TlsServer:
    """Takes connections over TLS: what uvicorn uses of an asyncio.Server.

    asyncio's own has no bound on those that have not said yet who they are, and each of them takes
    300 KiB. Here the one that shakes hands for the longest goes where there are too many.
    """

    def __init__(
        self,
        listener: socket.socket,
        tls: ServerTls,
        connection: Callable[[], _Connection],
        *,
        on_end: Callable[[], None],
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._tls = tls
        self._connection = connection
        self._on_end = on_end
        self._unknown: dict[asyncio.Task[None], None] = {}  # in the order of their coming
        self._accepting = asyncio.create_task(self._accept(), name="TLS")

    def close(self) -> None:
        """Take no more; who is known by now is uvicorn's to end."""
        for task in (self._accepting, *self._unknown):
            task.cancel()
        self._listener.close()

    async def wait_closed(self) -> None:
        """Wait until nobody shakes hands any more."""
        await asyncio.wait([self._accepting, *self._unknown])

    async def _accept(self) -> None:
        while True:
            try:
                accepted, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            except OSError as error:  # no descriptors, or the client is gone
                log.warning("cannot accept a connection over TLS: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            if len(self._unknown) >= _MAX_UNKNOWN:
                longest = next(iter(self._unknown))
                self._forget(longest)
                longest.cancel()
            task = asyncio.create_task(self._shake_hands(accepted))
            self._unknown[task] = None
            task.add_done_callback(self._forget)
            await asyncio.sleep(0)  # it starts, and others have their turn in a flood

    async def _shake_hands(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connection,
                accepted,
                ssl=self._tls.context,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
            )
        except OSError:  # among them ssl.SSLError: it is not heard
            pass
        finally:
            self._on_end()  # a connection that is known by now ends once more

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._unknown.pop(task, None)


# ---------------------------------------------------------------- the server
class Server(uvicorn.Server):
    """uvicorn over several listeners, without signal handlers of its own."""

    def __init__(self, app: FastAPI, listeners: Sequence[Listener], traffic: Traffic) -> None:
        config = uvicorn.Config(
            app,
            access_log=False,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=_MAX_HEAD,
            lifespan="off",
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_GRACEFUL_SECONDS,
            ws="none",
        )
        super().__init__(config)
        self._listeners = listeners
        self._traffic = traffic
        self._stopping = asyncio.Event()
        self.ended = 0
        """More after each end of a connection, and of a handshake."""

    @property
    def addresses(self) -> Sequence[str]:
        """Where it serves: paths, and addresses with their ports."""
        return [listener.address for listener in self._listeners]

    def stop(self) -> None:
        """Take no more connections; `serve` returns once those that there are have ended."""
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """Renew the replies' Date until `stop`; uvicorn's own wakes up ten times as often."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(_DATE_SECONDS):
                    await self._stopping.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The daemon has one way to stop."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on every listener."""
        del sockets
        self.servers = [
            await self._serve_on(listener)  # type: ignore[misc]
            for listener in self._listeners
        ]
        self.started = True

    async def _serve_on(self, listener: Listener) -> "asyncio.Server | _TlsServer":
        def connection() -> _Connection:
            return _Connection(
                config=self.config,
                server_state=self.server_state,
                app_state={},
                listener=listener,
                traffic=self._traffic,
                on_end=self._count_end,
            )

        if listener.tls is not None:
            return _TlsServer(listener.socket, listener.tls, connection, on_end=self._count_end)
        loop = asyncio.get_running_loop()
        return await loop.create_server(connection, sock=listener.socket, backlog=BACKLOG)

    def _count_end(self) -> None:
        self.ended += 1
