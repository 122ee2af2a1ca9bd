"""The connection to libvirt: opened, lost, opened again; its calls in threads, its events.

libvirt-python blocks, so every call runs in a thread; its events come from one daemon thread and
enter the event loop by `call_soon_threadsafe`.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

import libvirt

from provisiond.errors import DomainNotFound, HypervisorFailed, HypervisorUnavailable
from provisiond.threads import Threads, call_in_background

_P = ParamSpec("_P")
_R = TypeVar("_R")

log = logging.getLogger(__name__)

# How long a caller waits for libvirtd to take the connection: a healthy one needs milliseconds.
_OPEN_SECONDS = 5.0
# A libvirtd that hangs is given up after 5 s, three more tries and 5 s each: 20 s.
_KEEPALIVE_SECONDS = 5
_KEEPALIVE_TRIES = 3


class Connection:
    """A libvirt connection, reopened by itself after libvirtd's loss; one more for each change."""

    def __init__(self, uri: str, *, threads: int) -> None:
        self.uri = uri
        self.is_open = False
        self.threads = Threads(size=threads, name="libvirt")
        self._connection: Any = None
        self._opening: asyncio.Future[Any] | None = None
        self._loop = asyncio.get_running_loop()
        # Set, and replaced, at any device or lifecycle event: a hint to read again, never a fact.
        self._hint = asyncio.Event()

    @property
    def hint(self) -> asyncio.Event:
        """Set at the next event of any domain: something may have changed."""
        return self._hint

    # ------------------------------------------------------------ opening
    async def open(self) -> None:
        """Open the connection now; raises HypervisorUnavailable."""
        await self._open_connection()

    async def close(self) -> None:
        """Close the connection; domains go on running."""
        self.is_open = False
        await self.threads.call(_close, self._connection)
        self._connection = None
        self.threads.close()

    async def _open_connection(self) -> Any:
        """The connection, opened where there is none; raises HypervisorUnavailable.

        A libvirtd that hangs takes a connection and never answers on it. So all callers wait for
        one and the same attempt, none of them for long, and it does not hold up the daemon's end.
        """
        if not self.is_open:
            if self._opening is None:
                self._opening = call_in_background(self._open, self._connection)
                self._opening.add_done_callback(self._opened)
            await self._soon(self._opening)
        return self._connection

    async def _soon(self, opening: asyncio.Future[Any]) -> Any:
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                return await asyncio.shield(opening)
        except TimeoutError:
            raise HypervisorUnavailable(
                f"cannot open {self.uri}: no answer within {_OPEN_SECONDS:g} s",
                hint="Look whether libvirtd hangs; provisiond reconnects by itself.",
            ) from None

    def _open(self, lost: Any) -> Any:
        _start_event_thread()
        _close(lost)
        connection = _connect(self.uri)
        try:
            connection.registerCloseCallback(self._closed, None)
            for event in (
                libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
                libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            ):
                connection.domainEventRegisterAny(None, event, self._event, None)
        except libvirt.libvirtError as error:
            raise HypervisorUnavailable(f"cannot open {self.uri}: {error}") from error
        return connection

    def _opened(self, opening: asyncio.Future[Any]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._connection = opening.result()
            self.is_open = True
            log.info("connected to %s", self.uri)

    def _closed(self, connection: Any, reason: int, _opaque: Any) -> None:
        self._enter(self._lose, connection, f"reason {reason}")

    def _lose(self, connection: Any, why: str) -> None:
        """Take note that a connection is dead; a later one may be at work already."""
        if connection is self._connection and self.is_open:
            self.is_open = False
            log.warning("the connection to %s was lost (%s)", self.uri, why)

    def _event(self, *_details: Any) -> None:
        self._enter(self._wake)

    def _enter(self, function: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Into the event loop, from libvirt's thread, which may call after the loop has ended.

        To take the callbacks back would be a call to a libvirtd that may hang.
        """
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(partial(function, *args, **kwargs))

    def _wake(self) -> None:
        self._hint.set()
        self._hint = asyncio.Event()

    # ------------------------------------------------------------ calls
    async def call(
        self, function: Callable[Concatenate[Any, _P], _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        """Run a function of this package on the connection; translate what libvirt raises."""
        return await self._call_on(await self._open_connection(), function, *args, **kwargs)

    async def call_apart(
        self, function: Callable[Concatenate[Any, _P], _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        """`call` on a connection of its own: for a call that waits for the domain's QEMU.

        A QEMU that hangs never answers, and libvirtd works on five calls of one connection at most
        (max_client_requests in libvirtd.conf): all other domains would wait behind those. The
        driver inside this process has no such bound, and registers anew whenever it is opened.
        """
        shared = await self._open_connection()
        if _is_embedded(self.uri):
            return await self._call_on(shared, function, *args, **kwargs)
        connection = await self._soon(call_in_background(_connect, self.uri))
        try:
            return await self._call_on(connection, function, *args, **kwargs)
        finally:
            await self.threads.call(_close, connection)

    async def call_in_background(
        self, function: Callable[Concatenate[Any, _P], _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        """`call_apart` for what changes nothing and may never return: not even this process waits
        for it, and no other call for its thread."""
        shared = await self._open_connection()
        return await call_in_background(
            partial(_call_apart, self.uri, shared, function), *args, **kwargs
        )

    async def _call_on(
        self,
        connection: Any,
        function: Callable[Concatenate[Any, _P], _R],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _R:
        try:
            return await self.threads.call(function, connection, *args, **kwargs)
        except libvirt.libvirtError as error:
            # Whatever the error says: on a dead connection it speaks of the connection.
            if await self.threads.call(_is_alive, connection):
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:  # it went in between
                    raise DomainNotFound(str(error)) from error
                raise HypervisorFailed(str(error)) from error
            self._lose(connection, str(error))
            raise HypervisorUnavailable(f"{self.uri}: {error}") from error


# ---------------------------------------------------------------- in a thread
_event_thread_lock = threading.Lock()
_event_thread: threading.Thread | None = None


def _start_event_thread() -> None:
    """Start libvirt's event loop, once a process and before the first open."""
    global _event_thread  # noqa: PLW0603 - libvirt's event loop is global itself
    with _event_thread_lock:
        if _event_thread is None:
            # Errors are raised; libvirt would print them to stderr as well.
            libvirt.registerErrorHandler(lambda _opaque, _error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            _event_thread = threading.Thread(target=_run_events, name="libvirt-events", daemon=True)
            _event_thread.start()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _connect(uri: str) -> Any:
    """A connection that libvirt itself closes when libvirtd does not answer on it any more."""
    try:
        connection = libvirt.open(uri)
        try:
            connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_TRIES)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # a driver in this process
                raise
    except libvirt.libvirtError as error:
        raise HypervisorUnavailable(f"cannot open {uri}: {error}") from error
    return connection


def _is_embedded(uri: str) -> bool:
    return urlsplit(uri).path == "/embed"


def _call_apart(
    uri: str,
    shared: Any,
    function: Callable[Concatenate[Any, _P], _R],
    *args: _P.args,
    **kwargs: _P.kwargs,
) -> _R:
    connection = shared if _is_embedded(uri) else _connect(uri)
    try:
        return function(connection, *args, **kwargs)
    except libvirt.libvirtError as error:
        raise HypervisorFailed(str(error)) from error
    finally:
        if connection is not shared:
            _close(connection)


def _is_alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _close(connection: Any) -> None:
    """Let go of a connection, also of one that is dead or that never was."""
    if connection is not None:
        with suppress(libvirt.libvirtError):
            connection.close()
