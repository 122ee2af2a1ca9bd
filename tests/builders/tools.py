"""The builders' own programs, from PyPI, in a virtual environment that is kept in the cache."""

import os
import subprocess
import sys
from pathlib import Path

from tests.lab.packages import cache_directory, locked

PACKAGES = ("diskimage-builder", "kiwi", "pykickstart")


def builders_environment() -> Path:
    """The folder of their programs; made once, and brought up to date when it is asked for."""
    venv = cache_directory() / f"builders-{sys.version_info.major}.{sys.version_info.minor}"
    venv.parent.mkdir(parents=True, exist_ok=True)
    with locked(venv.with_name(f"{venv.name}.lock")):
        if not (venv / "whole").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
            install = ("-m", "pip", "--quiet", "--disable-pip-version-check", "install")
            subprocess.run([venv / "bin" / "python", *install, *PACKAGES], check=True)
            (venv / "whole").touch()
    return venv / "bin"


def with_programs(folder: Path) -> dict[str, str]:
    """The environment of a command that finds these programs first."""
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
