"""provisionctl image verify, describe: does an image work, and what is it made of?"""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from provisiond.api.requests import DiskFormat
from provisiond.cli.asking import CTRL_C, explained, json_text, show_json
from provisiond.cli.image_bake import ImageFile, ImageFormat, format_of
from provisiond.cli.options import Json, mebibytes_of
from provisiond.display import new_console, say
from provisiond.errors import ImageNotVerified
from provisiond.images import contents
from provisiond.images.model_domain import Accelerator, Boot
from provisiond.images.verification import Verified, Wanted
from provisiond.images.verification import verify as verify_image

_MEMORY_MIB = 1024
_WORDS = Boot(Path()).words


def verify(
    image: ImageFile,
    *,
    disk_format: ImageFormat = None,
    screenshot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Where a picture of the guest's screen goes."),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(parser=mebibytes_of, metavar="SIZE", help="The guest's; left out: 1G."),
    ] = None,
    within: Annotated[
        int,
        typer.Option(
            min=5, max=36000, metavar="SECONDS", help="How long it may take until its hello."
        ),
    ] = 300,
    login: Annotated[
        bool,
        typer.Option(help="Log in on the serial console and look at what was configured."),
    ] = True,
    login_within: Annotated[
        int,
        typer.Option(
            min=1, max=36000, metavar="SECONDS", help="How long it may then take until a log-in."
        ),
    ] = 120,
    accelerator: Annotated[
        Accelerator | None, typer.Option(help="Left out: KVM where it is proven to work.")
    ] = None,
    kernel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Boot this kernel, not the image's own.")
    ] = None,
    initrd: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --kernel: its initial root.")
    ] = None,
    append: Annotated[
        str, typer.Option(metavar="WORDS", help="With --kernel: its command line.")
    ] = _WORDS,
    as_json: Json = False,
) -> None:
    """Provision a throw-away guest of an image for real, and log in.

    The image is never written. It has to be root that asks: the guest and a provisiond for it run
    in namespaces of their own. Exit status 1: the guest did not become what it was to become.
    """
    if initrd is not None and kernel is None:
        raise typer.BadParameter("goes with --kernel", param_hint="--initrd")
    boot = None
    if kernel is not None:
        boot = Boot(kernel.resolve(), None if initrd is None else initrd.resolve(), append)
    wanted = Wanted(
        accelerator=accelerator,
        memory_mib=memory or _MEMORY_MIB,
        boot=boot,
        within=within,
        login_within=login_within if login else None,
    )
    chosen = format_of(image, disk_format)
    with explained(as_json=as_json):
        verified = _verified(image, chosen, screenshot, wanted, as_json=as_json)
    _show(verified, as_json=as_json)


def describe(image: ImageFile, *, disk_format: ImageFormat = None, as_json: Json = False) -> None:
    """Write down beside an image what it is made of.

    That goes with it through an import. Its system, the guest's script and the packages are
    read out of it; it is not booted.
    """
    console = new_console(stderr=True)
    with explained(as_json=as_json):
        made_of = asyncio.run(
            contents.describe(
                image,
                disk_format=format_of(image, disk_format),
                said=lambda line: None if as_json else say(console, line),
            )
        )
    if as_json:
        show_json(made_of)


def _verified(
    image: Path, disk_format: DiskFormat, screenshot: Path | None, wanted: Wanted, *, as_json: bool
) -> Verified:
    """What was seen. What the guest said last is told where it fails."""
    console = new_console()
    errors = new_console(stderr=True)

    def tell(text: str) -> None:
        if not as_json:
            say(console, text)

    try:
        return asyncio.run(
            verify_image(
                image, disk_format=disk_format, screenshot=screenshot, said=tell, wanted=wanted
            )
        )
    except KeyboardInterrupt:
        say(errors, "nothing of it is left")
        raise typer.Exit(CTRL_C) from None
    except ImageNotVerified as error:
        if error.console:
            say(errors, "the guest's last words:", "bold")
            for line in error.console:
                say(errors, f"  {line}")
        raise


def _show(verified: Verified, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json_text(verified.to_json(), indent=2))
        return
    seen = verified.seen
    times = {
        "hello": seen.hello,
        "config disk attached": seen.attached,
        "done": seen.done,
        "config disk gone": seen.succeeded,
        "log-in": seen.login,
    }
    told = ", ".join(f"{what} {at:.1f} s" for what, at in times.items() if at is not None)
    say(new_console(), f"{verified.image}: works; from the power-on: {told}", "green")
