"""A whole Debian's image, by the commands as a person types them: taken apart, booted, tried.

The same commands over the tiny guest's image are in the tests beside this.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.daemon.command import PROVISIONCTL, Ended

PATIENCE = 1800  # seconds; a Debian boots in half a minute without KVM, on a free core


@dataclass(frozen=True, slots=True)
class Parts:
    """What was taken out of an image; the `root` is an initramfs of all that was on its disk."""

    kernel: Path
    initrd: Path
    root: Path

    def boot_of_the_disk(self) -> tuple[str | Path, ...]:
        """Words for `verified`: kernel and initrd, which look for the root on the disk."""
        initrd = ("--initrd", self.initrd)
        return ("--kernel", self.kernel, *initrd, "--append", "root=/dev/vda1 console=ttyS0")

    def boot_of_memory(self, size: str) -> tuple[str | Path, ...]:
        """Words for `verified`: the kernel, with the root in memory; nothing of it is on a disk.

        The kernel gives half of the memory of that `size` to the root, unpacked.
        """
        root = ("--initrd", self.root, "--append", "console=ttyS0")
        return ("--kernel", self.kernel, *root, "--memory", size)


def image_command(*words: str | Path) -> Ended:
    """`provisionctl image …` to its end, however long that takes."""
    argv = [PROVISIONCTL, "image", *words]
    said = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE)
    return Ended(said.returncode, said.stdout, said.stderr)


def take_apart(image: Path, folder: Path) -> Parts:
    """The image's parts, in a new folder."""
    folder.mkdir()
    parts = Parts(folder / "vmlinuz", folder / "initrd", folder / "root.cpio.gz")
    said = image_command(
        *("extract", image),
        *("--kernel", parts.kernel),
        *("--initrd", parts.initrd),
        *("--rootfs", parts.root),
    )
    assert said.status == 0, said
    return parts


def verified(image: Path, *more: str | Path) -> dict[str, Any]:
    """What was seen of a guest of the image, which works; it is told with the test."""
    words = ("--within", str(PATIENCE // 2), "--login-within", str(PATIENCE // 2))
    said = image_command("verify", image, "--json", *words, *more)
    assert said.status == 0, said
    seen = dict(json.loads(said.out)["seen"])
    print({name: seen[name] for name in ("hello", "attached", "done", "succeeded", "login")})
    assert "10.0.2.15/24" in seen["checks"]["address"]
    return seen
