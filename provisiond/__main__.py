"""provisiond: argv → Settings → serve."""

import argparse
import asyncio
import gc
import sys
from pathlib import Path

from provisiond import __version__

_FAILED = 1
# EX_CONFIG of sysexits(3): starting it again changes nothing (RestartPreventExitStatus= in the
# unit). What a setting names, such as an address, may be there at a later start.
_NEEDS_SOMEBODY = 78


def main() -> None:
    """The command `provisiond`; ends with 1 and a reason on stderr where it cannot start.

    With 78 where no later start can go better before somebody has mended the state file.
    """
    # Nearly all that comes with the modules stays: to look through it for garbage, again and again
    # while more comes, would be a tenth of the start. `serve` has it done once, and from then on.
    gc.disable()
    from provisiond.daemon import serve, set_up_logging  # noqa: PLC0415 - after gc.disable()
    from provisiond.errors import ProvisionError, StateUnusable  # noqa: PLC0415 - as the first
    from provisiond.settings import DEFAULT_CONFIG, read_settings  # noqa: PLC0415 - as the first

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
        sys.stderr.write(f"provisiond: {error.code}: {error.message}\n{error.hint}\n")
        sys.exit(_NEEDS_SOMEBODY if isinstance(error, StateUnusable) else _FAILED)


if __name__ == "__main__":
    main()
