"""The phases of a build: their order, and which of them are to be done."""

from collections.abc import Collection
from enum import StrEnum

from provisiond.errors import WrongPhase


class Phase(StrEnum):
    """In the order in which they are done; each needs all before it."""

    INIT = "init"
    """The folder of the build, its recipe, the tools."""
    UPDATE = "update"
    """What the image is made of: lists of packages, a builder, an ISO, each with its checksum."""
    PRECHECK = "precheck"
    """Is there room, are there the rights and versions that the build needs?"""
    BUILD = "build"
    """The builder's image."""
    BAKE = "bake"
    """The guest's script in it."""
    VERIFY = "verify"
    """A guest on it, provisioned for real."""
    REGISTER = "register"
    """A golden base of provisiond."""


ORDER = tuple(Phase)


def choose_phases(
    ended: Collection[Phase],
    *,
    only: Phase | None = None,
    until: Phase | None = None,
    again: Phase | None = None,
) -> list[Phase]:
    """The phases to be done, in their order, where those in `ended` have been done.

    `only` one, also where it had ended; `until` and with one; `again` that one and all after it.
    Without any, what is left. Raises WrongPhase where one before them has not ended.
    """
    if only is not None:
        chosen = [only]
    else:
        first = again or next((one for one in ORDER if one not in ended), None)
        chosen = [] if first is None else _between(first, until or ORDER[-1])
    for needed in before(chosen[0]) if chosen else ():
        if needed not in ended:
            raise WrongPhase(
                f"{chosen[0]} needs {needed}, which has not ended",
                hint=f"Run --phase {needed} first. Without options all that is left is done.",
            )
    return chosen


def before(phase: Phase) -> tuple[Phase, ...]:
    """The phases before this one."""
    return ORDER[: ORDER.index(phase)]


def after(phase: Phase) -> tuple[Phase, ...]:
    """The phases after this one."""
    return ORDER[ORDER.index(phase) + 1 :]


def _between(first: Phase, last: Phase) -> list[Phase]:
    return list(ORDER[ORDER.index(first) : ORDER.index(last) + 1])
