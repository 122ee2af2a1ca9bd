"""Does KVM work here? /dev/kvm may exist, answer every ioctl, and still kill a stock kernel."""

import asyncio
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from provisiond.process import output_of

DEVICE = Path("/dev/kvm")
QEMU = "qemu-system-x86_64"
# A kernel with no root file system ends its boot with the first of these; then nothing is left of
# the boot that could fail under KVM alone.
BOOTED = (b"Unable to mount root fs", b"No working init found")
STOPPED = (b"KVM internal error", b"failed to initialize", b"Could not access KVM")
PROBE_SECONDS = 20.0  # what a kernel is given by those who only want to know
TAIL = 300  # characters of the last words that go into the reason


class Kvm(StrEnum):
    """The three answers."""

    ABSENT = "absent"
    BROKEN = "broken"
    WORKS = "works"


@dataclass(frozen=True, slots=True)
class KvmState:
    """An answer, and why: one sentence for the operator."""

    kvm: Kvm
    reason: str

    @property
    def works(self) -> bool:
        """True when a domain of type 'kvm' can be expected to boot."""
        return self.kvm is Kvm.WORKS


def host_kernel() -> Path | None:
    """The running kernel's file, or the newest other one that Debian or Fedora keeps in /boot."""
    running = Path(f"/boot/vmlinuz-{os.uname().release}")
    if running.exists():
        return running
    others = sorted(Path("/boot").glob("vmlinuz-*"), key=lambda file: file.stat().st_mtime)
    return others[-1] if others else None


async def probe_kvm(kernel: Path, *, within: float) -> KvmState:
    """Boots `kernel` under KVM without any disk; a kernel that dies may just stay silent for ever.

    So the question itself has a limit: did the kernel boot `within` so many seconds? ToolFailed
    when QEMU is not installed.
    """
    if not DEVICE.exists():
        return KvmState(Kvm.ABSENT, f"{DEVICE} does not exist")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return KvmState(Kvm.ABSENT, f"{DEVICE} may not be opened by this user (group kvm may)")
    said = bytearray()
    try:
        async with (
            asyncio.timeout(within),
            output_of(boot_argv(kernel, accelerator="kvm")) as stream,
        ):
            while not judge(bytes(said)) and (chunk := await stream.read(65536)):
                said += chunk
    except TimeoutError:
        return KvmState(Kvm.BROKEN, f"{kernel.name} did not boot within {within:g} s{_last(said)}")
    return judge(bytes(said)) or KvmState(Kvm.BROKEN, f"QEMU ended early{_last(said)}")


def judge(said: bytes) -> KvmState | None:
    """The verdict on what kernel and QEMU have said so far; None while there is none."""
    if any(words in said for words in BOOTED):
        return KvmState(Kvm.WORKS, "a kernel booted under KVM")
    if any(words in said for words in STOPPED):
        return KvmState(Kvm.BROKEN, f"QEMU stopped{_last(said)}")
    return None


def _last(said: bytes | bytearray) -> str:
    spoken = (line.strip() for line in said.decode(errors="replace").splitlines())
    lines = [line for line in spoken if line and not line.startswith(f"{QEMU}: warning")]
    return f"; the last words were: {lines[-1][-TAIL:]}" if lines else "; it said nothing"


def boot_argv(kernel: Path, *, accelerator: str) -> list[str | Path]:
    """QEMU with this kernel, its console on stdout, and nothing else."""
    return [
        *(QEMU, "-no-user-config", "-nodefaults", "-display", "none"),
        *("-accel", accelerator),
        *("-m", "128"),
        *("-serial", "stdio"),
        "-no-reboot",
        *("-kernel", kernel),
        *("-append", "console=ttyS0 no_timer_check panic=-1"),
    ]
