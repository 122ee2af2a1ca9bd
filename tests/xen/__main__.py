"""`make test-xen`: boots real Xen, installs provisiond in its dom0, runs the suite in dom0/ there.

The results come back into build/xen/: junit.xml, transcript.txt, the journal, every console.
`python -m tests.xen --shell` gives a root shell in such a dom0 instead.
"""

import argparse
import asyncio
import io
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.disk import disk_guest_files
from tests.lab.initramfs import PROJECT, guest_files
from tests.lab.packages import PackageUnavailable
from tests.xen.image import dom0_files
from tests.xen.machine import Disks, MachineFailed, run_machine, unpack_results
from tests.xen.wheels import dom0_lock, fetch_wheels

RESULTS = PROJECT / "build" / "xen"
SILENCE = 600.0  # seconds; on two free cores nothing is silent for a tenth of it
SHELL_SILENCE = 3600.0


def main() -> int:
    """0 where every test of the suite has passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.xen", description=__doc__)
    parser.add_argument("--shell", action="store_true", help="a root shell in dom0 on this stdin")
    parser.add_argument("suite", nargs="*", help="options and tests for pytest in dom0")
    wanted = parser.parse_args()
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:7.1f}  {line}", flush=True)

    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True)
    try:
        with tempfile.TemporaryDirectory(prefix="xen-", dir=RESULTS) as folder:
            asyncio.run(_boot(Disks(Path(folder)), say, shell=wanted.shell, suite=wanted.suite))
    except (MachineFailed, PackageUnavailable) as error:
        print(error, file=sys.stderr)
        return 2
    say(f"the results are in {RESULTS.relative_to(PROJECT)}/")
    return int((RESULTS / "status").read_text())


async def _boot(disks: Disks, say: Callable[[str], None], *, shell: bool, suite: list[str]) -> None:
    say("the image of dom0: made once, then kept in the cache")
    files = dom0_files()
    say("the wheels that provisiond is installed from: likewise")
    with tarfile.open(disks.given, "w") as given:
        _fill(given, _run_script(shell=shell, suite=suite))
    say("booting Xen and dom0")
    try:
        silence = SHELL_SILENCE if shell else SILENCE
        await run_machine(files, disks, say=say, silence=silence, interactive=shell)
        unpack_results(disks, RESULTS)
    finally:
        shutil.copy(disks.console, RESULTS)


def _fill(given: tarfile.TarFile, run: str) -> None:
    """What dom0 gets: this tree as git sees it, the wheels, the guests' files, and what to run.

    The tree's lock is without what is not installed there.
    """
    guest, disk_guest = guest_files(), disk_guest_files()
    given.add(guest.kernel, "guest/vmlinuz")
    given.add(guest.initramfs, "guest/initramfs.gz")
    given.add(disk_guest.boot.initramfs, "guest/disk-initramfs.gz")
    given.add(disk_guest.image, "guest/root.ext4")
    given.add(fetch_wheels(), "wheels")
    for name in _tracked():
        if name != "constraints.txt":
            given.add(PROJECT / name, f"provisiond/{name}")
    _add_text(given, "provisiond/constraints.txt", dom0_lock(), mode=0o644)
    _add_text(given, "run", run, mode=0o755)


def _add_text(given: tarfile.TarFile, name: str, text: str, *, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = mode
    entry.size = len(text.encode())
    given.addfile(entry, io.BytesIO(text.encode()))


def _run_script(*, shell: bool, suite: list[str]) -> str:
    install = "/laboratory/provisiond/tests/xen/dom0/install"
    if shell:
        return "#!/bin/sh\nexec bash\n"
    return f"#!/bin/sh\n{install} && exec /opt/provisiond/tests/xen/dom0/run {shlex.join(suite)}\n"


def _tracked() -> list[str]:
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (PROJECT / name).exists()]


if __name__ == "__main__":
    sys.exit(main())
