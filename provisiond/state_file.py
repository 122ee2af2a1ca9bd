"""The state file: made whole, refused where it is not ours or damaged, written in transactions.

SQLite in one file with a write-ahead log. Whatever is refused is left byte for byte as it is.
sqlite3 has one importer: this module. Its calls block, and belong to one thread.
"""

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from provisiond.errors import StateUnusable, StateUnwritable
from provisiond.schema import APPLICATION_ID, FROM_VERSION_1, SCHEMA, SCHEMA_VERSION

Connection = sqlite3.Connection
Taken = sqlite3.IntegrityError

_R = TypeVar("_R")

log = logging.getLogger(__name__)

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_ROOM = 64 * 1024  # bytes; what the next few facts need
_START_EMPTY = "Put back a copy that is whole, or move that away as well to start empty."


class StateFile:
    """The open file. Each call raises StateUnwritable, or StateUnusable where it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: StateUnusable | None = None
        """Why nothing in the file can be relied on any more, once that was seen while it is open:
        every write is refused from then on."""
        self._open: Connection | None = None
        self._inode = 0
        self._failed_write: str | None = None

    def open(self) -> None:
        """Open the file, make it where it is absent.

        Raises StateUnusable (corrupt, foreign, newer: the file is left as it is) or
        StateUnwritable.
        """
        try:
            self.path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            if not os.path.lexists(self.path):
                _make(self.path)
            _refuse_foreign(self.path)
            with self.path.open("ab"):
                pass  # one that cannot be written SQLite would open for reading, without a word
            _refuse_damaged(self.path)
            self.path.chmod(0o600)
            self._inode = self.path.stat().st_ino
        except OSError as error:
            raise StateUnwritable(f"cannot write {self.path}: {error.strerror}") from error
        self._open = _connect(self.path)

    def close(self) -> None:
        """Close the file; may be asked for twice."""
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()

    @property
    def connection(self) -> Connection:
        """For reading."""
        if self._open is None:
            raise RuntimeError("the state file is not open")
        return self._open

    def call(self, function: Callable[[], _R]) -> _R:
        """Run what reads or writes; an error of the file's is one of ours."""
        try:
            return function()
        except sqlite3.OperationalError as error:
            self._failed_write = f"{self.path}: {error}"
            raise StateUnwritable(self._failed_write) from error
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _DAMAGE:  # extended codes have more bits
                raise
            raise self._damaged(f"{self.path}: {error}") from error

    def transaction(self, function: Callable[..., _R], *args: object) -> _R:
        """Run what writes: all of it is on the disk once this returns, or nothing of it ever is."""
        if (damage := self.damage or self._exchanged()) is not None:
            raise damage
        changes = self.connection.total_changes
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            result = function(self.connection, *args)
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise
        if self.connection.total_changes > changes:
            self._failed_write = None
        return result

    def trouble(self) -> str | None:
        """Why nothing can be written now; None while it can.

        Where the last write failed this tries one, else nothing is written.
        """
        if (damage := self.damage or self._exchanged()) is not None:
            return damage.message
        if self._failed_write is not None:
            with suppress(StateUnwritable, StateUnusable):
                self.call(partial(self.transaction, _write_nothing_new))
                self._failed_write = None
        return self._failed_write or self._lacks()

    def _lacks(self) -> str | None:
        """What the file system lacks for the next write."""
        try:
            system = os.statvfs(self.path.parent)
        except OSError as error:
            return f"cannot look at {self.path.parent}: {error.strerror}"
        if system.f_flag & os.ST_RDONLY:
            return f"{self.path.parent} is read-only"
        blocks = system.f_bfree if os.geteuid() == 0 else system.f_bavail
        if system.f_blocks and blocks * system.f_frsize < _ROOM:
            return f"{self.path.parent} is full"
        return None

    def _exchanged(self) -> StateUnusable | None:
        """The damage that the file is not at its path any more: SQLite would write on, into one
        that nobody finds again."""
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                return None
        return self._damaged(f"{self.path} was moved, removed or exchanged while it was in use")

    def _damaged(self, why: str) -> StateUnusable:
        if self.damage is None:
            self.damage = StateUnusable(why)
            log.error("%s: every job stays as it is stored, and provisiond ends", why)
        return self.damage


# ---------------------------------------------------------------- making it
def _make(path: Path) -> None:
    """Make an empty state file, which appears whole.

    Not where a log of one lies: the file was lost, and facts are still in its log.
    """
    _refuse_beside(path, "-wal", "-journal")
    part = path.with_name(f"{path.name}.part")
    for left in path.parent.glob(f"{part.name}*"):
        left.unlink()
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        with closing(sqlite3.connect(part, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(
                f"BEGIN; PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {SCHEMA_VERSION}; {SCHEMA} COMMIT;"
            )
            connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        raise StateUnwritable(f"cannot write {part}: {error}") from error
    part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    log.info("%s is new: no job is known", path)


def _write_nothing_new(connection: Connection) -> None:
    """A page is written, with what stands there."""
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


# ---------------------------------------------------------------- refusing it
def _refuse_foreign(path: Path) -> None:
    """Refuse a file of something else by its header (sqlite.org/fileformat2.html, 1.3).

    SQLite is not asked: it would play back or remove what lies beside a database.
    """
    with path.open("rb") as opened:
        header = opened.read(100)
    if not header:
        raise StateUnusable(f"{path} is empty: it was never so when provisiond wrote it")
    application = int.from_bytes(header[68:72], "big")
    if header[:16] != b"SQLite format 3\0" or application != APPLICATION_ID:
        raise StateUnusable(f"{path} is no state file of provisiond")
    _refuse_beside(path, "-journal")  # it keeps a write-ahead log; SQLite would play this back


def _refuse_beside(path: Path, *ends: str) -> None:
    for end in ends:
        beside = path.with_name(f"{path.name}{end}")
        if beside.exists() and beside.stat().st_size > 0:
            which = f"is not of {path}" if path.exists() else f"lies there without {path}"
            raise StateUnusable(f"{beside} {which}", hint=_START_EMPTY)


def _refuse_damaged(path: Path) -> None:
    """Refuse a file that is from a newer provisiond or not whole, without a write to it.

    Whoever may write moves the write-ahead log into the file at the latest when it closes.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            version = _version_of(connection)
            if version not in (1, SCHEMA_VERSION):
                raise StateUnusable(
                    f"{path} has schema version {version}, this provisiond knows {SCHEMA_VERSION}",
                    hint="Run the provisiond that wrote it, or move it away to start empty.",
                )
            # Indexes as well: of two jobs on one domain an index knows.
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        raise StateUnwritable(f"cannot read {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StateUnusable(f"{path} is corrupt: {error}") from error
    if verdict != "ok":
        raise StateUnusable(f"{path} is corrupt: {verdict}")


def _connect(path: Path) -> Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        if _version_of(connection) == 1:
            connection.executescript(FROM_VERSION_1)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _version_of(connection: Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
