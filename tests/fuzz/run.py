"""A target is fuzzed: seeds are made, libFuzzer runs, what it kept is read by another reader."""

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.corpus import write_seeds
from tests.fuzz.targets import Target
from tests.lab.fixtures import TMPFS

SECONDS_AN_INPUT = 10
MEGABYTES = 1024
_TAIL = 3000


@dataclass(frozen=True, slots=True)
class Result:
    """How many inputs were tried, how many ways through the code they took, how many of those that
    were kept another reader took as well; and what was wrong."""

    name: str
    executions: int
    kept: int
    compared: int
    problem: str

    def __str__(self) -> str:
        compared = f", {self.compared} compared with qemu-img" if self.compared else ""
        said = self.problem or "nothing found"
        return f"{self.name}: {self.executions} inputs, {self.kept} kept{compared}: {said}"


def fuzz(name: str, folder: Path, *options: str, module: str = "tests.fuzz.targets") -> Result:
    """Fuzz a target of the module with libFuzzer's `options`, which say how long.

    Its corpus stays in `folder`.
    """
    target = importlib.import_module(module).TARGETS[name]
    corpus, found = folder / name / "corpus", folder / name / "found-"
    write_seeds(name, corpus)
    words = _write_words(target, corpus.parent)
    argv = (
        *(sys.executable, "-m", "tests.fuzz.one", f"{module}:{name}"),
        str(corpus),
        f"-artifact_prefix={found}",
        "-reduce_inputs=0",  # a seed that is shorter is seldom a better one
        *([f"-dict={words}"] if target.words else []),  # libFuzzer wants one at least
        f"-timeout={SECONDS_AN_INPUT}",
        f"-rss_limit_mb={MEGABYTES}",
        "-print_final_stats=1",
        *options,
    )
    with tempfile.TemporaryDirectory(dir=TMPFS) as scratch:
        finished = subprocess.run(
            argv,
            env=os.environ | {"TMPDIR": scratch},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    problem = "" if finished.returncode == 0 else _found(found, finished.stdout)
    kept = sorted(corpus.iterdir())
    compared = 0
    if not problem:
        compared, problem = _compare(target, kept)
    executed = re.search(r"number_of_executed_units: (\d+)", finished.stdout)
    return Result(name, int(executed[1]) if executed else 0, len(kept), compared, problem)


def _write_words(target: Target, folder: Path) -> Path:
    """libFuzzer's dictionary: one word a line, bytes as \\xAB."""
    path = folder / "words"
    lines = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in target.words)
    path.write_text("".join(f'"{line}"\n' for line in lines))
    return path


def _compare(target: Target, inputs: Sequence[Path]) -> tuple[int, str]:
    """How many of them another reader took as well, and where the two differ."""
    compared = 0
    if (compare := target.compare) is None:
        return 0, ""
    for path in inputs:
        try:
            compared += compare(path.read_bytes())
        except AssertionError as error:
            return compared, f"{path} is read otherwise by qemu-img: {error}"
    return compared, ""


def _found(prefix: Path, said: str) -> str:
    inputs = sorted(prefix.parent.glob(f"{prefix.name}*"))
    shown = "".join(f"\n{path}: {path.read_bytes()[:300]!r}" for path in inputs)
    return f"found{shown}\n{said[-_TAIL:]}"
