"""What runs: Debian's C xenstored, unpacked and unmodified, and hypervisor.c compiled for it."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.lab.library import GCC
from tests.lab.packages import cache_directory, fetch_package

HYPERVISOR = Path(__file__).with_name("hypervisor.c")


@dataclass(frozen=True, slots=True)
class Program:
    """The program and the folder of the libraries it is started with."""

    xenstored: Path
    libraries: Path


@cache
def program() -> Program:
    """Made once for each version and content, kept in the cache."""
    xenstored = _xenstored()
    return Program(xenstored=xenstored, libraries=_libraries(xenstored))


def newest_package(names: Iterable[str]) -> str:
    """xen-utils-4.20 rather than xen-utils-4.17: a release of Debian has one of them, or two."""
    versions = [name for name in names if re.fullmatch(r"xen-utils-[0-9]+\.[0-9]+", name)]
    return max(versions, key=lambda name: [int(n) for n in re.findall("[0-9]+", name)])


def parse_needed(dynamic: str) -> list[str]:
    """The libraries of Xen that `readelf --dynamic` says a program needs."""
    return re.findall(r"\(NEEDED\).*\[(libxen[^\]]+)\]", dynamic)


def parse_versions(symbols: str) -> dict[str, list[str]]:
    """What `readelf --dyn-syms` says a program takes from Xen: symbol version → its symbols."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"\bUND ((?:xc|xen)\w*)@(\S+)", symbols):
        found.setdefault(version, []).append(name)
    return found


def _xenstored() -> Path:
    tree = fetch_package(newest_package(_output("apt-cache", "pkgnames", "xen-utils-").split()))
    (found,) = tree.glob("usr/lib/xen-*/bin/xenstored")
    return found


def _libraries(xenstored: Path) -> Path:
    """One object under the name of every library; the loader checks names and symbol versions."""
    needed = parse_needed(_output("readelf", "--dynamic", "--wide", str(xenstored)))
    versions = parse_versions(_output("readelf", "--dyn-syms", "--wide", str(xenstored)))
    script = "\n".join(_version_script(versions))
    made_from = f"{HYPERVISOR.read_text()}{needed}{script}"
    folder = cache_directory() / f"hypervisor-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hypervisor-", dir=folder.parent) as work:
        part = Path(work, "part")
        part.mkdir()
        Path(work, "versions").write_text(script)
        _output(
            *GCC,
            f"-Wl,--version-script={work}/versions",
            f"-o{part}/hypervisor.so",
            str(HYPERVISOR),
        )
        for name in needed:
            (part / name).symlink_to("hypervisor.so")
        try:
            part.rename(folder)
        except OSError:  # another run was quicker, with the same content
            if not folder.is_dir():
                raise
    return folder


def _version_script(versions: dict[str, list[str]]) -> Iterator[str]:
    for version, symbols in versions.items():
        yield f"{version} {{ global: {'; '.join(symbols)}; }};"
    yield "HYPERVISOR { local: *; };"


def _output(*argv: str) -> str:
    if shutil.which(argv[0]) is None:
        raise FileNotFoundError(f"{argv[0]} is not there; ./setup-debian installs it")
    ended = subprocess.run(
        argv, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} failed:\n{ended.stderr}")
    return ended.stdout
