"""Damages files of coded images: `python scripts/fuzz_codec.py MODEL [--count 10000] [--seed 0]`.

Small images are coded in every mode that the model has parts for, and the files changed at random:
flipped bits, lost ends, other bytes, parts of one file in another, half of them with a checksum
that fits the damage. Each must be refused by a ValueError or give the very images; anything else
is printed with its seed, and the program fails. MODEL is what `compress.py` takes.
"""

from __future__ import annotations

import argparse
import resource
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm import tqdm

from lambda24.common.command_line import run_program
from lambda24.sampling.image_codec import ImageCodec
from lambda24.scripts.compress import open_codec
from lambda24.tokenizer.codec.container import CHECKSUM_BYTES, Mode


@dataclass(frozen=True)
class Coded:
    """A whole file and what it decodes to."""

    data: bytes
    images: tuple[bytes, ...]


def main(argv: Sequence[str] | None = None) -> Counter[str]:
    """Runs the campaign; returns how often files were refused, and how often they gave the images.

    Raises:
        ValueError: a damaged file that gave other images or another error.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="tokenizer, pipeline or run folder, or a Hub id")
    parser.add_argument("--count", type=int, default=10_000, help="damaged files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    codec, pipeline = open_codec(options.model, None)
    modes: list[Mode] = ["fixed"]
    modes += ["static"] if codec.tables is not None else []
    modes += ["model"] if pipeline is not None else []
    files = [coded(codec, mode, seed) for mode in modes for seed in range(2)]
    found: Counter[str] = Counter()
    slowest, faults = 0.0, []
    for number in tqdm(range(options.count), unit="file"):
        random = np.random.default_rng([options.seed, number])
        data, source = damaged(files, random)
        start = time.perf_counter()
        verdict = judged(codec, data, source)
        slowest = max(slowest, time.perf_counter() - start)
        found[verdict] += 1
        if verdict not in ("refused", "exact"):
            faults.append(f"file {number}: {verdict}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shown = ", ".join(f"{count} {verdict}" for verdict, count in found.most_common())
    print(f"{shown}; slowest {slowest:.2f} s, peak memory of the process {peak:.0f} MiB")
    if faults:
        shown = "\n  ".join(faults[:20])
        raise ValueError(f"{len(faults)} of {options.count} damaged files:\n  {shown}")
    return found


def coded(codec: ImageCodec, mode: Mode, seed: int) -> Coded:
    """A file of two small random images, one of them larger than a tile."""
    random = np.random.default_rng(seed)
    sizes = ((codec.tile, codec.tile), (codec.tile // 2 + 1, codec.tile + 3))
    images = [Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
    data = codec.encode(images, mode)
    return Coded(data, tuple(image.tobytes() for image in codec.decode(data)))


def damaged(files: Sequence[Coded], random: np.random.Generator) -> tuple[bytes, Coded]:
    """A changed file and the one whose images it may give."""
    source = files[int(random.integers(len(files)))]
    data = bytearray(source.data)
    kind = random.integers(4)
    if kind == 0:
        for place in random.integers(0, 8 * len(data), random.integers(1, 4)).tolist():
            data[place // 8] ^= 1 << place % 8
    elif kind == 1:
        del data[random.integers(len(data)) :]
    elif kind == 2:
        start = int(random.integers(len(data)))
        length = int(random.integers(1, 9))
        data[start : start + length] = random.integers(0, 256, length, np.uint8).tobytes()
    else:
        other = files[int(random.integers(len(files)))].data
        cut = int(random.integers(min(len(data), len(other))))
        data = bytearray(data[:cut] + other[cut:])
    if random.integers(2) and len(data) > CHECKSUM_BYTES:
        body = bytes(data[:-CHECKSUM_BYTES])
        data = bytearray(body + zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "little"))
    # Two files that begin alike can make a whole one again.
    return bytes(data), next((file for file in files if file.data == bytes(data)), source)


def judged(codec: ImageCodec, data: bytes, source: Coded) -> str:
    """`refused`, `exact`, or what is wrong."""
    try:
        images = tuple(image.tobytes() for image in codec.decode(data))
    except ValueError:
        return "refused"
    except Exception as error:  # what must not happen
        return f"{type(error).__name__}: {error}"
    return "exact" if images == source.images else "other images"


if __name__ == "__main__":
    run_program(main)
