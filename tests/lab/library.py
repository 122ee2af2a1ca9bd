"""Libraries in C that a program under test is started with (LD_PRELOAD)."""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from tests.lab.packages import cache_directory

GCC = ("gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared")
"""How every library of the tests is compiled."""


def library(source: Path) -> Path:
    """Built once for each content, kept in the cache."""
    name = f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    built = cache_directory() / name
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(prefix=f".{source.stem}-", dir=built.parent)
        os.close(descriptor)
        subprocess.run(
            [*GCC, "-fvisibility=hidden", *("-o", part), source, "-ldl"],
            check=True,
        )
        Path(part).rename(built)
    return built
