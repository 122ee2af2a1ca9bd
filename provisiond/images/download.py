"""A file from the network, whole or not at all, with its SHA-256."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx

from provisiond.disk.folder import explained, sync
from provisiond.errors import DownloadFailed
from provisiond.sizes import show_size

_SILENCE_SECONDS = 60.0
_TOLD_EVERY = 64 * 2**20  # bytes between two words about how far it is


async def download(url: str, path: Path, *, said: Callable[[str], None]) -> str:
    """Fetch `url` to `path`, over whatever is there; the SHA-256 of it in hex.

    Raises DownloadFailed, NoSpace.
    """
    part = path.with_name(f".{path.name}.part")
    digest = hashlib.sha256()
    done = told = 0
    try:
        async with (
            httpx.AsyncClient(follow_redirects=True, timeout=_SILENCE_SECONDS) as client,
            client.stream("GET", url) as reply,
        ):
            reply.raise_for_status()
            size = int(reply.headers.get("content-length", 0))
            with explained(part), part.open("wb") as file:
                async for block in reply.aiter_bytes(2**20):
                    await asyncio.to_thread(file.write, block)
                    digest.update(block)
                    done += len(block)
                    if done - told >= _TOLD_EVERY:
                        told = done
                        of = f" of {show_size(size)}" if size else ""
                        said(f"{show_size(done)}{of} fetched")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise DownloadFailed(f"{url}: {type(error).__name__}: {error}") from error
    with explained(path):
        sync(part)
        part.replace(path)
        sync(path.parent)
    said(f"{show_size(done)} fetched from {url}")
    return digest.hexdigest()


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, in hex; it blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
