"""xenstore's wire: requests into bytes, bytes into replies and events. Pure.

Source: docs/misc/xenstore.txt and xen/include/public/io/xs_wire.h. Opcodes and validators are
pyxs'; its packets know no DIRECTORY_PART and strip NULs from values, so they are made here. pyxs
has one importer: this module.
"""

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from pyxs._internal import Op
from pyxs.exceptions import InvalidPath, InvalidPermission
from pyxs.helpers import check_path, check_perms, check_watch_path

DIRECTORY = int(Op.DIRECTORY)
READ = int(Op.READ)
GET_PERMS = int(Op.GET_PERMS)
WATCH = int(Op.WATCH)
UNWATCH = int(Op.UNWATCH)
TRANSACTION_START = int(Op.TRANSACTION_START)
TRANSACTION_END = int(Op.TRANSACTION_END)
GET_DOMAIN_PATH = int(Op.GET_DOMAIN_PATH)
WRITE = int(Op.WRITE)
MKDIR = int(Op.MKDIR)
RM = int(Op.RM)
SET_PERMS = int(Op.SET_PERMS)
WATCH_EVENT = int(Op.WATCH_EVENT)
ERROR = int(Op.ERROR)
DIRECTORY_PART = 22  # xs_wire.h; younger than pyxs
_KNOWN = frozenset({*map(int, Op), DIRECTORY_PART})

_LONGEST_NUMBER = 10  # digits of 32 bits
MAX_PAYLOAD = 4096
# oxenstored sends directory replies over 4,096 bytes. What claims more than this is no xenstored.
MAX_REPLY = 1 << 20

_HEADER = struct.Struct("=IIII")  # type, request id, transaction id, length of the payload
_SPECIAL = ("@introduceDomain", "@releaseDomain")


class NotXenstore(OSError):
    """What came cannot be a xenstored's; the connection is of no use any more."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to the request with this id; `failed` where the payload is an error's name."""

    request_id: int
    failed: bool
    payload: bytes

    def result(self) -> bytes:
        """The payload; raises OSError with the errno that xenstored named."""
        if not self.failed:
            return self.payload
        name = self.payload.rstrip(b"\0").decode("ascii", errors="replace")
        is_ours = name in errno.errorcode.values()
        number = getattr(errno, name) if is_ours else errno.EIO  # EQUOTA, for one, is none of Linux
        raise OSError(number, f"xenstore: {name} ({os.strerror(number)})")


@dataclass(frozen=True, slots=True)
class Event:
    """A watch has fired; `token` is that of the watch."""

    token: str


# ---------------------------------------------------------------- requests
def build_request(op: int, payload: bytes, *, request_id: int, transaction: int = 0) -> bytes:
    """The packet; raises OSError (E2BIG) where the payload is longer than xenstore takes."""
    if len(payload) > MAX_PAYLOAD:
        raise OSError(errno.E2BIG, f"xenstore takes {MAX_PAYLOAD} bytes a request")
    if op not in _KNOWN:
        raise ValueError(f"xenstore has no request of type {op}")
    return _HEADER.pack(op, request_id, transaction, len(payload)) + payload


# A job asks for the same few paths again and again; a check takes as long as all else of a request.
@lru_cache(maxsize=4096)
def path_payload(path: str) -> bytes:
    """A path and its NUL; raises ValueError where it is none."""
    raw = _ascii(path)
    try:
        return bytes(check_path(raw)) + b"\0"
    except InvalidPath:
        raise ValueError(f"{path!r} is no xenstore path") from None


def watch_payload(path: str, token: str) -> bytes:
    """A path, or @introduceDomain or @releaseDomain, and the token."""
    try:
        raw = bytes(check_watch_path(_ascii(path)))
    except InvalidPath:
        raise ValueError(f"{path!r} is no xenstore path to watch") from None
    if path.startswith("@") and path not in _SPECIAL:
        raise ValueError(f"{path!r} is no special watch")
    return raw + b"\0" + token.encode("ascii") + b"\0"


def permissions_payload(path: str, permissions: tuple[str, ...]) -> bytes:
    """A path and its permissions: the owner and everybody's default first, such as n0, then b5."""
    raw = [_ascii(permission) for permission in permissions]
    try:
        check_perms(raw)
    except InvalidPermission:
        raise ValueError(f"{permissions!r} are no xenstore permissions") from None
    if not raw:
        raise ValueError("the first permission names the owner, so there is one at least")
    return path_payload(path) + b"".join(permission + b"\0" for permission in raw)


def _ascii(text: str) -> bytes:
    """pyxs' expressions end in `$`, and so let a newline, or a NUL, pass at the end."""
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"{text!r} is no printable ASCII")
    return text.encode("ascii")


# ---------------------------------------------------------------- replies
def parse_strings(payload: bytes) -> list[str]:
    """NUL-terminated strings: the children of a node, its permissions."""
    return [part.decode("ascii", errors="replace") for part in payload.split(b"\0")[:-1]]


def parse_number(payload: bytes) -> int:
    """The id of a transaction; raises NotXenstore where it is none."""
    digits = payload.rstrip(b"\0")
    if not digits.isdigit() or len(digits) > _LONGEST_NUMBER:
        raise NotXenstore(f"{payload[:20]!r} is no number")
    return int(digits)


@dataclass(frozen=True, slots=True)
class DirectoryPart:
    """A part of a list of children; those of one `generation` belong together."""

    generation: str
    names: tuple[str, ...]
    size: int
    is_last: bool


def parse_directory_part(payload: bytes) -> DirectoryPart:
    """The reply to DIRECTORY_PART. `size` is how much further the next part's offset is."""
    generation, terminator, children = payload.partition(b"\0")
    if not terminator:
        raise NotXenstore("a part of a directory has no generation")
    # An empty name after the last child says that it is the last.
    is_last = children == b"\0" or children.endswith(b"\0\0")
    names = parse_strings(children[:-1] if is_last else children)
    if not (is_last or names):
        raise NotXenstore("a part of a directory is empty and not the last")
    size = sum(len(name) + 1 for name in names)
    return DirectoryPart(generation.decode("ascii", errors="replace"), tuple(names), size, is_last)


class Splitter:
    """Cuts what comes over a connection into replies and events; keeps the incomplete rest."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Reply | Event]:
        """Everything that is complete now, to be read to its end; raises NotXenstore."""
        stream, start = self._rest + data, 0
        while len(stream) >= start + _HEADER.size:
            op, request_id, _, size = _HEADER.unpack_from(stream, start)
            if size > MAX_REPLY:
                raise NotXenstore(f"a packet of {size} bytes")
            end = start + _HEADER.size + size
            if len(stream) < end:
                break
            yield _read_packet(op, request_id, stream[start + _HEADER.size : end])
            start = end
        self._rest = stream[start:]


def _read_packet(op: int, request_id: int, payload: bytes) -> Reply | Event:
    if op != WATCH_EVENT:
        return Reply(request_id, op == ERROR, payload)
    strings = parse_strings(payload)
    if len(strings) < 2:
        raise NotXenstore("an event without a token")
    return Event(strings[1])
