"""The machine that figures come from, as a reader has to know it to compare."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provisiond import __version__
from provisiond.iso.image import file_system
from tests.lab.initramfs import PROJECT

PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "QEMU": ("qemu-system-x86_64", "--version"),
    "libvirt": ("virsh", "--version"),
    "genisoimage": ("genisoimage", "--version"),
    "xorriso": ("xorriso", "--version"),
    "virt-install": ("virt-install", "--version"),
}


def describe(*, state: Path) -> dict[str, str]:
    """Processor, memory, kernel, versions, and how busy it is; `state` is where SQLite writes."""
    cpus = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.+)$", cpus, re.MULTILINE)
    (total,) = re.findall(
        r"^MemTotal:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE
    )
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(total) / 2**20:.0f} GiB",
        "kernel": platform.release(),
        "distribution": platform.freedesktop_os_release()["PRETTY_NAME"],
        "Python": platform.python_version(),
        "guests run with": "TCG",
        "state is on": file_system(state),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "provisiond": f"{__version__}, {_commit()}",
        **{name: _version(*argv) for name, argv in PROGRAMS.items()},
    }


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """What all processors together have worked, and what the host under this machine has kept of
    them while there was work (proc(5), steal); in ticks since the boot."""

    used: int
    stolen: int

    @classmethod
    def now(cls) -> "ProcessorTime":
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        user, nice, system, _idle, _iowait, irq, softirq, stolen = map(int, fields[:8])
        return cls(user + nice + system + irq + softirq, stolen)

    def percent_stolen_since(self, before: "ProcessorTime") -> float:
        """Of the time that was wanted, in percent."""
        stolen = self.stolen - before.stolen
        return 100 * stolen / max(1, self.used - before.used + stolen)


def _commit() -> str:
    return _said("git", "-C", str(PROJECT), "describe", "--always", "--dirty") or "no git"


def _version(*argv: str) -> str:
    found = re.search(r"\d+(\.\d+)+\S*", _said(*argv))
    return found[0] if found else "absent"


def _said(*argv: str) -> str:
    try:
        ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return (ended.stdout or ended.stderr).strip()
