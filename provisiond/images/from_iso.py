"""From an installation ISO to its image: built, or loaded where the same was built before."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from provisiond.images.build_folder import BuildFolder
from provisiond.images.iso import answers_of, fetch_iso
from provisiond.images.phases import Phase, before
from provisiond.images.recipe import IsoRecipe
from provisiond.images.results import Results, key_of
from provisiond.iso.installation import read_installation

_UNTIL = (*before(Phase.BAKE), Phase.BAKE)


async def find_key(recipe: IsoRecipe, folder: BuildFolder, said: Callable[[str], None]) -> str:
    """The key of what the recipe's ISO becomes; the ISO is fetched where it is not here.

    Raises DownloadFailed, ImageRefused, NotReady.
    """
    iso, digest = await fetch_iso(recipe, folder, said)
    found = await asyncio.to_thread(read_installation, iso)
    said(f"{found.title}: SHA-256 {digest}")
    return key_of(recipe, iso_sha256=digest, answers=answers_of(recipe, found))


async def load_result(
    folder: BuildFolder, results: Results, key: str, said: Callable[[str], None]
) -> bool:
    """Make the result with this key the folder's image, baked as it was; False where none is."""
    folder.clear_work()
    part: Path = folder.work / "image.qcow2"
    sha256 = await results.load(key, part)
    if sha256 is None:
        return False
    folder.begin(Phase.INIT)
    folder.place_image(part)
    for phase in _UNTIL:
        found = {"sha256": sha256} if phase is Phase.BAKE else {}
        folder.end(phase, seconds=0.0, result={"loaded": key, **found})
    said(f"built before: loaded, SHA-256 {sha256}")
    return True
