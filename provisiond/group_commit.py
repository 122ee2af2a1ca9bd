"""Group commit: writes that wait for the state file are stored in one transaction.

The disk is synced once for all of them, and that is most of what a write takes. Nobody is answered
before it: what a caller was told to be stored is on the disk, as with a transaction of its own.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from provisiond.state_file import Connection, StateFile

# So that no reader waits for long behind one transaction.
_AT_ONCE = 64


class Write:
    """What one caller wants written. `function` may be run twice, and then the first time has
    changed nothing; it returns the last event's number."""

    def __init__(self, function: Callable[[Connection], int]) -> None:
        self.function = function
        self.outcome: Future[int] = Future()


class GroupCommit:
    """The writes that wait for the file's one thread."""

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._waiting: deque[Write] = deque()

    def put(self, function: Callable[[Connection], int]) -> Write:
        """Take a write in, from any thread; who puts it has to `store` it then."""
        write = Write(function)
        self._waiting.append(write)
        return write

    def store(self, write: Write) -> int:
        """Return once the write is on the disk, and with it those that wait; in the one thread.

        Raises what became of this one: another that is refused takes nothing with it.
        """
        while not write.outcome.done():
            taken = min(len(self._waiting), _AT_ONCE)
            self._commit([self._waiting.popleft() for _ in range(taken)])
        return write.outcome.result()

    def _commit(self, writes: list[Write]) -> None:
        """Together, or each by itself where that fails: then nothing of it was stored."""
        if len(writes) > 1:
            with suppress(Exception):  # each of them meets its own again
                seqs = self._file.transaction(lambda c: [write.function(c) for write in writes])
                for write, seq in zip(writes, seqs, strict=True):
                    write.outcome.set_result(seq)
                return
        for write in writes:
            self._commit_alone(write)

    def _commit_alone(self, write: Write) -> None:
        try:
            seq = self._file.call(lambda: self._file.transaction(write.function))
        except Exception as error:  # noqa: BLE001 - it is raised where the write is asked for
            write.outcome.set_exception(error)
        else:
            write.outcome.set_result(seq)
