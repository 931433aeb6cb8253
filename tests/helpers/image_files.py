"""Image files of kinds that PIL reads but cannot write."""

import struct
import zlib
from pathlib import Path

from PIL import Image


def write_png(path: Path, rows: list[bytes], width: int, bits: int, colour_type: int) -> Path:
    """A PNG of a kind that PIL reads but cannot write; colour type 0 is grey, 2 RGB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_tiff(path: Path, tags: dict[int, tuple[int, ...]], data: bytes) -> Path:
    """A little-endian TIFF of 32-bit tags whose data begin where tag 273 or 324 says "here"."""
    first = 8 + 2 + 12 * len(tags) + 4
    beside = b""
    rows = b""
    long_ones = {tag: values for tag, values in tags.items() if len(values) > 1}
    start_of_data = first + sum(4 * len(values) for values in long_ones.values())
    for tag, values in sorted(tags.items()):
        values = tuple(start_of_data if value == "here" else value for value in values)
        packed_value = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed_value, beside = struct.pack("<I", first + len(beside)), beside + packed_value
        rows += struct.pack("<HHI", tag, 4, len(values)) + packed_value
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4) + beside + data)
    return path
