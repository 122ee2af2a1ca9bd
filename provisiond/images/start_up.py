"""How each init system is told to start the script at boot: the files and links that it takes.

Nothing is written here. `plan_start_up` looks at the image and says what is to be there; the same
answer is what is compared when the image is read back.
"""

import re
from dataclasses import dataclass

from provisiond.errors import ImageRefused
from provisiond.images.agent_files import Agent, InitSystem
from provisiond.images.file_tree import FileTree, find, is_folder, read_content
from provisiond.images.root_system import RC_LOCAL

NAME = "provision-guest"
_START_LEVELS, _STOP_LEVELS = "2345", "016"


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that is to be there; the folders above it as well."""

    path: str
    content: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class NewLink:
    """A symbolic link that is to be there."""

    path: str
    target: str


Wanted = NewFile | NewLink


async def plan_start_up(tree: FileTree, agent: Agent, init: InitSystem) -> list[Wanted]:
    """What is to be in the image so that `init` starts the script. Raises ImageRefused."""
    content = agent.start_up(init)
    match init:
        case InitSystem.SYSTEMD:
            return _systemd(content)
        case InitSystem.UPSTART:
            return [NewFile(f"/etc/init/{NAME}.conf", content, 0o644)]
        case InitSystem.OPENRC:
            return _openrc(content)
        case InitSystem.SYSV:
            return await _sysv(tree, content)
        case InitSystem.RC_LOCAL:
            return [await _rc_local(tree, content)]


def _systemd(content: bytes) -> list[Wanted]:
    """As `systemctl enable` does it."""
    unit = f"/etc/systemd/system/{NAME}.service"
    targets = re.findall(r"^WantedBy=(\S+)$", content.decode(), re.MULTILINE)
    links = [
        NewLink(f"/etc/systemd/system/{target}.wants/{NAME}.service", unit) for target in targets
    ]
    return [NewFile(unit, content, 0o644), *links]


def _openrc(content: bytes) -> list[Wanted]:
    """As `rc-update add provision-guest default` does it."""
    script = f"/etc/init.d/{NAME}"
    return [
        NewFile(script, content, 0o755),
        NewLink(f"/etc/runlevels/default/{NAME}", script),
    ]


# ---------------------------------------------------------------- SysV
async def _sysv(tree: FileTree, content: bytes) -> list[Wanted]:
    """As insserv does it where its lists are in the image, else as chkconfig does."""
    wanted: list[Wanted] = [NewFile(f"/etc/init.d/{NAME}", content, 0o755)]
    start, stop = _priorities(content.decode())
    lists = {}
    for when in ("start", "stop"):
        path = f"/etc/init.d/.depend.{when}"
        if (makefile := await read_content(tree, path, limit=2**20)) is not None:
            lists[path] = makefile
    if lists:
        start = stop = "01"
        wanted += [NewFile(path, with_target(one), 0o644) for path, one in lists.items()]
    for levels, link in ((_START_LEVELS, f"S{start}{NAME}"), (_STOP_LEVELS, f"K{stop}{NAME}")):
        for level in levels:
            folder = await _runlevel(tree, level)
            beside = folder.startswith("/etc/init.d/")  # SUSE's
            script = f"../{NAME}" if beside else f"../init.d/{NAME}"
            wanted.append(NewLink(f"{folder}/{link}", script))
    return wanted


def _priorities(script: str) -> tuple[str, str]:
    """What its line for chkconfig says: where in their order it starts and stops."""
    found = re.search(r"^# chkconfig: \d+ (\d\d) (\d\d)$", script, re.MULTILINE)
    return (found[1], found[2]) if found else ("20", "80")


async def _runlevel(tree: FileTree, level: str) -> str:
    for folder in (f"/etc/rc{level}.d", f"/etc/rc.d/rc{level}.d", f"/etc/init.d/rc{level}.d"):
        found = await find(tree, folder)
        if found is not None and await is_folder(tree, found):
            return folder
    raise ImageRefused(f"the image has no folder for runlevel {level}, such as /etc/rc{level}.d")


def with_target(makefile: bytes) -> bytes:
    """insserv's list with our script among its targets; startpar starts no other than those."""

    ours = NAME.encode()

    def add(line: re.Match[bytes]) -> bytes:
        names = line[2].split()
        return line[1] + b" ".join(names if ours in names else [ours, *names])

    changed, count = re.subn(rb"^(TARGETS = ?)(.*)$", add, makefile, count=1, flags=re.MULTILINE)
    if not count:
        raise ImageRefused("/etc/init.d/.depend.start or .stop in the image has no line TARGETS")
    return changed


# ---------------------------------------------------------------- rc.local
async def _rc_local(tree: FileTree, content: bytes) -> NewFile:
    for path in RC_LOCAL:
        file = await find(tree, path)
        if file is not None and (entry := await tree.look(file)) is not None:
            script = await read_content(tree, path) or b""
            return NewFile(str(file), with_lines(script, content), entry.mode | 0o111)
    return NewFile(RC_LOCAL[0], with_lines(b"", content), 0o755)


def with_lines(script: bytes, lines: bytes) -> bytes:
    """rc.local with our lines above its last `exit`, or at its end; no second time.

    Every other byte stays: a shell's line ends at a line feed alone, in whatever encoding.
    """
    ours = lines.removesuffix(b"\n").split(b"\n")
    kept = [line for line in script.removesuffix(b"\n").split(b"\n") if line not in ours]
    if kept in ([], [b""]):
        kept = [b"#!/bin/sh", b"exit 0"]
    at = len(kept)
    for number in range(len(kept) - 1, -1, -1):
        if re.fullmatch(rb"exit([ \t]+\d+)?", kept[number]):
            at = number
            break
    return b"\n".join([*kept[:at], *ours, *kept[at:]]) + b"\n"
