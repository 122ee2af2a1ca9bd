"""This provisiond as a wheel: the very files that run here, for a machine that has none."""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from provisiond import __version__
from provisiond.errors import ToolFailed
from provisiond.images.agent_files import agent_folder

NAME = f"provisiond-{__version__}-py3-none-any.whl"
_INFO = f"provisiond-{__version__}.dist-info"
_PACKAGE = Path(__file__).resolve().parents[1]
_WHEEL = "Wheel-Version: 1.0\nGenerator: provisiond\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_DATE = (2000, 1, 1, 0, 0, 0)  # the same files give the same bytes


def make_wheel() -> bytes:
    """The wheel. Raises ToolFailed where this provisiond is not installed, or without its agent."""
    try:
        installed = metadata.distribution("provisiond")
    except metadata.PackageNotFoundError as error:
        raise ToolFailed(
            "provisiond is not installed as a package: no wheel can be made"
        ) from error
    files = dict(_files())
    files[f"{_INFO}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    files[f"{_INFO}/entry_points.txt"] = (installed.read_text("entry_points.txt") or "").encode()
    files[f"{_INFO}/WHEEL"] = _WHEEL.encode()
    record = "".join(f"{name},{_hash(content)},{len(content)}\n" for name, content in files.items())
    files[f"{_INFO}/RECORD"] = f"{record}{_INFO}/RECORD,,\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _files() -> Iterator[tuple[str, bytes]]:
    """The package and the agent's folder in it, by their names in the wheel."""
    for folder, prefix in ((_PACKAGE, "provisiond"), (agent_folder(), "provisiond/guest-agent")):
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder)
            if path.is_file() and "__pycache__" not in inner.parts:
                if prefix == "provisiond" and inner.parts[0] == "guest-agent":
                    continue  # the other folder, where this is an installation
                yield f"{prefix}/{inner}", path.read_bytes()


def _hash(content: bytes) -> str:
    digest = hashlib.sha256(content).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
