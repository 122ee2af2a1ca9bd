"""A builder's program, started so that nothing of it is left when it ends or is killed.

It has mounts and processes of its own (namespaces): what it mounts is seen by nobody else, and is
gone with its last process. When this process ends, in whatever way, the kernel kills the program,
and with it all that it started. That takes root.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from provisiond.errors import BuildFailed, NotPermitted
from provisiond.images.build_folder import BuildFolder
from provisiond.process import run

_TAIL = 5  # lines of the program's that the error repeats
# What a builder may know of the operator's environment: how to get at mirrors.
_PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def run_confined(
    argv: Sequence[str | Path],
    *,
    folder: BuildFolder,
    said: Callable[[str], None],
    environment: Mapping[str, str | Path] | None = None,
) -> None:
    """Run a program in namespaces of its own, in the folder's `work`; `said` gets what it says.

    Its environment is `environment` and the usual alone. Raises NotPermitted where this is not
    root, and BuildFailed with its last words.
    """
    require_root(str(argv[0]))
    words = confined_argv(argv, folder=folder, environment=environment or {})
    await run_said(words, name=str(argv[0]), said=said)


async def run_said(argv: Sequence[str | Path], *, name: str, said: Callable[[str], None]) -> None:
    """Run a program to its end; `said` gets each line of its stdout and stderr.

    Raises BuildFailed with its last words, and `name` for what was run.
    """
    tail: list[str] = []

    def hear(line: str) -> None:
        if not line.strip():
            return
        tail.append(line.strip())
        del tail[:-_TAIL]
        said(line)

    finished = await run(argv, hear=hear, with_stderr=True, check=False)
    if finished.returncode != 0:
        last = "; ".join(tail) or "it said nothing"
        raise BuildFailed(f"{name} ended with status {finished.returncode}: {last}")


def require_root(what: str) -> None:
    """Raises NotPermitted for everybody else."""
    if os.geteuid() != 0:
        raise NotPermitted(
            f"{what} needs root: it makes mounts and files of other owners",
            hint="Ask again as root, or build on another machine with --on.",
        )


def confined_argv(
    argv: Sequence[str | Path],
    *,
    folder: BuildFolder,
    environment: Mapping[str, str | Path],
) -> list[str | Path]:
    """The command line that starts `argv` in namespaces, bound to the life of this process."""
    usual = {
        "HOME": folder.work,
        "LC_ALL": "C.UTF-8",
        "PATH": USUAL_PATH,
        "TMPDIR": folder.work,
        # Its only purpose is that the lock is handed on with it.
        "PROVISIOND_BUILD_LOCK": folder.lock_word,
    }
    # A proxy's URL may hold a password: it is inherited, as everybody reads command lines.
    kept_back = [name for name in os.environ if name not in _PASSED_ON]
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        "unshare",
        "--mount",
        *("--propagation", "private"),
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "env",
        *(f"--unset={name}" for name in kept_back),
        f"--chdir={folder.work}",
        *(f"{name}={value}" for name, value in {**usual, **environment}.items()),
        *argv,
    ]
