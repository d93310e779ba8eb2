"""The file format: what is written is read, and nothing else is taken for it."""

from __future__ import annotations

import zlib

import pytest

from lambda24.tokenizer.codec.container import (
    MAGIC,
    VERSION,
    Header,
    read_container,
    write_container,
)

HEADER = Header("static", bytes(range(16)), ((32, 32), (300, 7)), 0x12345678)
PAYLOAD = b"payload of tokens"
DATA = write_container(HEADER, PAYLOAD)


@pytest.mark.parametrize(
    "sizes", [((1, 1),), ((32, 32),) * 1000, ((65536, 65536), (1, 2)), ((128, 127), (127, 128))]
)
@pytest.mark.parametrize("payload", [b"", b"x" * 1000])
def test_round_trip(sizes: tuple[tuple[int, int], ...], payload: bytes) -> None:
    header = Header("model", b"\xff" * 16, sizes, 2**32 - 1)
    assert read_container(write_container(header, payload)) == (header, payload)


def test_equal_sizes_cost_their_bytes_once() -> None:
    one = Header("fixed", bytes(16), ((32, 32),), 0)
    many = Header("fixed", bytes(16), ((32, 32),) * 100, 0)
    assert len(write_container(many, b"")) == len(write_container(one, b"")) == 35


def test_every_flipped_bit_is_noticed() -> None:
    for place in range(8 * len(DATA)):
        changed = bytearray(DATA)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match=r"checksum|begins with|version"):
            read_container(bytes(changed))


def test_every_truncation_and_addition_is_noticed() -> None:
    for length in range(len(DATA)):
        with pytest.raises(ValueError, match=r"checksum|begins with|truncated"):
            read_container(DATA[:length])
    with pytest.raises(ValueError, match="checksum"):
        read_container(DATA + b"\0")


def test_another_version_is_named() -> None:
    changed = bytearray(DATA)
    changed[len(MAGIC)] = VERSION + 1
    with pytest.raises(ValueError, match=rf"version .* must be {VERSION}, got {VERSION + 1}"):
        read_container(bytes(changed))


def sealed(body: bytes) -> bytes:
    """A file whose checksum is right whatever it holds."""
    return body + zlib.crc32(body).to_bytes(4, "little")


START = MAGIC + bytes([VERSION, 0]) + bytes(16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (b"\x00\x00" + b"\0" * 8, "0 sizes for 0 images"),
        (b"\x02\x03" + b"\0" * 8, "3 sizes for 2 images"),
        (b"\xff\xff\x7f\xff\xff\x7f" + b"\0" * 8, "cannot hold 2097151 sizes"),
        (b"\xff\xff\xff\xff\x7f\x01" + b"\0" * 8, "34359738367 images"),
        (b"\xff" * 6 + b"\0" * 8, "more|larger than 35 bits"),
        (b"\x01\x01\xff\xff\x7f\x00" + b"\0" * 8, "sides in .*got 2097152 x 1"),
        (b"\x01\x01\x00\x00\x05\0\0\0\0abc", "must have 5 bytes, got 3"),
        (b"\x01\x01\x00\x00", "truncated"),
    ],
)
def test_headers_that_contradict_themselves(fields: bytes, message: str) -> None:
    """Refused by their numbers, before anything of that size is made."""
    with pytest.raises(ValueError, match=message):
        read_container(sealed(START + fields))


def test_an_unknown_mode_is_named() -> None:
    body = MAGIC + bytes([VERSION, 9]) + bytes(16) + b"\x01\x01\x00\x00\x00" + bytes(4)
    with pytest.raises(ValueError, match="mode must be below 3, got 9"):
        read_container(sealed(body))


@pytest.mark.parametrize("sizes", [(), ((0, 3),), ((3, 65537),)])
def test_images_that_cannot_be_coded(sizes: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match=r"must (be|have sides) in"):
        write_container(Header("fixed", bytes(16), sizes, 0), b"")
