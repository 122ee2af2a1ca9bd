"""The guest's word over a virtio channel: what a QEMU guest has in place of xenstore.

QEMU listens on a Unix socket; the guest's end is /dev/virtio-ports/org.provisiond.0. A guest's
write blocks while nobody is connected here, and the script says its last word again until the ISO
is gone, so no word is lost when provisiond is killed between hearing it and storing it.

The compare-and-set of a cancel: this is the only reader, so the order in which words are read is
the order that counts. `cancel` reads what the guest has said up to then and never reads again.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

from provisiond.errors import (
    DomainNotFound,
    DomainNotRunning,
    GuestLost,
    NoGuestChannel,
)
from provisiond.guest.pace import Pace
from provisiond.guest.verdict import (
    MAX_WORD,
    Done,
    Failed,
    Hello,
    LogLine,
    Verdict,
    parse_word,
)

_MAX_LOG_LINES = 200
# Far more words than a job has, and then so few that a hundred floods take little of the time.
_WORDS_AT_ONCE = 1000
_WORDS_PER_SECOND = 50.0
_BYTES_OF_A_TURN = 1 << 14  # of what is no word and is dropped as it comes
# How long a cancel listens for a word that the guest said before it: a round trip takes 0.2 ms.
# Where it has to connect first, the daemon before may have read the word unstored; the script says
# it again every 2 s.
_LAST_WORD_SECONDS = 0.5
_REPEATED_WORD_SECONDS = 2.5


class ChannelSignal:
    """A GuestSignal over the Unix socket that `find_socket` names.

    It is asked anew at every connect; at the first, the socket that was `seen` before is tried.
    """

    def __init__(
        self, *, nonce: str, find_socket: Callable[[], Awaitable[Path]], seen: Path | None = None
    ) -> None:
        self._nonce = nonce
        self._find_socket = find_socket
        self._seen = seen
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._log: deque[str] = deque(maxlen=_MAX_LOG_LINES)
        self._hello: str | None = None
        self._verdict: Verdict | None = None
        self._closed = False
        self._in_long_line = False
        self._pace: Pace | None = Pace(burst=_WORDS_AT_ONCE, per_second=_WORDS_PER_SECOND)

    async def listen(self) -> None:
        """Connect; from now on every word the guest says is kept until it is read."""
        if self._reader is not None or self._closed:
            return
        seen, self._seen = self._seen, None
        if seen is not None:
            with contextlib.suppress(OSError):  # the domain was started anew since: it is asked
                await self._connect(seen)
                return
        try:
            path = await self._find_socket()
        except (DomainNotFound, DomainNotRunning, NoGuestChannel) as error:
            raise GuestLost(f"the guest cannot speak: {error}") from error
        try:
            await self._connect(path)
        except OSError as error:
            raise GuestLost(f"cannot connect to the guest's channel: {error.strerror}") from error

    async def _connect(self, path: Path) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(path, limit=2 * MAX_WORD)

    async def ready(self) -> str:
        """Wait for the script's hello."""
        while self._hello is None and self._verdict is None:
            await self._hear()
        return f"guest script {self._hello} said hello" if self._hello else "guest has answered"

    async def verdict(self) -> Verdict:
        """Wait for `done` or `failed` with this job's nonce."""
        while self._verdict is None:
            await self._hear()
        return self._verdict

    async def cancel(self) -> Verdict | None:
        """Read what was said before now, then close: the guest cannot be heard any more.

        Raises HypervisorUnavailable while nobody can say where the channel is; ask again.
        """
        wait = _REPEATED_WORD_SECONDS if self._reader is None else _LAST_WORD_SECONDS
        self._pace = None  # so that the word is reached; the time is what bounds a flood now
        verdict = self._verdict
        with contextlib.suppress(TimeoutError, GuestLost):  # what cannot be read now never counts
            await self.listen()
            async with asyncio.timeout(wait):
                verdict = await self.verdict()
        await self.close()
        return verdict

    def log(self) -> tuple[str, ...]:
        """The last 200 lines of the guest's log that it sent."""
        return tuple(self._log)

    async def end(self) -> None:
        """Nothing on the host was made for the job."""
        await self.close()

    async def close(self) -> None:
        """Let go of the socket; the guest's writes block from now on."""
        self._closed = True
        await self._let_go()

    async def _hear(self) -> None:
        """Take one line from the guest. Whatever is no word of this job is passed over."""
        await asyncio.sleep(0)  # lines that are read already are taken without any other wait
        if self._pace is not None:
            await self._pace.turn()
        await self.listen()
        if self._reader is None:
            raise GuestLost("the guest's channel is closed")
        try:
            untrusted_line = await self._reader.readuntil(b"\n")
        except asyncio.LimitOverrunError as error:  # longer than any word: drop what has come
            await self._reader.readexactly(error.consumed)
            if self._pace is not None:
                self._pace.charge(error.consumed // _BYTES_OF_A_TURN)
            self._in_long_line = True
            return
        except (asyncio.IncompleteReadError, OSError) as error:
            await self._let_go()
            raise GuestLost("the guest's channel has closed: the domain was stopped") from error
        if not self._in_long_line:
            self._keep(untrusted_line)
        self._in_long_line = False

    def _keep(self, untrusted_line: bytes) -> None:
        match parse_word(untrusted_line, nonce=self._nonce):
            case Hello(version):
                self._hello = version
            case LogLine(text):
                self._log.append(text)
            case Done() | Failed() as verdict:
                self._verdict = self._verdict or verdict

    async def _let_go(self) -> None:
        """Returns when the socket is closed: what is said from now on is for the next listener."""
        writer, self._writer, self._reader = self._writer, None, None
        self._in_long_line = False
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):  # the other end was the first to go
                await writer.wait_closed()
