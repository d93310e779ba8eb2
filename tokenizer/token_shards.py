"""Shards of a token cache: one safetensors file each, with a checksum in a text file beside it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lambda24.common.files import is_as_written, reading, write_digest

LARGEST_INT32 = 2**31


def shard_file(folder: Path, shard: int) -> Path:
    """Where the shard of this number lies."""
    return folder / f"shard_{shard:05d}.safetensors"


def write_shard(
    file: Path, tokens: Tensor, labels: Tensor, *, largest_codebook: int, rank: int
) -> None:
    """Writes tokens, in int32 where their codebooks allow it, labels, and last the checksum."""
    dtype = torch.int32 if largest_codebook <= LARGEST_INT32 else torch.int64
    temporary = file.with_suffix(f".{rank}.tmp")
    save_file({"tokens": tokens.to(dtype), "labels": labels}, temporary)
    os.replace(temporary, file)
    write_digest(file)


def read_shard(file: Path) -> tuple[Tensor, Tensor]:
    """Tokens and labels, paged in from the file when they are looked at."""
    with reading(file, "a shard of tokens"), safe_open(file, framework="pt") as shard:
        return shard.get_tensor("tokens"), shard.get_tensor("labels")


def is_whole(file: Path) -> bool:
    """Whether the shard is there, and is what its digest says."""
    return is_as_written(file)
