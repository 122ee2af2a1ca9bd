"""What dom0 installs provisiond from: a lock, and its wheels, since there is no network there."""

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.lab.initramfs import PROJECT
from tests.lab.packages import cache_directory, locked

# The linters, the fuzzers and what only tests outside dom0 read with: minutes to unpack under
# emulation.
LEFT_OUT = (
    "ast-serialize",
    "atheris",
    "charset-normalizer",
    "graphql-core",
    "grimp",
    "harfile",
    "hypothesis",
    "hypothesis-graphql",
    "import-linter",
    "jsonschema-rs",
    "libvhdi-python",
    "librt",
    "markupsafe",
    "mypy",
    "pyrate-limiter",
    "pyyaml",
    "requests",
    "ruff",
    "schemathesis",
    "types-pyyaml",
    "urllib3",
    "werkzeug",
)


def dom0_lock() -> str:
    """constraints.txt as dom0 gets it; pip refuses it there where a package is missing."""
    lock = (PROJECT / "constraints.txt").read_text()
    entries = re.split(r"^(?=[a-z0-9-]+==)", lock, flags=re.MULTILINE)
    return "".join(entry for entry in entries if entry.partition("==")[0] not in LEFT_OUT)


def fetch_wheels() -> Path:
    """A folder with every wheel of that lock, in the cache; the network is used when it is new."""
    lock = dom0_lock()
    digest = hashlib.sha256(lock.encode()).hexdigest()[:16]
    wheels = cache_directory() / f"wheels-{digest}"
    wheels.parent.mkdir(parents=True, exist_ok=True)
    with locked(wheels.with_name("wheels.lock")):
        if not wheels.is_dir():
            _download(lock, wheels)
    return wheels


def _download(lock: str, wheels: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".wheels-", dir=wheels.parent) as folder:
        file, part = Path(folder, "constraints.txt"), Path(folder, "wheels")
        file.write_text(lock)
        argv = [
            sys.executable,
            *("-m", "pip", "--quiet", "--disable-pip-version-check", "download"),
            *("--require-hashes", "--requirement", str(file)),
            "--no-deps",
            *("--only-binary", ":all:"),
            *("--dest", str(part)),
        ]
        subprocess.run(argv, stdin=subprocess.DEVNULL, check=True)
        part.rename(wheels)
