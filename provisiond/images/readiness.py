"""What every builder looks at before it starts: tools, rights, room."""

import re
from collections.abc import Iterable
from pathlib import Path

from provisiond.disk.folder import require_room
from provisiond.errors import ToolMissing
from provisiond.process import require_tool, run

# What every builder here needs beside its own: program → Debian's package.
COMMON_TOOLS = {
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}


def require_tools(tools: dict[str, str]) -> None:
    """Raises ToolMissing that names all that are absent, and the packages to install."""
    absent = {}
    for name, package in tools.items():
        try:
            require_tool(name, package=package)
        except ToolMissing:
            absent[name] = package
    if absent:
        verb = "is" if len(absent) == 1 else "are"
        packages = " ".join(dict.fromkeys(absent.values()))
        raise ToolMissing(
            f"{', '.join(absent)} {verb} not installed", hint=f"On Debian: apt install {packages}."
        )


async def version_of(argv: Iterable[str | Path]) -> str:
    """The first number with a dot in it that the program says; '' where it says none."""
    finished = await run([*argv], check=False)
    said = (finished.stdout + finished.stderr).decode(errors="replace")
    found = re.search(r"\d+(?:\.\d+)+", said)
    return found[0] if found else ""


def require_space(folder: Path, wanted: int) -> None:
    """Raises NoSpace where fewer than `wanted` bytes are free in the folder."""
    require_room(folder, wanted, reserve=0)


def is_at_least(version: str, least: str) -> bool:
    """Whether a version of numbers and dots is `least` or later."""
    return _numbers(version) >= _numbers(least)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".") if number.isdigit()]
