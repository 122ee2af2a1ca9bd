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

GUEST_KERNEL = "linux-image-cloud-amd64"


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
    (version,) = package_versions(name)
    tree = cache_directory() / "packages" / f"{name}_{quote(version, safe='')}"
    if tree.is_dir():
        return tree
    tree.parent.mkdir(parents=True, exist_ok=True)
    with locked(tree.with_name(f"{tree.name}.lock")):
        if not tree.is_dir():  # nobody else unpacked it while we waited for the lock
            _unpack(name, tree)
    return tree


def fetch_kernel(metapackage: str = GUEST_KERNEL) -> Path:
    """The unpacked tree of the kernel package that a metapackage of Debian stands for today."""
    architecture = _run(["dpkg", "--print-architecture"]).strip()
    if architecture != "amd64":
        raise PackageUnavailable(f"The tiny guest runs on amd64 alone; this is {architecture}.")
    return fetch_package(real_package(metapackage, "linux-image-"))


def real_package(metapackage: str, prefix: str) -> str:
    """The package `prefix`VERSION that a metapackage of Debian stands for today."""
    if name := parse_real_package(_run(["apt-cache", "show", metapackage]), prefix):
        return name
    raise PackageUnavailable(
        f"apt does not say which {prefix}... {metapackage} stands for. Run: apt-get update"
    )


def parse_real_package(text: str, prefix: str) -> str | None:
    """The versioned dependency in `apt-cache show`: the first record is the candidate's."""
    pattern = rf"^Depends:.*?\b({re.escape(prefix)}[0-9][^ ,]*)"
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else None


def parse_candidates(text: str) -> dict[str, str]:
    """What `apt-cache policy` would install, by name; a package that apt cannot have is absent."""
    found = re.findall(r"^(\S+):\n.*\n  Candidate: (\S+)$", text, re.MULTILINE)
    return {name: version for name, version in found if version != "(none)"}


def package_versions(*names: str) -> list[str]:
    """The newest version of each package that apt knows."""
    known = parse_candidates(_run(["apt-cache", "policy", *names]))
    for name in names:
        if name not in known:
            raise PackageUnavailable(f"apt knows no package {name}. Run: apt-get update")
    return [known[name] for name in names]


def _unpack(name: str, tree: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=tree.parent) as work:
        _run(["apt-get", "--quiet", "download", name], directory=Path(work))
        (archive,) = Path(work).glob("*.deb")
        part = Path(work, "tree")
        _run(["dpkg-deb", "--extract", str(archive), str(part)])
        part.chmod(0o755)
        part.rename(tree)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock; the kernel drops it with the process that holds it, however that ends."""
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
