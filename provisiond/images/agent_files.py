"""The guest's side as it is shipped: the script, its README and the start-up files.

They are read out of the folder that an auditor reads: the wheel has it as provisiond/guest-agent,
a source tree at its top.
"""

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from provisiond.errors import ToolFailed

_PACKAGE = Path(__file__).resolve().parents[1]
_VERSION = re.compile(r"^version=([0-9][\w.+~-]{0,99})$", re.MULTILINE | re.ASCII)


class InitSystem(StrEnum):
    """What starts programs at a guest's boot."""

    SYSTEMD = "systemd"
    UPSTART = "upstart"
    OPENRC = "openrc"
    SYSV = "sysv"
    RC_LOCAL = "rc.local"


_START_UP_FILES = {
    InitSystem.SYSTEMD: "provision-guest.service",
    InitSystem.UPSTART: "provision-guest.upstart",
    InitSystem.OPENRC: "provision-guest.openrc",
    InitSystem.SYSV: "provision-guest.sysv",
    InitSystem.RC_LOCAL: "rc.local.snippet",
}


@dataclass(frozen=True, slots=True)
class Agent:
    """The guest's script, its hash in hex, and what stands beside it in its folder."""

    folder: Path
    script: bytes
    readme: bytes
    version: str
    sha256: str

    def start_up(self, init: InitSystem) -> bytes:
        """The file by which that init system starts the script."""
        return _read(self.folder / "init" / _START_UP_FILES[init])


def agent_folder() -> Path:
    """Where the shipped folder is. Raises ToolFailed where the installation has none."""
    for folder in (_PACKAGE / "guest-agent", _PACKAGE.parent / "guest-agent"):
        if (folder / "provision-guest").is_file():
            return folder
    raise ToolFailed(
        f"there is no guest-agent folder beside {_PACKAGE}",
        hint="provisiond is installed without the guest's script: install it anew.",
    )


def read_agent() -> Agent:
    """The shipped script and its README. Raises ToolFailed."""
    folder = agent_folder()
    script = _read(folder / "provision-guest")
    version = parse_version(script)
    if version is None:
        raise ToolFailed(f"{folder}/provision-guest does not say its version")
    return Agent(
        folder=folder,
        script=script,
        readme=_read(folder / "README.md"),
        version=version,
        sha256=hashlib.sha256(script).hexdigest(),
    )


def parse_version(untrusted_script: bytes) -> str | None:
    """The version that a script says it has; None where it says none."""
    version = _VERSION.search(untrusted_script.decode(errors="replace"))
    return None if version is None else version[1]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ToolFailed(f"{path}: cannot be read: {error.strerror}") from error
