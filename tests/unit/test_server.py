"""The API's server as it is put together, before anybody asks."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from provisiond.api.server import create_app
from provisiond.daemon import _put_together, _traffic
from provisiond.inventory import Inventory
from provisiond.metrics import Metrics
from provisiond.settings import Settings
from provisiond.supervisor import Supervisor
from provisiond.virt.libvirt import Hypervisor


def functions_of(dependant: Dependant) -> Iterator[Callable[..., Any]]:
    """What answers a request, and all that it depends on."""
    if dependant.call is not None:
        yield dependant.call
    for one in dependant.dependencies:
        yield from functions_of(one)


async def test_nothing_that_answers_a_request_is_run_in_a_thread(tmp_path: Path) -> None:
    """FastAPI does that with plain functions, one more thread and two hand-overs a request."""
    folders = {name: tmp_path / name for name in ("state_dir", "image_dir", "runtime_dir")}
    settings = Settings().model_copy(update=folders)
    hypervisor, metrics = Hypervisor("test:///default", threads=1), Metrics()
    tools = _put_together(settings, hypervisor, None, metrics)
    app = create_app(
        supervisor=Supervisor(tools, deadline_seconds=1.0, max_unfinished=1),
        store=tools.store,
        inventory=Inventory(tools, None),
        hypervisor=hypervisor,
        xenstore=None,
        metrics=metrics,
        traffic=_traffic(settings),
    )
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    asked = {function for route in routes for function in functions_of(route.dependant)}
    assert len(asked) > len(routes), "endpoints, and what they depend on"
    assert not [
        function.__qualname__
        for function in asked
        if not inspect.iscoroutinefunction(function) and not inspect.isasyncgenfunction(function)
    ]
