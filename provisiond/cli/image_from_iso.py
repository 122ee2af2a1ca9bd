"""provisionctl image from-iso: an installation ISO becomes image, kernel and root."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from provisiond.api.requests import DiskFormat
from provisiond.cli.asking import explained, json_text
from provisiond.cli.image_build import Ingredients, Shown, steps_of, watch
from provisiond.cli.options import spread
from provisiond.display import new_console, say
from provisiond.errors import RecipeRefused
from provisiond.images import extraction
from provisiond.images.build_folder import BuildFolder, default_folder, opened
from provisiond.images.from_iso import find_key, load_result
from provisiond.images.phases import Phase, choose_phases
from provisiond.images.recipe import IsoRecipe, make_iso_recipe
from provisiond.images.results import Results, default_store


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What is wanted of it."""

    kernel_file: Annotated[
        Path | None, typer.Option("--kernel", metavar="FILE", help="The kernel goes here.")
    ] = None
    initrd_file: Annotated[
        Path | None, typer.Option("--initrd", metavar="FILE", help="Its initrd goes here.")
    ] = None
    rootfs: Annotated[
        Path | None,
        typer.Option(metavar="TARGET", help="The root goes here: as in image extract."),
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False

    def wanted(self) -> bool:
        """Whether anything is to be taken out of the image."""
        return any((self.kernel_file, self.initrd_file, self.rootfs))


@spread
def from_iso(
    ctx: typer.Context,
    installation: Annotated[
        str, typer.Argument(metavar="ISO", help="An installation ISO, or its URL.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the image is called.")],
    *,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The build's; left out: in /var/cache/provisiond/builds."),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Results of earlier builds; left out: in /var/cache/provisiond."
        ),
    ] = None,
    targets: Targets,
    ingredients: Ingredients,
    shown: Shown,
) -> None:
    """Install an ISO into an image; take kernel and root out of it.

    Where the same ISO was built before with the same recipe, the result is loaded instead. Not
    verified: provisionctl image verify does that.
    """
    with (
        explained(as_json=shown.as_json),
        opened((folder or default_folder(name)).absolute()) as build_folder,
    ):
        recipe = _recipe_of(installation, name, ingredients)
        build_folder.keep_recipe(recipe)
        console = new_console(stderr=True)

        def said(line: str) -> None:
            if not shown.as_json:
                say(console, line)

        results = Results(store or default_store())
        key = asyncio.run(find_key(recipe, build_folder, said))
        build_folder.keep_key(key)
        loaded = asyncio.run(load_result(build_folder, results, key, said))
        if not loaded:
            phases = choose_phases(build_folder.ended(), until=Phase.BAKE)
            watch(build_folder, phases, steps=steps_of(ctx, build_folder, recipe), shown=shown)
            asyncio.run(results.keep(key, build_folder.image))
        _take_out(build_folder, targets, said)
        _show_end(build_folder, name, loaded=loaded, shown=shown)


def _recipe_of(installation: str, name: str, ingredients: Ingredients) -> IsoRecipe:
    given = ingredients.fields()
    if "iso" in given:
        raise RecipeRefused("iso: is the command's first argument here")
    iso = installation if "://" in installation else Path(installation).resolve()
    return make_iso_recipe({**given, "name": name, "iso": iso})


def _take_out(folder: BuildFolder, targets: Targets, said: Callable[[str], None]) -> None:
    if targets.wanted():
        asyncio.run(
            extraction.extract(
                folder.image,
                disk_format=DiskFormat.QCOW2,
                kernel=targets.kernel_file,
                initrd=targets.initrd_file,
                rootfs=targets.rootfs,
                force=targets.force,
                said=said,
            )
        )


def _show_end(folder: BuildFolder, name: str, *, loaded: bool, shown: Shown) -> None:
    if shown.as_json:
        about = {"name": name, "image": str(folder.image), "loaded": loaded}
        typer.echo(json_text(about, indent=2))
        return
    say(new_console(), f"{name}: {folder.image}{' (built before)' if loaded else ''}")
