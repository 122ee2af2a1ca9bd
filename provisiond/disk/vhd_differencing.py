"""A differencing VHD: how it names its parent, and one without any data of its own, as bytes.

tapdisk opens these, so paths are as tapdisk reads them: no name but ASCII, nothing escaped with a
per cent sign, and a relative path begins at the folder of the file itself.
"""

from uuid import UUID

from provisiond.disk.vhd_format import (
    BLOCK_SIZE,
    FIRST_FREE,
    FOOTER_SIZE,
    MAX_LOCATOR,
    SECTOR,
    UNUSED,
    DiskType,
    DynamicHeader,
    Footer,
    LocatorCode,
    ParentLocator,
    build_footer,
    build_header,
    chs_geometry,
)
from provisiond.errors import ImageRefused

_URL = "file://"


# ---------------------------------------------------------------- the parent's path
def encode_parent(code: LocatorCode, path: str) -> bytes:
    """The path in the way of one kind of locator; `path` is relative, as decode_parent gives it.

    Raises ImageRefused for a path that would not be read back.
    """
    if path.startswith("/") or _untrusted_path(path) != path:
        raise ImageRefused(f"{path!r} is no path that a VHD can name its parent by")
    if code is LocatorCode.MAC_URL:
        dotted = path if path.startswith("../") else f"./{path}"
        encoded = f"{_URL}{dotted}".encode("ascii")
    else:
        # vhd-util writes the relative path for both, so that a folder can be moved as a whole.
        encoded = f".\\{path}".replace("/", "\\").encode("utf-16-le")
    if len(encoded) > MAX_LOCATOR:
        raise ImageRefused(f"the path of its parent is longer than {MAX_LOCATOR} bytes")
    return encoded


def decode_parent(code: LocatorCode, untrusted: bytes) -> str:
    """The path that a locator holds, without `.`, and `..` at its very beginning alone.

    Raises ImageRefused for what no honest writer writes.
    """
    try:
        if code is LocatorCode.MAC_URL:
            text = untrusted.decode("ascii")
            if not text.startswith(_URL):
                raise ImageRefused("the URL of its parent names no file")
            return _untrusted_path(text.removeprefix(_URL))
        text = untrusted.decode("utf-16-le").encode("ascii").decode("ascii")
    except UnicodeError:
        raise ImageRefused("the path of its parent is not ASCII") from None
    text = text.replace("\\", "/")
    return _untrusted_path(text[2:] if text[:2].lower() == "c:" else text)


def _untrusted_path(path: str) -> str:
    if not (path.isascii() and path.isprintable()):  # NUL and line feed among them
        raise ImageRefused("the path of its parent has characters that no path should have")
    if ":" in path or "\\" in path:
        raise ImageRefused("the path of its parent has a ':' or a backslash in it")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    names = [part for part in parts if part != ".."]
    climbs = len(parts) - len(names)
    if not names or ".." in parts[climbs:] or (climbs and path.startswith("/")):
        raise ImageRefused("the path of its parent has '..' where none belongs, or no name")
    return ("/" if path.startswith("/") else "") + "/".join(parts)


# ---------------------------------------------------------------- the image
def build_differencing(
    *,
    size: int,
    parent: str,
    parent_uuid: UUID,
    parent_timestamp: int,
    uuid: UUID,
    timestamp: int,
) -> bytes:
    """A differencing disk of `size` bytes without any block, over `parent` (a relative path).

    Implementing a Differencing Hard Disk; laid out as vhd-util does it, without its map of full
    blocks. Times are in seconds since 2000.
    """
    entries = -(-size // BLOCK_SIZE)
    table = _padded(UNUSED.to_bytes(4, "big") * entries, filler=b"\xff")
    paths = {code: encode_parent(code, parent) for code in LocatorCode}
    header = DynamicHeader(
        table_offset=FIRST_FREE,
        max_table_entries=entries,
        parent_uuid=parent_uuid,
        parent_timestamp=parent_timestamp,
        parent_name=parent.rpartition("/")[2],
        locators=_locators(paths, offset=FIRST_FREE + len(table)),
    )
    footer = Footer(
        disk_type=DiskType.DIFFERENCING,
        current_size=size,
        original_size=size,
        geometry=chs_geometry(size),
        data_offset=FOOTER_SIZE,
        uuid=uuid,
        timestamp=timestamp,
    )
    padded_paths = [_padded(path, filler=b"\0") for path in paths.values()]
    ends = build_footer(footer)
    return b"".join((ends, build_header(header), table, *padded_paths, ends))


def _locators(paths: dict[LocatorCode, bytes], *, offset: int) -> tuple[ParentLocator, ...]:
    locators = []
    for code, path in paths.items():
        space = len(_padded(path, filler=b"\0"))
        locators.append(ParentLocator(code, space, len(path), offset))
        offset += space
    return tuple(locators)


def _padded(content: bytes, *, filler: bytes) -> bytes:
    return content + filler * (-len(content) % SECTOR)
