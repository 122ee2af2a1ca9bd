"""A guest on trial: made and configured by a real provisiond, and looked at from inside.

power_on       the request is sent; the domain runs
configure      hello, the config disk attached, done, the disk gone
look_inside    the log-in on the serial console with the password that was set, and what is there
"""

import asyncio
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from provisiond.api.client import ApiError, ProvisiondClient
from provisiond.api.replies import EventView, JobState, JobView
from provisiond.api.requests import JobKind
from provisiond.errors import (
    AgentSilent,
    HypervisorUnavailable,
    ImageNotVerified,
    NoLogin,
)
from provisiond.images.guest_console import GuestConsole, LoginRefused, last_lines
from provisiond.images.model_domain import ADDRESS, GATEWAY, NAME_SERVER
from provisiond.images.qemu_monitor import Monitor

BASE = "golden"
"""What the image is called on its host."""

_USER = "root"
_LIBVIRT_SECONDS = 60.0  # it asks QEMU at first what that can do
_RETRY_SECONDS = 0.5
_CHECK_SECONDS = 60.0
_CONSOLE_LINES, _CONSOLE_BYTES = 20, 64 * 1024
_HELLO = re.compile(r"guest script (\S+) said hello")


@dataclass(frozen=True, slots=True)
class Check:
    """A command of a check in the guest, and what its output has to match."""

    command: str
    wanted: str


@dataclass(slots=True)
class Seen:
    """What was seen of a guest. Times are in seconds from its power-on; None: not come to."""

    agent: str | None = None
    """What the guest's script calls its version."""
    hello: float | None = None
    attached: float | None = None
    done: float | None = None
    succeeded: float | None = None
    login: float | None = None
    """When a shell answered on the serial console."""
    checks: dict[str, str] = field(default_factory=dict)
    """What was looked at inside, and what was found."""


class Trial:
    """One guest; each step once, in their order. All raise ImageNotVerified where it fails."""

    def __init__(
        self, client: ProvisiondClient, console_log: Path, said: Callable[[str], None]
    ) -> None:
        self.seen = Seen()
        self._client = client
        self._console_log = console_log
        self._said = said
        self._name = f"verify-{secrets.token_hex(2)}"
        self._password = secrets.token_urlsafe(18)
        self._job_id = ""
        self._events: Iterator[EventView] = iter(())
        self._power_on = 0.0

    # ------------------------------------------------------------ steps
    async def power_on(self, *, within: float) -> None:
        """Ask for the guest; `within` are the seconds of its boot, and again of its verdict."""
        job = await self._submit(deadline=int(2 * within) + 1)
        self._job_id = job.id
        self._events = self._client.job_events(job.id)
        self._power_on = (await self._until(JobState.DOMAIN_STARTED)).at.timestamp()
        self._said(f"{self._name}: power-on")

    async def configure(self, monitor: Monitor) -> None:
        """Follow the job to its end."""
        attached = await self._until(JobState.ISO_ATTACHED)
        opened_at = await monitor.port_opened_at()
        hello = _HELLO.search(attached.detail)
        if hello is None:
            raise AgentSilent(f"{self._name}: {attached.detail}", console=self._last_words())
        self.seen.agent = hello[1]
        self.seen.attached = self._since(attached.at.timestamp())
        if opened_at is not None:
            self.seen.hello = self._since(opened_at)
            self._said(f"hello of provision-guest {hello[1]} after {self.seen.hello:.1f} s")
        self._said(f"config disk attached after {self.seen.attached:.1f} s")
        done = await self._until(JobState.GUEST_CONFIGURED)
        self.seen.done = self._since(done.at.timestamp())
        self._said(f"done after {self.seen.done:.1f} s")
        ended = await self._until(JobState.SUCCEEDED)
        self.seen.succeeded = self._since(ended.at.timestamp())
        self._said(f"config disk detached and destroyed after {self.seen.succeeded:.1f} s")

    async def look_inside(self, console: GuestConsole, *, within: float) -> None:
        """Log in with the password and see that all is there.

        NoLogin where no shell answers `within` so many seconds: a getty can come late.
        """
        try:
            async with asyncio.timeout(within):
                await console.log_in(_USER, self._password)
        except TimeoutError:
            raise NoLogin(
                f"{self._name}: configured, but nobody could log in on its serial console "
                f"within {within:g} s",
                console=self._last_words(),
            ) from None
        except LoginRefused as error:
            raise self._not_verified(
                f"configured, but no log-in with its password: {error}"
            ) from None
        self.seen.login = self._since(time.time())
        self._said(f"logged in on its serial console after {self.seen.login:.1f} s")
        for what, check in self._checks().items():
            await self._look(console, what, check)

    # ------------------------------------------------------------ the request
    async def _submit(self, *, deadline: int) -> JobView:
        """The job, accepted. libvirt takes some seconds until it knows what QEMU can do."""
        request = self._request(deadline)
        until = time.monotonic() + _LIBVIRT_SECONDS
        while True:
            try:
                return await asyncio.to_thread(self._client.submit, request)
            except ApiError as error:
                if error.code != HypervisorUnavailable.code:
                    raise
                if time.monotonic() > until:
                    hint = "Install QEMU and libvirt's driver for it: on Debian, qemu-system-x86 "
                    hint += "and libvirt-daemon-driver-qemu."
                    raise HypervisorUnavailable(error.message, hint=hint) from None
            await asyncio.sleep(_RETRY_SECONDS)

    def _request(self, deadline: int) -> Mapping[str, object]:
        return {
            "kind": JobKind.PROVISION,
            "request_id": uuid.uuid4().hex,
            "deadline_seconds": deadline,
            "domain": self._name,
            "create": {"base": BASE},
            "config": {
                "hostname": self._name,
                "ip": ADDRESS,
                "gateway": GATEWAY,
                "nameservers": [NAME_SERVER],
                "user": _USER,
                "password": self._password,
            },
        }

    async def _until(self, state: JobState) -> EventView:
        """The event by which the job comes to `state`."""
        while (event := await asyncio.to_thread(next, self._events, None)) is not None:
            if event.state is state:
                return event
            if event.state in (JobState.UNDOING, JobState.FAILED):
                break
        job = await asyncio.to_thread(self._client.job, self._job_id)
        if job.failure is None:
            raise self._not_verified(f"its job is {job.state} without {state}")
        raise ImageNotVerified(
            job.failure.message,
            hint=job.failure.hint,
            console=[*(job.guest_log or [])[-_CONSOLE_LINES:], *self._last_words()],
        )

    # ------------------------------------------------------------ inside
    def _checks(self) -> dict[str, Check]:
        address, gateway = re.escape(ADDRESS), re.escape(GATEWAY)
        return {
            "host name": Check("hostname", rf"{self._name}(\..*)?"),
            "address": Check("ip -o addr show", rf"(?s).*\binet {address}\b.*"),
            "route": Check("ip route show", rf"(?s).*\bdefault via {gateway}\b.*"),
            "applied": Check("cat /var/lib/provision-guest/applied", r"(?s).+"),
            "config disks": Check("cd /sys/block && ls | grep -c '^s[dr]'", "0"),
            "mounted config disks": Check("grep -c iso9660 /proc/mounts", "0"),
        }

    async def _look(self, console: GuestConsole, what: str, check: Check) -> None:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                untrusted = (await console.run(check.command)).output.strip()
        except TimeoutError:
            raise self._not_verified(f"{check.command} has no answer in the guest") from None
        if not re.fullmatch(check.wanted, untrusted):
            raise self._not_verified(
                f"the {what} is not as it was asked for: {check.command!r} says {untrusted!r:.500}"
            )
        self.seen.checks[what] = untrusted[:500]
        self._said(f"{what}: as it was asked for")

    # ------------------------------------------------------------ what is told
    def _since(self, at: float) -> float:
        return round(at - self._power_on, 3)

    def _not_verified(self, what: str) -> ImageNotVerified:
        return ImageNotVerified(f"{self._name}: {what}", console=self._last_words())

    def _last_words(self) -> list[str]:
        """What the guest said last on its console; never the password."""
        try:
            with self._console_log.open("rb") as file:
                file.seek(max(0, self._console_log.stat().st_size - _CONSOLE_BYTES))
                untrusted = file.read(_CONSOLE_BYTES)
        except OSError:
            return []
        untrusted = untrusted.replace(self._password.encode(), b"(the password)")
        return last_lines(untrusted, _CONSOLE_LINES)
