"""What a builder does in each phase of its own, and what is handed back."""

from typing import Protocol

Result = dict[str, str | int | float | None]
"""What a phase found or made, by name: it stands in the record of the build."""


class ImageBuilder(Protocol):
    """One recipe's builder in one folder. What it says goes to the phase's log."""

    async def init(self) -> Result:
        """The programs are there. Raises ToolMissing."""
        ...

    async def update(self) -> Result:
        """What the image will be made of is here or can be had, each with its checksum."""
        ...

    async def precheck(self) -> Result:
        """The host can build it. Raises NotReady, NoSpace."""
        ...

    async def build(self) -> Result:
        """The image is in its place in the folder. Raises BuildFailed."""
        ...
