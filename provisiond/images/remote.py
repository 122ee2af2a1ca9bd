"""A build on another machine, over ssh: its phases run there, the image comes back and is compared.

The provisionctl of the other machine does the work where it is of this version; else this one is
sent, as a wheel, into a virtual environment of the user's cache there. What a phase says there
stands in its log here. When this process ends, the terminal that ssh has given to the phase hangs
up, and with it ends the build there.
"""

import asyncio
import hashlib
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from provisiond import __version__
from provisiond.errors import BuildFailed, RecipeRefused
from provisiond.images.agent_files import read_agent
from provisiond.images.build_folder import BuildFolder, parse_phases
from provisiond.images.confined import run_said
from provisiond.images.download import hash_of
from provisiond.images.own_wheel import NAME, make_wheel
from provisiond.images.phases import Phase
from provisiond.images.recipe import Recipe
from provisiond.images.steps import Result
from provisiond.process import run

Said = Callable[[str], None]

PHASES = (Phase.INIT, Phase.UPDATE, Phase.PRECHECK, Phase.BUILD, Phase.BAKE)
"""What is done on the other machine; the rest is done here."""

_TARGET = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_:\[\]][A-Za-z0-9_.:%\[\]-]*")
_PATH = '"$PATH:/usr/local/bin:$HOME/.local/bin"'
_FIND = (
    f'PATH={_PATH}; program=$(command -v provisionctl) && "$program" --version && echo "$program"'
)
_SENT = ".cache/provisiond/sent"
INSTALL = (
    'cd "$1" && { test -e whole || { python3 -m venv --clear --system-site-packages venv'
    f" && venv/bin/pip install {NAME} && touch whole; }}; }}"
)


class OtherMachine:
    """`target` is user@host as ssh takes it; `options` are as in ssh_config(5)."""

    def __init__(self, target: str, *, options: Sequence[str] = ()) -> None:
        if not _TARGET.fullmatch(target):
            raise RecipeRefused(f"on: {target!r} is no USER@HOST")
        self.target = target
        words = [word for option in ("BatchMode=yes", *options) for word in ("-o", option)]
        self._options = words
        self._program: str | None = None

    # ------------------------------------------------------------ a build
    async def step(self, phase: Phase, folder: BuildFolder, recipe: Recipe, said: Said) -> Result:
        """Do a phase there; after `bake` the image is here as well, with the same hash."""
        program = await self._find_program(said)
        there = f".cache/provisiond/builds/{recipe.name}"
        if phase is Phase.INIT:
            await self._write(f"{there}.json", recipe.model_dump_json().encode())
        await run_said(
            self.phase_argv(phase, program=program, name=recipe.name, there=there),
            name=f"{phase} on {self.target}",
            said=lambda line: said(line.removeprefix(f"{phase}: | ")),
        )
        told = await self._say("cat", f"{there}/phases.json")
        ended = parse_phases(told)
        if phase not in ended:
            raise BuildFailed(f"{self.target}: {phase} has ended there, and is not in its record")
        result = dict(ended[phase].result)
        if phase is Phase.BAKE:
            require_own_agent(result, where=self.target)
            result["sha256"] = await self._fetch(f"{there}/image.qcow2", folder, said)
        return {**result, "on": self.target}

    async def _fetch(self, path: str, folder: BuildFolder, said: Said) -> str:
        part = folder.work / "image.qcow2"
        said(f"copying the image from {self.target}")
        await run_said(self.copy_argv(path, part), name="scp", said=said)
        there = (await self._say("sha256sum", path)).decode(errors="replace")[:64]
        here = await asyncio.to_thread(hash_of, part)
        if there != here:
            raise BuildFailed(f"{self.target}: the image has the SHA-256 {there}, its copy {here}")
        folder.place_image(part)
        return here

    # ------------------------------------------------------------ the program there
    async def _find_program(self, said: Said) -> str:
        if self._program is None:
            finished = await run(self.argv(["sh", "-c", _FIND]), check=False)
            if finished.returncode == _SSH_FAILED:
                words = finished.stderr.decode(errors="replace").strip()
                raise BuildFailed(
                    f"{self.target}: cannot be reached: {words}",
                    hint="ssh has to get there without asking: a key, a known host.",
                )
            version, _, path = finished.stdout.decode(errors="replace").strip().partition("\n")
            fits = finished.returncode == 0 and version == f"provisionctl {__version__}"
            self._program = path if fits else await self._send_program(said)
        return self._program

    async def _send_program(self, said: Said) -> str:
        """Install this provisiond there, once for each content; the path of its provisionctl."""
        wheel = await asyncio.to_thread(make_wheel)
        place = f"{_SENT}/{hashlib.sha256(wheel).hexdigest()[:16]}"
        said(f"{self.target} has no provisionctl {__version__}: sending this one to {place}")
        await self._write(f"{place}/{NAME}", wheel)
        await run_said(self.argv(["sh", "-c", INSTALL, "sh", place]), name="pip", said=said)
        return f"{place}/venv/bin/provisionctl"

    # ------------------------------------------------------------ ssh
    async def _write(self, path: str, content: bytes) -> None:
        command = 'mkdir -p "$(dirname "$1")" && cat >"$1.part" && mv "$1.part" "$1"'
        await run(self.argv(["sh", "-c", command, "sh", path]), stdin=content)

    async def _say(self, *command: str) -> bytes:
        return (await run(self.argv(command))).stdout

    def argv(self, command: Sequence[str], *, terminal: bool = False) -> list[str | Path]:
        """ssh's command line; what is run there gets these words as they are."""
        return [
            "ssh",
            *(["-tt"] if terminal else []),
            *self._options,
            "--",
            self.target,
            shlex.join(command),
        ]

    def phase_argv(self, phase: Phase, *, program: str, name: str, there: str) -> list[str | Path]:
        """The command line that does one phase there."""
        command = [
            *(program, "image", "build", name),
            *("--recipe", f"{there}.json"),
            *("--folder", there),
            *("--phase", phase),
            "--plain",
        ]
        return self.argv(command, terminal=True)

    def copy_argv(self, path: str, part: Path) -> list[str | Path]:
        """scp's command line."""
        user, at, host = self.target.rpartition("@")
        bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return ["scp", "-q", *self._options, "--", f"{user}{at}{bracketed}:{path}", part]


_SSH_FAILED = 255  # ssh's own exit status


def require_own_agent(result: Result, *, where: str) -> None:
    """Raises BuildFailed where another script was baked in than the one that is here."""
    ours = read_agent().sha256
    if result.get("agent_sha256") != ours:
        raise BuildFailed(
            f"{where}: baked the script with the SHA-256 {result.get('agent_sha256')}, not {ours}",
            hint="Install the same provisiond there, or none: then this one is sent.",
        )
