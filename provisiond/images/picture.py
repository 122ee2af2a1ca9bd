"""A picture of a guest's screen: what QEMU writes (PPM) as what anybody can look at (PNG). Pure."""

import re
import struct
import zlib

_PPM = re.compile(rb"P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BIT_RGB = (8, 2, 0, 0, 0)  # bit depth, colour type, the only methods that there are


def png_of(ppm: bytes) -> bytes:
    """The picture as a PNG; ValueError where it is no PPM of three bytes a pixel (ppm(5), P6)."""
    head = _PPM.match(ppm)
    if head is None:
        raise ValueError("is no PPM picture")
    width, height = int(head[1]), int(head[2])
    pixels = ppm[head.end() :]
    if not width or not height or len(pixels) != 3 * width * height:
        raise ValueError(f"has {len(pixels)} bytes, which are no {width} x {height} pixels")
    line = 3 * width
    # Before each line stands how it was filtered: not at all.
    lines = b"".join(b"\0" + pixels[at : at + line] for at in range(0, len(pixels), line))
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *_EIGHT_BIT_RGB)),
            _chunk(b"IDAT", zlib.compress(lines)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
