"""A small blocking xenstore client for the tests' own hands: one request at a time.

It shares nothing with the client of provisiond, so that neither hides the other's faults.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Self

HEADER = struct.Struct("<IIII")  # type, req_id, tx_id, length of the payload
MAX_PAYLOAD = 4096
LONGEST_WAIT = 30  # seconds; a test whose xenstored does not answer ends instead of hanging


class Request(IntEnum):
    """Types of xs_wire.h, as far as the tests use them."""

    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16


class Connection:
    """One connection; every method raises OSError with the errno that xenstored names."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._events: list[tuple[str, str]] = []
        try:
            # Waits its turn: one that may not wait is refused while another is being accepted.
            self._socket.connect(str(path))
            self._socket.settimeout(LONGEST_WAIT)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, kind: Request, *parts: bytes, transaction: int = 0) -> bytes:
        """The payload of the answer."""
        payload = b"".join(parts)
        self._socket.sendall(HEADER.pack(kind, 0, transaction, len(payload)) + payload)
        while True:
            answered, answer = self._receive()
            if answered is Request.WATCH_EVENT:
                self._events.append(_event(answer))
            elif answered is Request.ERROR:
                name = answer.rstrip(b"\0").decode()
                number = int(getattr(errno, name))
                raise OSError(number, f"{name} to {kind.name}", parts[0].rstrip(b"\0").decode())
            else:
                return answer

    def read(self, path: str) -> bytes:
        return self.request(Request.READ, _text(path))

    def write(self, path: str, value: bytes, *, transaction: int = 0) -> None:
        self.request(Request.WRITE, _text(path), value, transaction=transaction)

    def rm(self, path: str) -> None:
        self.request(Request.RM, _text(path))

    def directory(self, path: str) -> list[str]:
        listed = self.request(Request.DIRECTORY, _text(path))
        return sorted(name.decode() for name in listed.split(b"\0")[:-1])

    def permissions(self, path: str) -> list[str]:
        """The owner first, such as `n0`; then the others, such as `b5`."""
        listed = self.request(Request.GET_PERMS, _text(path))
        return [entry.decode() for entry in listed.split(b"\0")[:-1]]

    def set_permissions(self, path: str, entries: Sequence[str], *, transaction: int = 0) -> None:
        words = [_text(path), *(_text(entry) for entry in entries)]
        self.request(Request.SET_PERMS, *words, transaction=transaction)

    @contextmanager
    def transaction(self) -> Iterator[int]:
        """All or nothing; nothing where the body raises. EAGAIN: somebody else was quicker."""
        number = int(self.request(Request.TRANSACTION_START, b"\0").rstrip(b"\0"))
        try:
            yield number
        except BaseException:
            self.request(Request.TRANSACTION_END, b"F\0", transaction=number)
            raise
        self.request(Request.TRANSACTION_END, b"T\0", transaction=number)

    def watch(self, path: str, token: str) -> None:
        """The first event comes at once, as xenstore.txt promises."""
        self.request(Request.WATCH, _text(path), _text(token))

    def event(self) -> tuple[str, str]:
        """The next event: its path and the token of its watch."""
        while not self._events:
            kind, payload = self._receive()
            assert kind is Request.WATCH_EVENT, kind
            self._events.append(_event(payload))
        return self._events.pop(0)

    def _receive(self) -> tuple[Request, bytes]:
        kind, _, _, length = HEADER.unpack(self._exactly(HEADER.size))
        return Request(kind), self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            more = self._socket.recv(size - len(found))
            if not more:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            found += more
        return found


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _event(payload: bytes) -> tuple[str, str]:
    path, token = payload.split(b"\0")[:2]
    return path.decode(), token.decode()
