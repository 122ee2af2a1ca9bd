"""What every test may ask for."""

from pathlib import Path

import pytest

pytest_plugins = [
    "tests.lab.fixtures",
    "tests.daemon.fixtures",
    "tests.daemon.host",
    "tests.xenstore.fixtures",
]
# These take minutes and have targets of their own: they run where they are named.
SLOW = [Path(__file__).with_name(name) for name in ("builders", "systems")]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What is slow is collected where it is named."""
    if collection_path not in SLOW:
        return None
    named = (config.invocation_params.dir / word.partition("::")[0] for word in config.args)
    return not any(collection_path in (path, *path.parents) for path in named) or None
