"""provisionctl image build: an image is built, phase by phase."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from provisiond.build_view import LiveBuild, PlainBuild, SilentBuild
from provisiond.cli.asking import CTRL_C, explained, json_text
from provisiond.cli.options import Json, mebibytes_of, size_of, spread
from provisiond.display import new_console, say
from provisiond.errors import RecipeRefused
from provisiond.images.agent_files import InitSystem
from provisiond.images.build import Step, builder_steps, finishing_steps, run_phases
from provisiond.images.build_folder import BuildFolder, default_folder, opened, required_recipe
from provisiond.images.iso import forget_iso
from provisiond.images.phases import Phase, choose_phases
from provisiond.images.recipe import Builder, NetworkStack, Recipe, make_recipe, parse_recipe
from provisiond.images.remote import PHASES, OtherMachine
from provisiond.settings import DEFAULT_SOCKET


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What goes into a recipe; which of it a builder takes, its recipe says."""

    size: Annotated[
        int | None,
        typer.Option(parser=size_of, metavar="SIZE", help="The disk's; left out: 4G."),
    ] = None
    suite: Annotated[
        str | None, typer.Option(metavar="NAME", help="mmdebstrap, dib: the release of Debian.")
    ] = None
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="mmdebstrap, dib: where from; left out: the host's apt sources; dib: Debian's.",
        ),
    ] = None
    security_mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="dib: where security updates come from.")
    ] = None
    packages: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="What else is to be installed.")
    ] = None
    kernel: Annotated[
        str | None,
        typer.Option(
            "--kernel-package", metavar="PACKAGE", help="left out: linux-image-cloud-amd64."
        ),
    ] = None
    init: Annotated[
        InitSystem | None, typer.Option(help="mmdebstrap: what starts the services.")
    ] = None
    network_stack: Annotated[
        NetworkStack | None, typer.Option(help="mmdebstrap, dib: what owns the network.")
    ] = None
    elements: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="dib: elements; left out: debian-minimal.")
    ] = None
    description: Annotated[
        Path | None, typer.Option(metavar="DIR", help="kiwi: a description of your own.")
    ] = None
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="kiwi: the description's profile.")
    ] = None
    iso: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="iso: the installation ISO.")
    ] = None
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="iso: what the ISO must have.")
    ] = None
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="iso: a preseed or kickstart of your own.")
    ] = None
    tree: Annotated[
        str | None,
        typer.Option(metavar="URL", help="iso: where a network installer gets packages."),
    ] = None
    network: Annotated[
        str | None, typer.Option(metavar="NAME", help="iso: a network of libvirt's.")
    ] = None
    libvirt_uri: Annotated[
        str | None, typer.Option(metavar="URI", help="iso: left out: qemu:///system.")
    ] = None
    memory_mib: Annotated[
        int | None,
        typer.Option(
            "--memory", parser=mebibytes_of, metavar="SIZE", help="iso: of the guest that installs."
        ),
    ] = None
    vcpus: Annotated[
        int | None, typer.Option(metavar="COUNT", help="iso: of the guest that installs.")
    ] = None
    minutes: Annotated[
        int | None, typer.Option(metavar="COUNT", help="iso: how long it may take; left out: 120.")
    ] = None

    def fields(self) -> dict[str, object]:
        """What was given, by the names of a recipe's fields."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        for name in ("packages", "elements"):
            if name in given:
                given[name] = tuple(filter(None, given[name].split(",")))
        for name in ("description", "answers"):
            if name in given:
                given[name] = given[name].resolve()
        if "iso" in given and "://" not in given["iso"]:
            given["iso"] = Path(given["iso"]).resolve()
        return given


@dataclass(frozen=True, kw_only=True)
class Course:
    """Which phases are done, and where."""

    phase: Annotated[
        Phase | None, typer.Option(help="Do this phase alone, also where it had ended.")
    ] = None
    until: Annotated[Phase | None, typer.Option(help="The last phase that is done.")] = None
    again: Annotated[Phase | None, typer.Option(help="Do this phase and those after it again.")] = (
        None
    )
    on: Annotated[
        str | None,
        typer.Option(metavar="USER@HOST", help="Build there over ssh; verify and register here."),
    ] = None
    ssh_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="As ssh's -o; may be repeated.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How it is told."""

    plain: Annotated[
        bool, typer.Option("--plain", help="One line a fact, as in a pipe, on a terminal as well.")
    ] = False
    as_json: Json = False


@spread
def build(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the image is called.")],
    *,
    builder: Annotated[
        Builder | None, typer.Option("--from", help="Who builds; left out: as before.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The recipe as JSON, as in another build's folder."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The build's; left out: in /var/cache/provisiond/builds."),
    ] = None,
    ingredients: Ingredients,
    course: Course,
    shown: Shown,
) -> None:
    """Build a golden image, phase by phase.

    Done is what is left of init, update, precheck, build, bake, verify and register. Each phase
    that ends is recorded: the next run goes on after it. The folder has the image, the recipe
    and a log a phase. A build that is killed leaves no mounts.
    """
    with (
        explained(as_json=shown.as_json),
        opened((folder or default_folder(name)).absolute()) as build_folder,
    ):
        asked = _recipe_asked_for(name, builder, recipe, ingredients)
        if asked is not None:
            build_folder.keep_recipe(asked)
        known = required_recipe(build_folder)
        phases = choose_phases(
            build_folder.ended(), only=course.phase, until=course.until, again=course.again
        )
        if any(phase in phases for phase in PHASES):
            build_folder.forget_key()
        if Phase.UPDATE in phases and Phase.UPDATE in build_folder.ended():
            forget_iso(build_folder)  # it was asked for again
        steps = steps_of(ctx, build_folder, known)
        if course.on is not None:
            steps |= _steps_there(course, build_folder, known)
        watch(build_folder, phases, steps=steps, shown=shown)
        _show_end(build_folder, name, shown)


def _recipe_asked_for(
    name: str, builder: Builder | None, file: Path | None, ingredients: Ingredients
) -> Recipe | None:
    """The recipe that the options are; None where they are none: then it is the folder's."""
    given = ingredients.fields()
    if file is not None:
        if builder is not None or given:
            raise RecipeRefused("recipe: a file says all of it; leave out --from and the rest")
        try:
            found = parse_recipe(file.read_bytes())
        except OSError as error:
            raise RecipeRefused(f"{file}: {error.strerror}") from error
        if found.name != name:
            raise RecipeRefused(f"{file}: is the recipe of {found.name}, not of {name}")
        return found
    if builder is None:
        if given:
            raise RecipeRefused(f"{', '.join(given)}: goes with --from BUILDER")
        return None
    return make_recipe({"builder": builder, "name": name, **given})


def steps_of(ctx: typer.Context, folder: BuildFolder, recipe: Recipe) -> dict[Phase, Step]:
    """Every phase, done on this machine."""
    finishing = finishing_steps(folder, name=recipe.name, socket=ctx.obj or DEFAULT_SOCKET)
    return builder_steps(recipe, folder) | finishing


def _steps_there(course: Course, folder: BuildFolder, recipe: Recipe) -> dict[Phase, Step]:
    """The phases that another machine does."""
    machine = OtherMachine(course.on or "", options=course.ssh_option or ())

    def step(phase: Phase) -> Step:
        return lambda said: machine.step(phase, folder, recipe, said)

    return {phase: step(phase) for phase in PHASES}


def watch(
    folder: BuildFolder, phases: Sequence[Phase], *, steps: Mapping[Phase, Step], shown: Shown
) -> None:
    """Do the phases while somebody looks on."""
    console = new_console()
    watcher: LiveBuild | PlainBuild | SilentBuild = PlainBuild(console)
    if shown.as_json:
        watcher = SilentBuild()
    elif console.is_terminal and not shown.plain:
        watcher = LiveBuild(console)
    try:
        with watcher.shown():
            asyncio.run(run_phases(folder, phases, steps=steps, watcher=watcher))
    except KeyboardInterrupt:
        say(
            new_console(stderr=True),
            "the phase was ended; the next run begins with it again",
        )
        raise typer.Exit(CTRL_C) from None


def _show_end(folder: BuildFolder, name: str, shown: Shown) -> None:
    ended = folder.ended()
    if shown.as_json:
        phases = {phase: record.model_dump(mode="json") for phase, record in ended.items()}
        about = {
            "name": name,
            "folder": str(folder.path),
            "image": str(folder.image) if Phase.BUILD in ended else None,
            "phases": phases,
        }
        typer.echo(json_text(about, indent=2))
        return
    left = [phase for phase in Phase if phase not in ended]
    where = folder.image if Phase.BUILD in ended else folder.path
    more = f"; left: {', '.join(left)}" if left else ""
    say(new_console(), f"{name}: {where}{more}")
