"""What bytes are thrown at, and what must hold of each answer, whatever the bytes were.

A target refuses by its documented error or answers; anything else that it raises is a finding.
"""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from provisiond.api.guest_config import GuestConfig
from provisiond.api.requests import Create, DiskFormat, Request
from provisiond.disk import vhd
from provisiond.disk.chain import DiskChain, DiskImage, parse_chain, parse_info
from provisiond.disk.header import backing_of
from provisiond.disk.qcow_format import HEAD, QcowHeader, parse_header, refuse_hostile
from provisiond.disk.vhd_format import FOOTER_SIZE, HEADER_SIZE, checksum, has_footer_cookie
from provisiond.errors import ImageRefused
from provisiond.guest.verdict import (
    MAX_LOG_LINE,
    MAX_MESSAGE,
    MAX_WORD,
    Failed,
    Hello,
    LogLine,
    parse_word,
)
from provisiond.virt.xml import free_targets, parse_domain
from provisiond.xenstore.wire import (
    Event,
    NotXenstore,
    Reply,
    Splitter,
    parse_directory_part,
    parse_number,
)

NONCE = "0123456789abcdef0123456789abcdef"
LARGEST = 2**63 - 1  # what QEMU has for a size


@dataclass(frozen=True, slots=True)
class Target:
    """A parser: `check` is called with bytes and raises where something is wrong.

    `compare` looks at an input once more when the run is over, with another reader; it says
    whether both took it. `mend` is done to every input that is made out of another one. `words`
    are what chance alone would hardly write.
    """

    name: str
    check: Callable[[bytes], None]
    longest: int
    compare: Callable[[bytes], bool] | None = None
    mend: Callable[[bytes], bytes] | None = None
    words: tuple[str, ...] = ()


def _check_refusal(error: ImageRefused, *, names: Path | None = None) -> None:
    """It reaches logs and terminals, and says which file is meant."""
    assert error.message.isprintable(), error.message
    assert names is None or error.message.startswith(f"{names}: ")


# ---------------------------------------------------------------- the guest's word
def check_word(untrusted: bytes) -> None:
    """A word has nothing in it that a terminal or a log would not take."""
    word = parse_word(untrusted, nonce=NONCE)
    assert word == parse_word(untrusted.removesuffix(b"\n") + b"\n", nonce=NONCE)
    match word:
        case Hello(text):
            _check_text(text, limit=32)
        case LogLine(text):
            _check_text(text, limit=MAX_LOG_LINE)
        case Failed(step, text):
            _check_text(step, limit=32)
            _check_text(text, limit=MAX_MESSAGE)
    assert word is None or len(untrusted) <= MAX_WORD + 1


def _check_text(text: str, *, limit: int) -> None:
    assert text.isprintable()
    assert len(text) <= limit


# ---------------------------------------------------------------- what qemu-img tells
def check_chain(untrusted: bytes) -> None:
    """Each image of a chain has a path that can be shown and opened, and sizes that can be."""
    text = untrusted.decode(errors="replace")
    for parse in (parse_chain, parse_info):
        try:
            found = parse(text)
        except ImageRefused as error:
            _check_refusal(error)
            continue
        images = found.images if isinstance(found, DiskChain) else (found,)
        assert images
        for image in images:
            _check_image(image)


def _check_image(image: DiskImage) -> None:
    for path in (image.path, image.backing):
        assert path is None or (path.is_absolute() and str(path).isprintable()), path
    assert image.format in list(DiskFormat)
    assert 0 <= image.virtual_size <= LARGEST
    assert 0 <= image.file_size <= LARGEST


# ---------------------------------------------------------------- VHD
_FILE = tempfile.NamedTemporaryFile(prefix="image-")  # noqa: SIM115 - as long as this process


def _file() -> Path:
    """One for all inputs, on a tmpfs where run.py has started this."""
    return Path(_FILE.name)


def _read_vhd(untrusted: bytes) -> DiskImage | None:
    path = _file()
    path.write_bytes(untrusted)
    try:
        image = vhd.read_image(path)
        vhd.check_image(path)
    except ImageRefused as error:
        _check_refusal(error, names=path)
        return None
    return image


def check_vhd(untrusted: bytes) -> None:
    """A VHD that is taken has a size, lies in its file, and stands on nothing but a file."""
    image = _read_vhd(untrusted)
    if image is None:
        return
    _check_image(image)
    assert image.virtual_size % 512 == 0
    assert 0 < image.virtual_size <= 2040 * 2**30
    assert image.backing is None or image.backing_format in (DiskFormat.RAW, DiskFormat.VHD)


def compare_vhd(untrusted: bytes) -> bool:
    """QEMU, told to believe the footer's size as tapdisk does, sees the same size."""
    image = _read_vhd(untrusted)
    if image is None:
        return False
    options = f"driver=vpc,force_size_calc=current_size,file.driver=file,file.filename={_file()}"
    told = _qemu_img_info("--image-opts", options)
    assert told is None or told["virtual-size"] == image.virtual_size, (told, image)
    return told is not None


def mend_vhd(untrusted: bytes) -> bytes:
    """The same bytes with right checksums, that hardly any change would pass else."""
    image = bytearray(untrusted)
    header = int.from_bytes(image[16:24], "big") if has_footer_cookie(bytes(image[:8])) else 512
    for start, size, at in (
        (0, FOOTER_SIZE, 64),
        (len(image) - FOOTER_SIZE, FOOTER_SIZE, 64),
        (header, HEADER_SIZE, 36),
    ):
        if 0 <= start <= len(image) - size:
            part = bytes(image[start : start + size])
            if part.startswith((b"conectix", b"cxsparse")):
                image[start + at : start + at + 4] = checksum(part, at=at).to_bytes(4, "big")
    return bytes(image)


# ---------------------------------------------------------------- qcow2, qcow
def _read_qcow(untrusted: bytes) -> QcowHeader | None:
    path = Path("/x")
    try:
        header = parse_header(untrusted[:HEAD], path=path)
        refuse_hostile(header, path=path, file_size=len(untrusted))
        backing_of(header, path)
    except ImageRefused as error:
        _check_refusal(error, names=path)
        return None
    return header


def check_qcow(untrusted: bytes) -> None:
    """The tables of a header that is taken lie in its file; it names no other file but one."""
    header = _read_qcow(untrusted)
    if header is None:
        return
    assert header.l1_offset + header.l1_bytes <= len(untrusted)
    assert header.refcount_offset <= len(untrusted)
    assert header.data_file is None
    assert not header.encryption
    assert header.backing is None or (0 < len(header.backing) <= 1023)
    assert header.backing is None or header.backing.isprintable()


def compare_qcow(untrusted: bytes) -> bool:
    """QEMU sees the same size and the same name of a backing file."""
    header = _read_qcow(untrusted)
    if header is None:
        return False
    _file().write_bytes(untrusted)
    told = _qemu_img_info("-f", "qcow" if header.version == 1 else "qcow2", str(_file()))
    if told is None:
        return False
    assert told["virtual-size"] == header.virtual_size, (told, header)
    assert told.get("backing-filename") == header.backing, (told, header)
    return True


def _qemu_img_info(*image: str) -> dict[str, object] | None:
    """What `qemu-img info` tells; None where it refuses the image."""
    limits = ("prlimit", "--as=1073741824", "--cpu=8")
    argv = (*limits, "qemu-img", "info", "--force-share", "--output=json", *image)
    finished = subprocess.run(argv, capture_output=True, check=False, text=True, errors="replace")
    return dict(json.loads(finished.stdout)) if finished.returncode == 0 else None


# ---------------------------------------------------------------- xenstore's wire
def check_wire(untrusted: bytes) -> None:
    """However the bytes come in pieces, the same comes out of them, and no byte twice."""
    whole, pieces = _split([untrusted]), _split([bytes([byte]) for byte in untrusted])
    assert whole == pieces
    assert sum(len(one.payload) + 16 for one in whole if isinstance(one, Reply)) <= len(untrusted)
    with contextlib.suppress(NotXenstore):
        part = parse_directory_part(untrusted)
        assert part.is_last or 0 < part.size <= len(untrusted)
    with contextlib.suppress(NotXenstore):
        assert 0 <= parse_number(untrusted) < 10**10
    for reply in (one for one in whole if isinstance(one, Reply)):
        with contextlib.suppress(OSError):
            assert reply.result() == reply.payload


def _split(pieces: Sequence[bytes]) -> list[Reply | Event]:
    """What a connection gives before it is of no use any more."""
    splitter, found = Splitter(), []
    with contextlib.suppress(NotXenstore):
        for piece in pieces:
            for one in splitter.feed(piece):
                found.append(one)  # noqa: PERF402 - what came before a NotXenstore counts
    return found


# ---------------------------------------------------------------- requests, domains
REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


def check_request(untrusted: bytes) -> None:
    """A request that is taken reads back as it is stored, and its own texts can be shown."""
    try:
        request = REQUEST.validate_json(untrusted)
    except ValidationError:
        return
    stored = request.public()
    assert REQUEST.validate_python(stored).public() == stored
    for text in _texts(stored):
        assert text.isprintable(), text


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


def check_domain(untrusted: bytes) -> None:
    """What is no domain is a ValueError; of one, it can be said what is free."""
    try:
        domain = parse_domain(untrusted.decode(errors="replace"))
    except ValueError:
        return
    assert set(free_targets(domain)).isdisjoint(disk.target for disk in domain.disks)


TARGETS = {
    target.name: target
    for target in (
        Target(
            "verdict",
            check_word,
            longest=MAX_WORD + 2,
            words=("hello ", f"{NONCE} ", "log ", "done", "failed ", "step ", "$6$abcdefgh"),
        ),
        Target("vhd", check_vhd, longest=8192, compare=compare_vhd, mend=mend_vhd),
        Target(
            "chain",
            check_chain,
            longest=4096,
            words=(
                *(f'"{name}": ' for name in ("filename", "format", "virtual-size", "actual-size")),
                *(
                    '"full-backing-filename": "',
                    '"backing-filename": "',
                    '"raw"',
                    '"vpc"',
                    '"qcow"',
                ),
                *("json:", "nbd://", "\\u0000", "\\ud800", "1e400", "NaN", "null", "-1", "true"),
            ),
        ),
        Target("qcow", check_qcow, longest=2**18, compare=compare_qcow),
        Target("wire", check_wire, longest=512, words=("ENOENT", "errorcode", "__name__")),
        Target(
            "request",
            check_request,
            longest=4096,
            words=(
                *(f'"{field}": ' for field in (*GuestConfig.model_fields, *Create.model_fields)),
                *('"provision"', "null", "true", "{}", "[]", "1e9", "\\u0000", "\\ud800", "/../"),
            ),
        ),
        Target(
            "domain",
            check_domain,
            longest=4096,
            words=(
                *("<domain type='xen' id='1'>", "</domain>", "<devices>", "<disk type='file'>"),
                *("<!DOCTYPE d [<!ENTITY a 'a'>]>", "&a;", "<![CDATA[", "<?x?>", "index=''"),
                *("<controller type='scsi' index='-1'/>", "<address type='drive' unit='x'/>"),
            ),
        ),
    )
}
