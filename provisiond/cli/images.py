"""provisionctl image: golden images built, baked, verified and taken apart; no daemon is needed."""

import typer

from provisiond.cli import image_bake, image_build, image_verify

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Golden images: built, baked, verified."
)
app.command()(image_build.build)
app.command()(image_bake.bake)
app.command("verify")(image_verify.verify)
app.command()(image_bake.extract)
