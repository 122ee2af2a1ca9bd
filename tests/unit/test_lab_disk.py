"""The file system is one that e2fsck has nothing to say about, and holds what was put in."""

import stat
import subprocess
from pathlib import Path

import pytest

from tests.lab.disk import make_image
from tests.lab.initramfs import Entry

ENTRIES = [
    Entry("etc/shadow", stat.S_IFREG | 0o600, b"root:*:0:0\n"),
    Entry("bin/sh", stat.S_IFLNK | 0o777, b"/bin/busybox"),
    Entry("odd", stat.S_IFREG | 0o755, bytes(range(256)) * 5000),
    Entry("home/ops", stat.S_IFDIR | 0o700, owner=1000),
    Entry("home/ops/own", stat.S_IFREG | 0o644, b"", owner=1000),
]


def asked(image: Path, request: str) -> str:
    """What debugfs answers; it opens the image for reading alone."""
    argv = ["debugfs", "-R", request, str(image)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_e2fsck_finds_nothing_and_all_is_there(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_image(image, ENTRIES)
    subprocess.run(["e2fsck", "-f", "-n", image], capture_output=True, check=True)
    listed = [asked(image, f"ls -p {folder}") for folder in ("/", "/bin", "/home", "/home/ops")]
    fields = [line.split("/") for text in listed for line in text.splitlines() if line]
    found = {name: (mode, user, group) for _, _, mode, user, group, name, *_ in fields}
    del found["."], found[".."], found["lost+found"]
    assert found == {
        "bin": ("040755", "0", "0"),
        "etc": ("040755", "0", "0"),
        "home": ("040755", "0", "0"),
        "odd": ("100755", "0", "0"),
        "sh": ("120777", "0", "0"),
        "ops": ("040700", "1000", "1000"),
        "own": ("100644", "1000", "1000"),
    }
    assert 'Fast link dest: "/bin/busybox"' in asked(image, "stat /bin/sh")
    asked(image, f"dump /odd {tmp_path}/odd")
    assert (tmp_path / "odd").read_bytes() == ENTRIES[2].data
    assert asked(image, "cat /etc/shadow") == "root:*:0:0\n"


def test_the_same_entries_give_the_same_bytes(tmp_path: Path) -> None:
    make_image(tmp_path / "one", ENTRIES)
    make_image(tmp_path / "two", reversed(ENTRIES))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    large = Entry("large", stat.S_IFREG | 0o644, bytes([1]) * 60 * 1024 * 1024)
    with pytest.raises(RuntimeError, match=r"debugfs could not fill .*\n.*allocate block"):
        make_image(tmp_path / "image", [large])
