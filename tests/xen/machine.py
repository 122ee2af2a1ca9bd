"""One machine under QEMU: a tar goes in, words come out as they are said, a tar comes back.

QEMU emulates (TCG): nothing here needs a CPU with virtualization that can be nested.
"""

import asyncio
import gzip
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.xen.image import Dom0Files

MEMORY_MIB = 3072
DOM0_MIB = 1536
RESULTS_BYTES = 256 * 1024 * 1024  # sparse
CONSOLE_TAIL = 3000
LONGEST_LINE = 1024 * 1024
PORT = "laboratory"

XEN_WORDS = (
    "console=com1",
    "com1=115200,8n1",
    f"dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M",
    "noreboot=1",
    # Defences that an emulated CPU does not need, and that cost much there.
    "pv-l1tf=no",
    "spec-ctrl=no",
    "xpti=no",
)
DOM0_WORDS = (
    "console=hvc0",
    "root=/dev/vda",
    "clocksource=xen",
    "mitigations=off",
    "net.ifnames=0",
    "apparmor=0",
    "audit=0",
    "selinux=0",
    "quiet",
)


class MachineFailed(Exception):
    """The machine said nothing for too long, or ended without results; the text says which."""


@dataclass(frozen=True, slots=True)
class Disks:
    """What the machine is given, what it gives back, and its console: files of one folder."""

    folder: Path

    @property
    def given(self) -> Path:
        """A tar."""
        return self.folder / "given.tar"

    @property
    def xen(self) -> Path:
        """The hypervisor, uncompressed: QEMU takes it no other way."""
        return self.folder / "xen"

    @property
    def results(self) -> Path:
        """A tar, once the machine has ended."""
        return self.folder / "results.tar"

    @property
    def console(self) -> Path:
        """All that Xen and dom0's kernel say."""
        return self.folder / "console.txt"


def qemu_argv(files: Dom0Files, disks: Disks) -> list[str]:
    """The machine's command line."""
    modules = (f"{files.kernel} {' '.join(DOM0_WORDS)}", str(files.initramfs))
    options = (
        ("-accel", "tcg,thread=multi"),
        ("-machine", "pc,vmport=off"),
        # Of QEMU's default CPU libvirt's Xen driver does not know the vendor, and does not start.
        ("-cpu", "Nehalem"),
        # With two, a busy host makes dom0 report soft lockups.
        ("-smp", "1"),
        ("-m", str(MEMORY_MIB)),
        ("-rtc", "base=utc"),
        ("-nodefaults",),
        ("-no-reboot",),
        ("-display", "none"),
        ("-kernel", str(disks.xen)),
        ("-append", " ".join(XEN_WORDS)),
        ("-initrd", ",".join(modules)),
        ("-drive", f"file={files.root},format=raw,if=virtio,snapshot=on,cache=unsafe"),
        ("-drive", f"file={disks.given},format=raw,if=virtio,readonly=on"),
        ("-drive", f"file={disks.results},format=raw,if=virtio,cache=unsafe"),
        ("-serial", f"file:{disks.console}"),
        ("-device", "virtio-rng-pci"),
        ("-device", "virtio-serial-pci"),
        ("-chardev", "stdio,id=words,signal=off"),
        ("-device", f"virtserialport,chardev=words,name={PORT}"),
    )
    # It ends with whoever started it, however that ends.
    program = ("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64")
    return [*program, *(word for option in options for word in option)]


async def run_machine(
    files: Dom0Files,
    disks: Disks,
    *,
    say: Callable[[str], None],
    silence: float,
    interactive: bool = False,
) -> None:
    """Boots, and returns when the machine has turned itself off; `say` gets every line it says.

    `interactive`: it reads this process's own input. Raises MachineFailed where no line comes for
    `silence` seconds.
    """
    disks.xen.write_bytes(gzip.decompress(files.xen.read_bytes()))
    with disks.results.open("wb") as results:
        results.truncate(RESULTS_BYTES)
    machine = await asyncio.create_subprocess_exec(
        *qemu_argv(files, disks),
        # At the end of its input QEMU would hang up the port, and dom0's next word would block.
        stdin=None if interactive else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LONGEST_LINE,
    )
    assert machine.stdout is not None
    try:
        while line := await asyncio.wait_for(machine.stdout.readline(), silence):
            say(line.decode(errors="replace").rstrip())
        status = await asyncio.wait_for(machine.wait(), silence)
    except TimeoutError:
        raise MachineFailed(_with_console(f"said nothing for {silence:g} s", disks)) from None
    finally:
        if machine.returncode is None:
            machine.kill()
            await machine.wait()
    if status != 0:
        raise MachineFailed(_with_console(f"ended with {status}", disks))


def unpack_results(disks: Disks, into: Path) -> None:
    """What the machine gave back, its `status` last; raises MachineFailed where that is nothing."""
    argv: list[str | Path] = ["tar", "--extract", "--no-same-owner"]
    argv += ["--file", disks.results, "--directory", into]
    ended = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False)
    if ended.returncode != 0 or not (into / "status").exists():
        raise MachineFailed(_with_console("gave no results back", disks))


def _with_console(what: str, disks: Disks) -> str:
    console = disks.console.read_text(errors="replace") if disks.console.exists() else ""
    return f"the machine {what}; the end of its console:\n{console[-CONSOLE_TAIL:]}"
