"""A host as an operator has it: a daemon over two guests, one of which works.

The tests of a module share it and its event loop: `with_guests` marks them.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.daemon.command import TYPED, Command
from tests.daemon.fixtures import fresh_folder
from tests.daemon.program import Daemon
from tests.lab.console import open_console
from tests.lab.fixtures import fresh_root
from tests.lab.initramfs import GuestFiles
from tests.lab.program import Lab, Running

IP = "10.0.2.15/24"
# XML, and so libvirt, takes U+009B in a name: to a terminal it is the same as ESC [.
HOSTILE_NAME = "mute\u009b31m"
with_guests = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True)
class Host:
    """A daemon over two guests: one works, one never answers and has an evil name."""

    daemon: Daemon
    lab: Lab
    web: Running
    mute: Running

    @property
    def command(self) -> Command:
        return Command(self.daemon.socket)

    async def ask(self, guest: Running) -> str:
        """`provisionctl provision` without --wait; the id of the job."""
        said = await self.command.run(*provision(guest), stdin=TYPED)
        assert said.status == 0, said
        (job_id,) = re.findall(r": job ([0-9a-f]{32}) [A-Z_]+\n$", said.out)
        return str(job_id)

    async def undo(self, job_id: str) -> None:
        """So that the next test finds the guest free."""
        await self.daemon.cancel(job_id)
        await self.daemon.wait_for(job_id, "FAILED")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(guest_files: GuestFiles) -> AsyncIterator[Host]:
    with fresh_root() as root, fresh_folder() as folder:
        lab = Lab(root=root, files=guest_files)
        (web,) = lab.start()
        (mute,) = lab.start("--silent", prefix=HOSTILE_NAME)
        daemon = Daemon(folder, {"libvirt_uri": lab.uri, "ready_seconds": 1})
        try:
            await daemon.start()
            yield Host(daemon, lab, web, mute)
        finally:
            await daemon.kill()
            print(f"--- provisiond\n{daemon.log.read_text()}")


def provision(guest: Running) -> tuple[str, ...]:
    """The words that ask for this guest."""
    return ("provision", guest.uuid, "--hostname", "web1", "--ip", IP, "--password-stdin")


async def in_guest(guest: Running, script: str) -> str:
    async with open_console(guest.shell) as console:
        answer = await console.run(script)
    assert answer.status == 0, answer
    return answer.output


@pytest.fixture
def command(daemon: Daemon) -> Command:
    """Over libvirt's test driver, with no guest that could answer."""
    return Command(daemon.socket)
