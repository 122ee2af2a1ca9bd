"""pytest fixtures: file systems of the tests' own, which no other process of the host sees."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from provisiond.disk.folder import make_mutable

_MOUNT = 'mount -t "$1" -o "$2" provisiond-test "$3" && echo mounted && exec sleep 1000'


@contextmanager
def mounted(kind: str, options: str, point: Path) -> Iterator[Path]:
    """A file system mounted on the folder `point` in a mount namespace of its own; yields the path
    by which it is reached from here. It ends with the process that holds the namespace."""
    argv = ["unshare", "--mount", "setpriv", "--pdeathsig", "KILL", "sh", "-c", _MOUNT, "sh"]
    holder = subprocess.Popen([*argv, kind, options, point], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "mounted\n"
        yield Path(f"/proc/{holder.pid}/root{point}")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 4 MiB."""
    (tmp_path / "small").mkdir()
    with mounted("tmpfs", "size=4M", tmp_path / "small") as folder:
        yield folder


@pytest.fixture
def flagless_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that knows no immutable files."""
    (tmp_path / "flagless").mkdir()
    with mounted("ramfs", "mode=755", tmp_path / "flagless") as folder:
        yield folder


@pytest.fixture
def image_dir(tmp_path: Path) -> Iterator[Path]:
    """An empty image_dir; its immutable files can be removed when the test has ended."""
    folder = tmp_path / "images"
    folder.mkdir()
    yield folder
    for path in folder.rglob("*"):
        if path.is_file():
            make_mutable(path)
