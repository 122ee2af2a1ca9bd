"""What is done to every built image, whichever builder it was: baked, verified, registered."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from provisiond.api.client import ApiError, ProvisiondClient
from provisiond.api.image_manifest import manifest_path
from provisiond.api.replies import JobState, JobView
from provisiond.api.requests import DiskFormat, JobKind
from provisiond.errors import BaseNotFound, BuildFailed, DaemonUnreachable, ReplyLost
from provisiond.images.baking import bake
from provisiond.images.build_folder import BuildFolder, required_recipe
from provisiond.images.contents import describe
from provisiond.images.download import hash_of
from provisiond.images.steps import Result
from provisiond.images.verification import verify

Said = Callable[[str], None]


async def bake_image(folder: BuildFolder, said: Said) -> Result:
    """The guest's script is in the image; its hash is that of the image from now on."""
    baked = await bake(folder.image, disk_format=DiskFormat.QCOW2, said=said)
    digest = await asyncio.to_thread(hash_of, folder.image)
    return {
        "init": baked.init,
        "distribution": baked.distribution,
        "agent_version": baked.agent_version,
        "agent_sha256": baked.agent_sha256,
        "sha256": digest,
    }


async def verify_image(folder: BuildFolder, said: Said) -> Result:
    """A guest of the image was provisioned for real; its screen is in screen.png."""
    verified = await verify(
        folder.image, disk_format=DiskFormat.QCOW2, screenshot=folder.path / "screen.png", said=said
    )
    seen = verified.seen
    return {
        "accelerator": verified.accelerator,
        "sha256": verified.sha256,
        "hello_seconds": seen.hello,
        "done_seconds": seen.done,
        "login_seconds": seen.login,
    }


async def register_image(folder: BuildFolder, *, name: str, socket: Path, said: Said) -> Result:
    """The image is a golden base of the provisiond on `socket`; without one it is said how."""
    image = folder.image.resolve()
    recipe = required_recipe(folder)
    await describe(
        image,
        disk_format=DiskFormat.QCOW2,
        builder=recipe.builder,
        recipe=recipe.model_dump(mode="json", exclude_none=True),
        said=said,
    )
    try:
        await asyncio.to_thread(_register, image, name, socket, said)
    except ReplyLost:
        raise
    except DaemonUnreachable as error:
        said(f"{error.message}; where one runs, this makes a base of it:")
        said(f"provisionctl base import {name} {image} --source-format qcow2")
        return {"base": None}
    return {"base": name}


def _register(image: Path, name: str, socket: Path, said: Said) -> None:
    request = {
        "kind": JobKind.IMPORT_BASE,
        "name": name,
        "source": str(image),
        "source_format": DiskFormat.QCOW2,
        "manifest": str(manifest_path(image)),
    }
    with ProvisiondClient(socket) as client:
        job = _submit(client, request, name=name, sha256=hash_of(image))
        for event in client.job_events(job.id):
            said(f"{event.state} {event.detail}")
        job = client.job(job.id)
    if job.state is not JobState.SUCCEEDED:
        why = "it was undone" if job.failure is None else job.failure.message
        raise BuildFailed(f"{name}: the base was not imported: {why}")


def _submit(
    client: ProvisiondClient, request: Mapping[str, object], *, name: str, sha256: str
) -> JobView:
    """The job that imports the image: the one that is at it or has done it, else a new one."""
    told = hashlib.sha256(f"{sha256} {request['source']}".encode()).hexdigest()[:32]
    attempt = 0
    while True:
        attempt += 1  # counted from the first, so that after a kill the same job is found again
        job = client.submit({**request, "request_id": f"build.{name}.{told}.{attempt}"})
        if not job.state.ended or (job.state is JobState.SUCCEEDED and _has(client, name, sha256)):
            return job


def _has(client: ProvisiondClient, name: str, sha256: str) -> bool:
    """Whether the base is there, and made of the image with this hash."""
    try:
        made_of = client.base(name).made_of
    except ApiError as error:
        if error.reply.code != BaseNotFound.code:
            raise
        return False
    return made_of is not None and made_of.sha256 == sha256
