"""What systemd hears from us (sd_notify, the journal) and tells us (the watchdog).

Outside of systemd every call here does nothing or falls back to stderr. The systemd bindings have
one importer: this module.
"""

import logging
import os
import socket
import sys
from typing import Any

from provisiond.terminal import printable
from systemd import daemon, journal

_PLAIN_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def notify(*assignments: str) -> None:
    """Tell the service manager, e.g. `notify("READY=1", "STATUS=0 jobs")` (sd_notify(3))."""
    daemon.notify("\n".join(assignments))


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear WATCHDOG=1, or None (sd_watchdog_enabled(3))."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() else None


def passed_sockets() -> list[socket.socket]:
    """The listening sockets that systemd has opened for us; none outside of socket activation."""
    return [socket.socket(fileno=number) for number in daemon.listen_fds()]


def log_handler() -> logging.Handler:
    """The journal, with the fields of `extra` (JOB_ID, DOMAIN), where stderr leads there."""
    if _stderr_is_journal():
        to_journal: logging.Handler = journal.JournalHandler(SYSLOG_IDENTIFIER="provisiond")
        to_journal.setFormatter(_Harmless("%(message)s"))  # time and level are fields
        return to_journal
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Harmless(_PLAIN_FORMAT))
    return handler


class _Harmless(logging.Formatter):
    """One line a record, and those of a traceback, indented: names and errors in them are others',
    and none of them makes a line that looks like a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {printable(line)}" for line in lines)


def _stderr_is_journal() -> bool:
    """systemd.exec(5): JOURNAL_STREAM holds the device and inode of the stream to the journal."""
    stderr = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
