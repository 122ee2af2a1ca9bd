"""Debian packages, unpacked in a cache and never installed: the guest is made of them."""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

KERNEL_METAPACKAGE = "linux-image-cloud-amd64"


class PackageUnavailable(Exception):
    """A package cannot be had; the text says which, and what to do next."""


def cache_directory() -> Path:
    """`$LAB_CACHE`, else provisiond's own folder in the user's cache."""
    if chosen := os.environ.get("LAB_CACHE"):
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "provisiond"


def fetch_package(name: str) -> Path:
    """The unpacked tree of the newest version of package `name` that apt knows.

    The network is used only when that version is not in the cache.
    """
    tree = cache_directory() / "packages" / f"{name}_{quote(_candidate(name), safe='')}"
    if tree.is_dir():
        return tree
    tree.parent.mkdir(parents=True, exist_ok=True)
    with _locked(tree.with_name(f"{tree.name}.lock")):
        if not tree.is_dir():  # nobody else unpacked it while we waited for the lock
            _unpack(name, tree)
    return tree


def fetch_kernel() -> Path:
    """The unpacked tree of the kernel package that Debian's cloud metapackage stands for today."""
    architecture = _run(["dpkg", "--print-architecture"]).strip()
    if architecture != "amd64":
        raise PackageUnavailable(f"The tiny guest runs on amd64 alone; this is {architecture}.")
    return fetch_package(parse_kernel_package(_run(["apt-cache", "show", KERNEL_METAPACKAGE])))


def parse_kernel_package(text: str) -> str:
    """The real kernel's package from `apt-cache show`: the first record is the candidate's."""
    if found := re.search(r"^Depends:.*?\b(linux-image-[0-9][^ ,]*)", text, re.MULTILINE):
        return found[1]
    raise PackageUnavailable(
        f"apt does not say which kernel {KERNEL_METAPACKAGE} stands for. Run: apt-get update"
    )


def parse_candidate(text: str) -> str | None:
    """The version that `apt-cache policy` would install; None when apt knows none."""
    found = re.search(r"^  Candidate: (\S+)$", text, re.MULTILINE)
    return found[1] if found and found[1] != "(none)" else None


def _candidate(name: str) -> str:
    version = parse_candidate(_run(["apt-cache", "policy", name]))
    if version is None:
        raise PackageUnavailable(f"apt knows no package {name}. Run: apt-get update")
    return version


def _unpack(name: str, tree: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=tree.parent) as work:
        _run(["apt-get", "--quiet", "download", name], directory=Path(work))
        (archive,) = Path(work).glob("*.deb")
        part = Path(work, "tree")
        _run(["dpkg-deb", "--extract", str(archive), str(part)])
        part.chmod(0o755)
        part.rename(tree)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The kernel drops the lock with the process that holds it, however that ends."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(argv: Sequence[str], *, directory: Path | None = None) -> str:
    if shutil.which(argv[0]) is None:
        raise PackageUnavailable(
            f"The tiny guest is made of Debian packages, and {argv[0]} is not there. "
            "Run this on Debian 12 or later."
        )
    ended = subprocess.run(
        argv,
        cwd=directory,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        raise PackageUnavailable(
            f"{' '.join(argv)} failed: {ended.stderr.strip()}\n"
            "Where a file was not found, the lists are old. Run: apt-get update"
        )
    return ended.stdout
