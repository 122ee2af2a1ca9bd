"""The other end of each GuestSignal: what plays the guest, and how an adapter is made for it."""

import asyncio
import contextlib
import queue
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from provisiond.errors import DomainNotRunning
from provisiond.guest.channel import ChannelSignal
from provisiond.guest.xenstore import XenstoreSignal
from provisiond.ports import GuestSignal
from provisiond.xenstore.client import Xenstore
from provisiond.xenstore.domains import Domains
from provisiond.xenstore.lost_events import LostEvents
from tests.xenstore.daemon import Xenstored

NONCE = "0123456789abcdef0123456789abcdef"
UUID = "5f0a2a3e-6d0f-4a6c-9d6a-1f9a4a3b2c1d"
MOST_LOG = 2000
REBOOT_SECONDS = 0.2  # how long a Xen guest of these tests may have no domain


class GuestEnd(Protocol):
    """A guest that can speak; every new GuestSignal for it is a daemon that was started anew."""

    def signal(self, *, nonce: str = NONCE) -> GuestSignal:
        """An adapter for the job with this nonce."""

    def say(self, *lines: str) -> None:
        """Words, one a line; returns before anybody has heard them."""

    def die(self) -> None:
        """The domain is gone, and with it all that nobody has heard."""

    async def close(self) -> None:
        """Let go of everything; may be called after `die`."""


class ChannelGuest:
    """QEMU's socket chardev: one client at a time; what is said waits until a client is there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "org.provisiond.0"
        self._said: queue.Queue[bytes | None] = queue.Queue()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self._client: socket.socket | None = None
        self._dead = False
        self.sent = 0  # bytes that a client, or the kernel for it, has taken
        self._thread = threading.Thread(target=self._serve, name="chardev")
        self._thread.start()

    def signal(self, *, nonce: str = NONCE) -> GuestSignal:
        return ChannelSignal(nonce=nonce, find_socket=self._find_socket)

    def say(self, *lines: str) -> None:
        self.write("".join(f"{line}\n" for line in lines).encode())

    def write(self, raw: bytes) -> None:
        """Bytes as they are, newline or not."""
        self._said.put(raw)

    def die(self) -> None:
        self._dead = True
        self._said.put(None)
        for end in (self._listener, self._client):
            if end is not None:
                with contextlib.suppress(OSError):  # a client that has gone already
                    end.shutdown(socket.SHUT_RDWR)  # wakes accept and send
        self._thread.join()

    async def close(self) -> None:
        self.die()

    async def _find_socket(self) -> Path:
        if self._dead:
            raise DomainNotRunning("web1: the domain is off")
        return self.path

    def _serve(self) -> None:
        with self._listener, contextlib.suppress(OSError):  # shut down: the domain is gone
            said: bytes | None = b""
            while said is not None and not self._dead:
                self._client, _ = self._listener.accept()
                said = self._serve_client(self._client, said)

    def _serve_client(self, client: socket.socket, said: bytes | None) -> bytes | None:
        """Send until the client has gone; what it did not take is for the next one."""
        with client:
            while said is not None:
                try:
                    client.sendall(said)
                    self.sent += len(said)
                except OSError:
                    break
                said = self._said.get()
        return said


class XenstoreGuest:
    """A domain of a real xenstored, which says its words as the guest's script does.

    The adapters of one guest share a connection, as they do in the daemon.
    """

    def __init__(self, _folder: Path) -> None:
        self._store = Xenstored()
        self._store.start()
        self._domain = self._store.introduce(5, uuid=UUID)
        self._is_dead = False
        self._log: list[str] = []
        self._xenstore = Xenstore(self._store.socket)
        self._domains = Domains(self._xenstore)
        self._lost_events = LostEvents(self._xenstore)
        self._tasks = [
            asyncio.create_task(self._xenstore.stay_connected()),
            asyncio.create_task(self._domains.follow()),
            asyncio.create_task(self._lost_events.look_for()),
        ]

    def signal(self, *, nonce: str = NONCE) -> GuestSignal:
        return XenstoreSignal(
            nonce=nonce,
            uuid=UUID,
            xenstore=self._xenstore,
            domains=self._domains,
            lost_events=self._lost_events,
            reboot_seconds=REBOOT_SECONDS,
        )

    def say(self, *lines: str) -> None:
        with contextlib.suppress(PermissionError), self._domain.connect() as guest:
            for line in lines:
                if line.startswith("hello "):
                    guest.write("data/provisiond/hello", line.encode())
                elif " log " in line:
                    self._log.append(line)
                else:
                    guest.write("data/provisiond/log", last_lines(self._log))
                    guest.write("data/provisiond/verdict", line.encode())

    def die(self) -> None:
        if not self._is_dead:
            self._is_dead = True
            self._domain.shut_down()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._store.__exit__()


def last_lines(lines: Sequence[str]) -> bytes:
    """As many of the last lines as the script keeps: a node may have 2,048 bytes with its name."""
    kept = ""
    for line in reversed(lines):
        if len(line) + len(kept) + 1 > MOST_LOG:
            break
        kept = f"{line}\n{kept}"
    return kept.encode()
