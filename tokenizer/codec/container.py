"""The file of coded images: what it says of them, and how every damage to it is noticed.

    magic  version  mode  digest of the models (16 bytes)
    number of images, sizes, length of the payload    variable-length integers
    checksum of the tokens and sizes (4 bytes)
    payload
    checksum of all bytes before (4 bytes)

All numbers are little-endian. Knows nothing of what the payload holds.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["fixed", "static", "model"]

MAGIC = b"L24\x1a"
VERSION = 1
DIGEST_BYTES = 16
CHECKSUM_BYTES = 4
MODES: tuple[Mode, ...] = get_args(Mode)
MAX_IMAGES = 1 << 24
MAX_SIDE = 1 << 16
SMALLEST = len(MAGIC) + 2 + DIGEST_BYTES + 4 + 2 * CHECKSUM_BYTES


@dataclass(frozen=True)
class Header:
    """What a file says of its payload.

    Args:
        mode: how tokens are coded.
        digest: of the models that the payload is coded with, 16 bytes.
        sizes: (width, height) of each image in pixels.
        checksum: CRC-32 of what the payload decodes to.
    """

    mode: Mode
    digest: bytes
    sizes: tuple[tuple[int, int], ...]
    checksum: int


def write_container(header: Header, payload: bytes) -> bytes:
    """The bytes of a file.

    Raises:
        ValueError: no image, or sizes or counts out of range.
    """
    _check_sizes(header.sizes)
    if len(header.digest) != DIGEST_BYTES:
        raise ValueError(f"digest must have {DIGEST_BYTES} bytes, got {len(header.digest)}")
    sizes = [header.sizes[0]] if len(set(header.sizes)) == 1 else header.sizes
    parts = [MAGIC, bytes([VERSION, MODES.index(header.mode)]), header.digest]
    parts += [_varint(len(header.sizes)), _varint(len(sizes))]
    parts += [_varint(side - 1) for size in sizes for side in size]
    parts += [_varint(len(payload)), header.checksum.to_bytes(CHECKSUM_BYTES, "little"), payload]
    data = b"".join(parts)
    return data + zlib.crc32(data).to_bytes(CHECKSUM_BYTES, "little")


def read_container(data: bytes) -> tuple[Header, bytes]:
    """Header and payload of a file.

    Raises:
        ValueError: another kind of file, another version, or bytes that are missing or changed.
    """
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise ValueError(f"not a file of coded images: it begins with {bytes(data[:4])!r}")
    if len(data) < SMALLEST:
        raise ValueError(f"truncated: {len(data)} bytes, at least {SMALLEST} expected")
    version = data[len(MAGIC)]
    if version != VERSION:
        raise ValueError(f"version of the format must be {VERSION}, got {version}")
    body, stored = data[:-CHECKSUM_BYTES], int.from_bytes(data[-CHECKSUM_BYTES:], "little")
    found = zlib.crc32(body)
    if stored != found:
        raise ValueError(f"damaged or truncated: its checksum is {stored:08x}, got {found:08x}")
    reader = _Reader(body, len(MAGIC) + 1)
    mode = reader.take(1)[0]
    if mode >= len(MODES):
        raise ValueError(f"mode must be below {len(MODES)}, got {mode}")
    digest = reader.take(DIGEST_BYTES)
    count, num_sizes = reader.varint("number of images"), reader.varint("number of sizes")
    if not 1 <= count <= MAX_IMAGES or num_sizes not in (1, count):
        raise ValueError(f"got {num_sizes} sizes for {count} images")
    if 2 * num_sizes > len(body):
        raise ValueError(f"truncated: {len(body)} bytes cannot hold {num_sizes} sizes")
    sizes = tuple(
        (reader.varint("width") + 1, reader.varint("height") + 1) for _ in range(num_sizes)
    )
    _check_sizes(sizes)
    length = reader.varint("length of the payload")
    checksum = int.from_bytes(reader.take(CHECKSUM_BYTES), "little")
    payload = reader.rest()
    if len(payload) != length:
        raise ValueError(f"the payload must have {length} bytes, got {len(payload)}")
    if num_sizes == 1:
        sizes = sizes * count
    return Header(MODES[mode], digest, sizes, checksum), payload


def _check_sizes(sizes: tuple[tuple[int, int], ...]) -> None:
    if not 1 <= len(sizes) <= MAX_IMAGES:
        raise ValueError(f"number of images must be in [1, {MAX_IMAGES}], got {len(sizes)}")
    for width, height in sizes:
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise ValueError(f"images must have sides in [1, {MAX_SIDE}], got {width} x {height}")


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


class _Reader:
    """Takes fields off bytes, one after the other."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position

    def take(self, count: int) -> bytes:
        part = self._data[self._position : self._position + count]
        if len(part) < count:
            raise ValueError(f"truncated: {count} bytes expected at {self._position}")
        self._position += count
        return part

    def varint(self, name: str) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError(f"{name} is larger than 35 bits hold")

    def rest(self) -> bytes:
        return self._data[self._position :]
