"""A client of the test's own xenstored, and a domain in it."""

import uuid
from collections.abc import AsyncIterator

import pytest

from provisiond.xenstore.client import Xenstore
from tests.xenstore.connect import connected
from tests.xenstore.daemon import XenDomain, Xenstored


@pytest.fixture
async def xenstore(xenstored: Xenstored) -> AsyncIterator[Xenstore]:
    async with connected(xenstored.socket) as client:
        yield client


@pytest.fixture
def domain(xenstored: Xenstored) -> XenDomain:
    return xenstored.introduce(5, uuid=str(uuid.uuid4()))
