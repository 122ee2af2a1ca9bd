"""provisionctl image: golden images built, baked, verified and taken apart, which needs no daemon;
imported as bases and looked at, which does."""

import typer

from provisiond.cli import bases, image_bake, image_build, image_from_iso, image_verify

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Golden images: built, baked, verified."
)
app.command()(image_build.build)
app.command("from-iso")(image_from_iso.from_iso)
app.command()(image_bake.bake)
app.command()(image_bake.extract)
app.command("verify")(image_verify.verify)
app.command()(image_verify.describe)
# What they become: the same commands as those of `base`.
app.command("import")(bases.import_base)
app.command("list")(bases.list_bases)
app.command("show")(bases.show)
app.command("remove")(bases.remove)
