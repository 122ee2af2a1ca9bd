"""A build: its phases in their order, each recorded as it ends, so that the next run goes on there.

What is done in a phase is a step: by the builder on this machine, by another machine (remote.py),
or here whichever builder it was (bake, verify, register).
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from provisiond.errors import ProvisionError
from provisiond.images.build_folder import BuildFolder
from provisiond.images.dib import Dib
from provisiond.images.finishing import bake_image, register_image, verify_image
from provisiond.images.iso import IsoInstallation
from provisiond.images.kiwi import Kiwi
from provisiond.images.mmdebstrap import Mmdebstrap
from provisiond.images.phases import Phase
from provisiond.images.recipe import DibRecipe, IsoRecipe, KiwiRecipe, MmdebstrapRecipe, Recipe
from provisiond.images.steps import ImageBuilder, Result
from provisiond.terminal import printable

Said = Callable[[str], None]
Step = Callable[[Said], Awaitable[Result]]


class Watcher(Protocol):
    """Whoever looks on: every method is called as it happens."""

    def began(self, phase: Phase) -> None:
        """The phase begins."""

    def said(self, phase: Phase, line: str) -> None:
        """A tool said this; nothing in it that a terminal could obey."""

    def ended(self, phase: Phase, *, seconds: float, result: Result) -> None:
        """The phase ended well."""

    def failed(self, phase: Phase, *, seconds: float) -> None:
        """The phase did not end well; the error follows."""


async def run_phases(
    folder: BuildFolder,
    phases: Sequence[Phase],
    *,
    steps: Mapping[Phase, Step],
    watcher: Watcher,
) -> None:
    """Do these phases, in this order. The first error ends it, and stands in its phase's log."""
    for phase in phases:
        folder.begin(phase)
        watcher.began(phase)
        started = time.monotonic()
        try:
            result = await _logged(folder, phase, steps[phase], watcher)
        except BaseException:
            watcher.failed(phase, seconds=time.monotonic() - started)
            raise
        seconds = time.monotonic() - started
        folder.end(phase, seconds=seconds, result=result)
        watcher.ended(phase, seconds=seconds, result=result)


async def _logged(folder: BuildFolder, phase: Phase, step: Step, watcher: Watcher) -> Result:
    with folder.log(phase).open("a", buffering=1) as log:

        def said(line: str) -> None:
            shown = printable(line.rstrip())
            log.write(f"{shown}\n")
            watcher.said(phase, shown)

        log.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')} {phase}\n")
        try:
            folder.clear_work()
            result = await step(said)
        except ProvisionError as error:
            log.write(f"--- {error.code}: {printable(error.message)}\n")
            raise
        folder.clear_work()
        log.write(f"--- {phase} ended\n")
        return result


def builder_of(recipe: Recipe, folder: BuildFolder, said: Said) -> ImageBuilder:
    """What builds this recipe on this machine."""
    match recipe:
        case MmdebstrapRecipe():
            return Mmdebstrap(recipe, folder, said)
        case DibRecipe():
            return Dib(recipe, folder, said)
        case KiwiRecipe():
            return Kiwi(recipe, folder, said)
        case IsoRecipe():
            return IsoInstallation(recipe, folder, said)


def builder_steps(recipe: Recipe, folder: BuildFolder) -> dict[Phase, Step]:
    """The steps that are the builder's own, on this machine."""
    return {
        Phase.INIT: lambda said: builder_of(recipe, folder, said).init(),
        Phase.UPDATE: lambda said: builder_of(recipe, folder, said).update(),
        Phase.PRECHECK: lambda said: builder_of(recipe, folder, said).precheck(),
        Phase.BUILD: lambda said: builder_of(recipe, folder, said).build(),
    }


def finishing_steps(folder: BuildFolder, *, name: str, socket: Path) -> dict[Phase, Step]:
    """The steps that are the same for every builder."""
    return {
        Phase.BAKE: lambda said: bake_image(folder, said),
        Phase.VERIFY: lambda said: verify_image(folder, said),
        Phase.REGISTER: lambda said: register_image(folder, name=name, socket=socket, said=said),
    }
