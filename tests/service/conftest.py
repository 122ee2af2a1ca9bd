"""One container for all tests here; each has the unit as new."""

from collections.abc import Iterator

import pytest

from tests.lab.initramfs import GuestFiles
from tests.service.container import Container, booted
from tests.service.unit import Unit


@pytest.fixture(scope="session")
def container() -> Iterator[Container]:
    """A systemd that runs."""
    with booted() as container:
        yield container


@pytest.fixture(scope="session")
def installed(container: Container, guest_files: GuestFiles) -> Iterator[Unit]:
    """provisiond and a libvirtd as units of it."""
    unit = Unit(container, guest_files)
    unit.install()
    yield unit
    unit.keep_capabilities()
    unit.set_up({})  # an immutable base would stay behind with the container's files


@pytest.fixture
def unit(installed: Unit) -> Iterator[Unit]:
    """The unit, stopped, without any job."""
    installed.set_up({})
    yield installed
    print(f"--- journal\n{installed.said()[-8000:]}")
