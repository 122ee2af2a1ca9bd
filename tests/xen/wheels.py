"""The wheels of constraints.txt for a machine without network; kept in the cache."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.lab.initramfs import PROJECT
from tests.lab.packages import cache_directory, locked


def fetch_wheels() -> Path:
    """A folder with every wheel of the lock; the network is used when the lock has changed."""
    lock = PROJECT / "constraints.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    wheels = cache_directory() / f"wheels-{digest}"
    wheels.parent.mkdir(parents=True, exist_ok=True)
    with locked(wheels.with_name("wheels.lock")):
        if not wheels.is_dir():
            _download(lock, wheels)
    return wheels


def _download(lock: Path, wheels: Path) -> None:
    part = Path(tempfile.mkdtemp(prefix=".wheels-", dir=wheels.parent))
    argv = [
        sys.executable,
        *("-m", "pip", "--quiet", "--disable-pip-version-check", "download"),
        *("--require-hashes", "--requirement", str(lock)),
        "--no-deps",
        *("--only-binary", ":all:"),
        *("--dest", str(part)),
    ]
    try:
        subprocess.run(argv, stdin=subprocess.DEVNULL, check=True)
        part.rename(wheels)
    finally:
        shutil.rmtree(part, ignore_errors=True)
