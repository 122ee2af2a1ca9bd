"""pytest fixtures: a real xenstored, empty and started."""

from collections.abc import Iterator

import pytest

from tests.xenstore.daemon import Xenstored


@pytest.fixture
def xenstored() -> Iterator[Xenstored]:
    """The test's own; it ends with the test, whatever the test has done to it."""
    with Xenstored() as store:
        yield store
