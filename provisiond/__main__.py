"""provisiond: argv → Settings → serve."""

import argparse
import asyncio
import sys
from pathlib import Path

from provisiond import __version__
from provisiond.daemon import serve, set_up_logging
from provisiond.errors import ProvisionError
from provisiond.settings import DEFAULT_CONFIG, read_settings


def main() -> None:
    """The command `provisiond`; ends with 1 and a reason on stderr where it cannot start."""
    parser = argparse.ArgumentParser(
        prog="provisiond", description="The daemon that turns a golden image into a guest."
    )
    parser.add_argument("--version", action="version", version=f"provisiond {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve_command = commands.add_parser("serve", help="run the daemon in the foreground")
    serve_command.add_argument(
        "--config", type=Path, metavar="FILE", help=f"settings (default: {DEFAULT_CONFIG})"
    )
    arguments = parser.parse_args()
    try:
        settings = read_settings(arguments.config)
        set_up_logging(settings.log_level)
        asyncio.run(serve(settings))
    except ProvisionError as error:
        sys.exit(f"provisiond: {error.code}: {error.message}\n{error.hint}")


if __name__ == "__main__":
    main()
