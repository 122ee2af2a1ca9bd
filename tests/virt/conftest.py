"""A hypervisor over a real libvirtd, and a folder that its guests come to."""

from collections.abc import AsyncIterator
from pathlib import Path

import libvirt
import pytest

from provisiond.virt.libvirt import Hypervisor
from tests.lab.libvirtd import Libvirtd


@pytest.fixture
async def hypervisor(libvirtd: Libvirtd) -> AsyncIterator[Hypervisor]:
    """What is tested."""
    hypervisor = Hypervisor(libvirtd.uri, threads=4)
    yield hypervisor
    await hypervisor.close()
    # Killed from outside, a domain of the same UUID may be there yet when the next test begins.
    connection = libvirt.open(libvirtd.uri)
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        domain.destroy()
    connection.close()


@pytest.fixture
def images(libvirtd: Libvirtd, request: pytest.FixtureRequest) -> Path:
    """A folder of this test's own."""
    folder: Path = libvirtd.folder / request.node.name[:60]
    folder.mkdir()
    return folder
