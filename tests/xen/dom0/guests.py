"""The guests of the suite: started, spoken to and looked at from outside."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.daemon.program import Json, request
from tests.lab.console import Console, open_console
from tests.lab.domain import Guest, kernel_words
from tests.xen.dom0 import host
from tests.xen.dom0.service import ISO_FOLDER

PASSWORD = "correct horse battery staple"
SPEAK = 120  # seconds; for a guest that boots while others do


class Guests:
    """Starts guests and ends them; remembers every domid that each has had."""

    def __init__(self) -> None:
        self.domids: dict[str, list[int]] = {}
        self._started: list[Guest] = []

    def start(
        self, name: str, *, silent: bool = False, held: bool = False, broken_step: str | None = None
    ) -> Guest:
        """A new guest; its kernel has just begun to boot. `held`: its script waits for `let_go`."""
        words = kernel_words(silent=silent, held=held, broken_step=broken_step)
        guest = Guest(name, kernel_words=words)
        self._started.append(guest)
        host.start(guest)
        self.look(guest)
        return guest

    def expect(self, name: str) -> Guest:
        """One that provisiond is asked to make; it ends with the others."""
        guest = Guest(name)
        self._started.append(guest)
        return guest

    def look(self, guest: Guest) -> int:
        """Its domid now."""
        number = host.domid(guest)
        known = self.domids.setdefault(guest.name, [])
        if number not in known:
            known.append(number)
        return number

    def destroy(self) -> None:
        """Ends them all."""
        while self._started:
            host.destroy(self._started.pop())


def wanted(guest: Guest, *, address: int = 10, **changes: object) -> Json:
    """A request for this guest."""
    ip = f"192.0.2.{address}/24"
    return request(guest.name, **{"ip": ip, "password": PASSWORD, **changes})


@asynccontextmanager
async def shell(guest: Guest) -> AsyncIterator[Console]:
    """A root shell in the guest."""
    terminal = host.terminal(host.domid(guest))
    async with asyncio.timeout(SPEAK), open_console(terminal) as console:
        yield console


async def let_go(guest: Guest) -> None:
    """Its script begins, in a guest that was started held."""
    await in_guest(guest, "touch /run/go")


async def in_guest(guest: Guest, command: str) -> str:
    """What a command in the guest prints; it has to succeed."""
    async with shell(guest) as console:
        answer = await console.run(command)
    assert answer.status == 0, answer
    return answer.output


def states(job: Json) -> list[str]:
    """The story of a job; a note in its history stands under the state that the job was in."""
    return list(dict.fromkeys(event["state"] for event in job["history"]))


def assert_nothing_is_left(job: Json) -> None:
    """No ISO, no attachment, no loop device; and the job's record says so."""
    proof = job["proof"]
    assert proof["disk_absent_from_live_xml"] is True
    assert proof["back_end_absent"] is True
    assert proof["iso_overwritten_and_unlinked"] is True
    assert proof["iso_file_absent"] is True
    name = f"{job['id']}.iso"
    assert_nobody_has(name)
    assert not (ISO_FOLDER / name).exists()


def assert_nobody_has(name: str) -> None:
    """No domain has a disk whose file is called so, no back end serves one, no loop device."""
    assert name not in host.every_xml()
    assert name not in host.back_ends()
    assert not [file for file in host.loop_files() if name in file]
