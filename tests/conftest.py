"""What every test may ask for."""

from pathlib import Path

import pytest

pytest_plugins = [
    "tests.lab.fixtures",
    "tests.daemon.fixtures",
    "tests.daemon.host",
    "tests.xenstore.fixtures",
]
SYSTEMS = Path(__file__).with_name("systems")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """tests/systems takes minutes and has a target of its own: it runs where it is named."""
    if collection_path != SYSTEMS:
        return None
    named = (config.invocation_params.dir / word.partition("::")[0] for word in config.args)
    return not any(SYSTEMS in (path, *path.parents) for path in named) or None
