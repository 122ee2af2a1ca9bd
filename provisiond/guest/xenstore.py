"""The guest's word over xenstore: how a Xen guest speaks.

Under `/local/domain/<domid>/data/provisiond/` dom0 makes `verdict` and `log` for a job, with the
permissions `n0 b<domid>`: that guest may write them, and no other. The guest writes the end of its
log as lines, and then its verdict; `hello` it makes itself. All of it is untrusted: bounded bytes,
parsed by `verdict.py`.

The compare-and-set of a cancel: `verdict` becomes `n0 r<domid>` and is read then. A write that the
guest is told to have succeeded was there before, so what stands there counts and nothing later can.

A reboot gives the domain a new domid, with an empty store: the keys are made again under it. A
verdict that was written before the reboot and not read is lost with the old domid.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TypeVar

from provisiond.errors import GuestLost, GuestRestarted, XenstoreFailed, XenstoreUnavailable
from provisiond.guest.pace import Pace
from provisiond.guest.verdict import MAX_WORD, Done, Failed, Hello, LogLine, Verdict, parse_word
from provisiond.plan import Keys, plan_keys
from provisiond.xenstore.client import Transaction, Xenstore
from provisiond.xenstore.domains import Domains
from provisiond.xenstore.lost_events import LostEvents

log = logging.getLogger(__name__)

_R = TypeVar("_R")

# A domain that is absent is looked for again now and then, whatever xenstored tells.
_LOOK_AGAIN_SECONDS = 30.0
# A guest that writes without end is looked at so often and no oftener: at first, and then. One that
# writes its log and its verdict is heard at once; what more come within a breath are one look.
_BREATH_SECONDS = 0.02
_LOOKS_AT_ONCE = 50
_LOOKS_PER_SECOND = 5.0


class XenstoreSignal:
    """A GuestSignal over xenstore, for the domain with this UUID, whatever its domid.

    `reboot_seconds` is how long it may have no domid before its guest counts as lost: a reboot
    takes the old one away before the new one is there. `expects_keys`: an earlier process has made
    the keys and had the ISO attached, so where they are gone the guest was restarted in between.
    """

    def __init__(
        self,
        *,
        nonce: str,
        uuid: str,
        xenstore: Xenstore,
        domains: Domains,
        lost_events: LostEvents,
        reboot_seconds: float,
        expects_keys: bool = False,
    ) -> None:
        self._nonce = nonce
        self._uuid = uuid
        self._xenstore = xenstore
        self._domains = domains
        self._lost_events = lost_events
        self._reboot_seconds = reboot_seconds
        self._wake = asyncio.Event()
        self._following = contextlib.ExitStack()
        self._watching = contextlib.AsyncExitStack()
        self._watched: int | None = None
        self._seen: dict[str, bytes | None] = {}  # what is waited for, as it was read last
        self._made: int | None = None  # the domid whose keys are watched and made
        self._absent_since: float | None = None
        self._expects_keys = expects_keys
        self._looked_at = 0.0
        self._pace = Pace(burst=_LOOKS_AT_ONCE, per_second=_LOOKS_PER_SECOND)
        self._has_restarted = False
        self._sign: str | None = None
        self._verdict: Verdict | None = None
        self._log: tuple[str, ...] = ()
        self._is_over = False

    async def listen(self) -> None:
        """Watch the keys and make them; returns when the guest can write them."""
        await self._until(lambda: self._made)

    async def ready(self) -> str:
        """Wait for the script's hello, or for `feature/hotplug/vbd`."""
        return await self._until(lambda: self._sign)

    async def verdict(self) -> Verdict:
        """Wait for `done` or `failed`; GuestRestarted, once, after each reboot.

        Also for one while no daemon ran.
        """
        return await self._until(lambda: self._verdict, tell_restart=True)

    async def cancel(self) -> Verdict | None:
        """Take the guest's permission away, then read: what stands there counts.

        Waits for xenstored where it is away: without it nobody knows who was first.
        """
        while not self._is_over:
            try:
                await self._take_permission()
            except XenstoreUnavailable:
                await self._xenstore.available()
            except OSError as error:  # what cannot be read now never counts
                log.warning("%s: xenstored cannot say what the guest said: %s", self._uuid, error)
                self._is_over = True
            else:
                self._is_over = True
        return self._verdict

    def log(self) -> tuple[str, ...]:
        """The lines that the guest's log held when it was read last."""
        return self._log

    async def end(self) -> None:
        """Remove the keys. Where that fails they are the next job's, or go with the domain."""
        await self.close()
        domid = self._domains.known(self._uuid)
        if domid is not None:
            try:
                await self._remove_keys(plan_keys(domid))
            except (XenstoreUnavailable, OSError) as error:
                log.warning("%s: its keys stay in xenstore: %s", self._uuid, error)

    async def close(self) -> None:
        """Stop watching."""
        self._is_over = True
        self._following.close()
        await self._watching.aclose()

    # ------------------------------------------------------------ waiting
    async def _until(self, find: Callable[[], _R | None], *, tell_restart: bool = False) -> _R:
        """Look, again at every wake, until there is what is waited for; raises GuestLost."""
        while (found := find()) is None:
            if self._is_over:
                raise GuestLost("nobody listens to the guest any more")
            self._wake.clear()
            try:
                await self._look()
            except XenstoreUnavailable:
                await self._xenstore.available()
                continue
            except OSError as error:
                raise XenstoreFailed(f"{self._uuid}: {error}") from error
            if tell_restart and self._has_restarted and self._made and self._verdict is None:
                self._has_restarted = False
                raise GuestRestarted(f"the guest was restarted, as domain {self._made}")
            if find() is None:
                await self._wait()
        return found

    async def _wait(self) -> None:
        """Until something may have changed, or the time of an absence is over."""
        if self._absent_since is None:
            with self._lost_events.noticed(self._seen, wake=self._wake):
                await self._wake.wait()
        else:
            absent_for = asyncio.get_running_loop().time() - self._absent_since
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    min(_LOOK_AGAIN_SECONDS, self._reboot_seconds - absent_for)
                ):
                    await self._wake.wait()
        if not self._pace.has_room:
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, self._looked_at + _BREATH_SECONDS - now))
        await self._pace.turn()

    async def _look(self) -> None:
        """Find the domain, see to its keys, read them; raises GuestLost."""
        self._looked_at = asyncio.get_running_loop().time()
        self._follow()
        domid = await self._domains.domid(self._uuid)
        if domid is not None and domid != self._watched:
            await self._watch(domid)
        if domid is None or not await self._hear(domid):
            self._miss()
        else:
            self._made = domid
            self._absent_since = None

    def _miss(self) -> None:
        """The domain has no domid: a reboot, unless that lasts; raises GuestLost."""
        self._made = None
        now = asyncio.get_running_loop().time()
        if self._absent_since is None:
            self._absent_since = now
        if now - self._absent_since >= self._reboot_seconds:
            raise GuestLost(f"the guest has had no domain for {self._reboot_seconds:g} s")

    def _follow(self) -> None:
        self._following.close()
        self._following.enter_context(self._domains.following(self._uuid, wake=self._wake))

    async def _watch(self, domid: int) -> None:
        """Watch this domain's keys and no other's, before they are read: nothing is missed."""
        await self._watching.aclose()
        keys = plan_keys(domid)
        if self._watched is not None:
            self._has_restarted = True
        elif self._expects_keys:
            self._has_restarted = await self._xenstore.read_all(keys.verdict) == [None]
        self._watched = self._made = self._sign = None
        watch = self._xenstore.watch(keys.folder, keys.hotplug, wake=self._wake)
        await self._watching.enter_async_context(watch)
        self._watched = domid

    # ------------------------------------------------------------ what the guest says
    async def _hear(self, domid: int) -> bool:
        """Read all that the guest has written; False where its domain is gone."""
        keys = plan_keys(domid)
        if self._made is None and not await self._make_keys(domid):
            return False
        # In this order: the script writes its log first, and its verdict then.
        paths = [keys.verdict, keys.log, *([] if self._sign else [keys.hello, keys.hotplug])]
        verdict, guest_log, *signs = await self._xenstore.read_all(*paths)
        # The log tells nothing that the verdict's change would not have it read for.
        self._seen = {keys.verdict: verdict or b"", **dict(zip(paths[2:], signs, strict=True))}
        if verdict is None:  # removed: by the guest, or with its domain; the watch fires again
            return await self._make_keys(domid)
        self._keep(verdict)
        self._keep_log(guest_log or b"")
        if signs:
            self._sign = self._sign_in(*signs)
        return True

    def _sign_in(self, untrusted_hello: bytes | None, hotplug: bytes | None) -> str | None:
        match parse_word(untrusted_hello or b"", nonce=self._nonce):
            case Hello(version):
                return f"guest script {version} said hello"
        if hotplug == b"1":
            return "guest shows feature/hotplug/vbd"
        return "guest has answered" if self._verdict else None

    def _keep(self, untrusted_value: bytes) -> None:
        match parse_word(untrusted_value, nonce=self._nonce):
            case Done() | Failed() as verdict:
                self._verdict = self._verdict or verdict

    def _keep_log(self, untrusted_value: bytes) -> None:
        lines = untrusted_value[:MAX_WORD].splitlines()
        words = (parse_word(line, nonce=self._nonce) for line in lines)
        self._log = tuple(word.text for word in words if isinstance(word, LogLine)) or self._log

    # ------------------------------------------------------------ keys
    async def _make_keys(self, domid: int) -> bool:
        """Make what is missing and let the guest write it; False where the domain is gone."""
        keys = plan_keys(domid)
        return await self._give(keys, keys.verdict, keys.log, permission=f"b{domid}")

    async def _take_permission(self) -> None:
        domid = await self._domains.domid(self._uuid)
        if domid is None:
            return
        keys = plan_keys(domid)
        if await self._give(keys, keys.verdict, permission=f"r{domid}"):
            verdict, guest_log = await self._xenstore.read_all(keys.verdict, keys.log)
            self._keep(verdict or b"")
            self._keep_log(guest_log or b"")

    async def _give(self, keys: Keys, *paths: str, permission: str) -> bool:
        """Make the keys dom0's, with this permission for the guest; the values they have stay.

        Not in a transaction where they are there: a guest that writes without end would make one
        fail without end.
        """

        async def make(transaction: Transaction) -> bool:
            # A key under a dead domain would stay for ever, so its life is looked at in the same.
            try:
                vm = await transaction.read(f"{keys.home}/vm")
            except FileNotFoundError:
                return False
            if vm != f"/vm/{self._uuid}".encode():
                return False
            await transaction.make_all(paths, "n0", permission)
            return True

        try:
            for path in paths:
                await self._xenstore.set_permissions(path, "n0", permission)
        except FileNotFoundError:
            return await self._xenstore.in_transaction(make)
        return True

    async def _remove_keys(self, keys: Keys) -> None:
        await self._xenstore.rm(keys.verdict, keys.log)
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # the guest writes there now
            async with self._xenstore.transaction() as transaction:
                if not await transaction.children(keys.folder):
                    await transaction.rm(keys.folder)
