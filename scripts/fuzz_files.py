"""Damages files that runs and pipelines read back, and says what happens: a seeded, bounded fuzz.

`python scripts/fuzz_files.py [--files N] [--configs N] [--seed S]` makes a tiny pipeline, a
checkpoint, metrics, a token shard, a cache of features, images and configs in a temporary folder,
changes one at a time (bits, bytes, cuts, insertions; keys and values of configs), reads it with the
function that programs use, and counts the outcomes: refused in one line that names the file, or
read. Anything else, such as a traceback from a decoder, is a fault and is listed.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from lambda24.common.command_line import run_program
from lambda24.common.config import load_config, to_dict
from lambda24.common.files import digest_file
from lambda24.common.metrics.distances import FeatureStats
from lambda24.common.metrics.reference import (
    FeatureSet,
    read_cached_features,
    write_cached_features,
)
from lambda24.common.pretrained import numbers_at_most
from lambda24.common.training.run_folder import RunFolder
from lambda24.generator import GeneratorConfig, NextScaleGenerator
from lambda24.generator.settings import GeneratorTrainingConfig
from lambda24.sampling import Pipeline
from lambda24.sampling.image_files import open_images, read_labels
from lambda24.tokenizer import ImageTokenizer
from lambda24.tokenizer.settings import TokenizerTrainingConfig
from lambda24.tokenizer.token_shards import read_shard, write_shard

SIDE = 16
SUFFIXES = (".json", ".safetensors")  # of what a pipeline reads
MAX_NUMBERS = 10**7
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**9, 2**62, 10**40, 0.5, -1e308, "", "x" * 9000, "../..", [], [[]]),
    *({}, {"kind": "nothing"}, [1] * 2000, "nan", "leech"),
)


@dataclass
class Outcomes:
    """What came of the mutations of one kind of file."""

    refused: int = 0
    read: int = 0
    slowest: float = 0.0  # seconds
    faults: list[str] = field(default_factory=list)

    def note(self, call: Callable[[], object], name: str) -> None:
        """Runs a reader on damaged input; a refusal must say `name`."""
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call()
            self.read += 1
        except ValueError as error:
            if name not in str(error):
                self.faults.append(f"does not name {name}: {error}")
            self.refused += 1
        except Exception as error:  # what a user would see as a traceback
            self.faults.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        self.slowest = max(self.slowest, time.perf_counter() - start)


@dataclass(frozen=True)
class Target:
    """A file and the function that reads it."""

    file: Path
    read: Callable[[], object]


def make_targets(folder: Path) -> list[Target]:
    """Small files of all kinds, as programs write them."""
    torch.manual_seed(0)
    config = load_config(TokenizerTrainingConfig, "debug/tokenizer").model
    image_tokenizer = ImageTokenizer(config)
    shape = GeneratorConfig(depth=1, width=32, num_heads=2, num_classes=3)
    generator = NextScaleGenerator(shape, image_tokenizer.spec, ("a", "b", "c"))
    Pipeline(image_tokenizer, generator).save_pretrained(folder / "pipeline")
    run = RunFolder(folder / "run")
    run.start(config, 0)
    run.append_metrics({"step": 1, "loss": 2.5})
    run.append_metrics({"step": 2, "loss": 1.5})
    state = {"task": {"w": torch.randn(300)}, "steps": 2}
    checkpoint = run.checkpoints.save(2, state, keep=1) / "state.pt"
    shard = folder / "shard.safetensors"
    tokens, labels = torch.arange(64)[:, None], torch.zeros(64, dtype=torch.int64)
    write_shard(shard, tokens, labels, largest_codebook=99, rank=0)
    cache = folder / "features.safetensors"
    features = torch.randn(20, 4)
    stats = FeatureStats(features.mean(0), features.T.cov(), 20)
    write_cached_features(cache, FeatureSet(stats, features, None, None))
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    np.savez(folder / "images.npz", images, np.arange(2))
    (folder / "pictures").mkdir()
    Image.fromarray(images[0]).save(folder / "pictures" / "one.png")

    def pixels(path: Path) -> object:
        return read_labels(path), open_images(path, SIDE).images_uint8([0])

    parts = [path for path in sorted((folder / "pipeline").rglob("*")) if path.suffix in SUFFIXES]
    return [
        *(Target(file, lambda: Pipeline.from_pretrained(folder / "pipeline")) for file in parts),
        Target(checkpoint, lambda: run.checkpoints.load(2)),
        Target(run.metrics_file, run.metrics),
        Target(run.config_file, lambda: run.check_config(config)),
        Target(shard, lambda: read_shard(shard)),
        Target(cache, lambda: read_cached_features(cache)),
        Target(folder / "images.npz", lambda: pixels(folder / "images.npz")),
        Target(folder / "pictures" / "one.png", lambda: pixels(folder / "pictures")),
    ]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """One change: a bit, a byte, a cut end, a piece taken out, doubled or put in."""
    data, place = bytearray(content), draw.randrange(len(content))
    if draw.random() < 0.3:
        place = min(place, draw.randrange(64))  # headers decide most
    length = draw.choice((1, 8, 200))
    match draw.randrange(6):
        case 0:
            data[place] ^= 1 << draw.randrange(8)
        case 1:
            data[place] = draw.randrange(256)
        case 2:
            del data[place:]
        case 3:
            del data[place : place + length]
        case 4:
            data[place:place] = data[place : place + length]
        case _:
            data[place:place] = draw.randbytes(length)
    return bytes(data)


def fuzz_files(targets: Sequence[Target], count: int, draw: random.Random) -> dict[str, Outcomes]:
    """Outcomes by name of file. Half of the times the digest beside is gone, as of old files."""
    found: dict[str, Outcomes] = {}
    for number in range(count):
        target = targets[number % len(targets)]
        content, beside = target.file.read_bytes(), digest_file(target.file)
        digest = beside.read_bytes() if beside.is_file() else None
        target.file.write_bytes(damaged(content, draw))
        if digest is not None and draw.random() < 0.5:
            beside.unlink()
        outcomes = found.setdefault(f"{target.file.parent.name}/{target.file.name}", Outcomes())
        outcomes.note(target.read, target.file.parent.name)
        target.file.write_bytes(content)
        if digest is not None:
            beside.write_bytes(digest)
    return found


def mutated(data: Any, draw: random.Random) -> Any:
    """A nested config with one value replaced, left out, or with a key too many."""
    if isinstance(data, dict) and data and draw.random() < 0.9:
        key = draw.choice(sorted(data))
        match draw.randrange(8):
            case 0:
                return {name: value for name, value in data.items() if name != key}
            case 1:
                return {**data, draw.choice(("typo", "kind", key + "_")): draw.choice(ODD_VALUES)}
            case _:
                return {**data, key: mutated(data[key], draw)}
    if isinstance(data, list) and data and draw.random() < 0.5:
        place = draw.randrange(len(data))
        return [*data[:place], mutated(data[place], draw), *data[place + 1 :]]
    return draw.choice(ODD_VALUES)


def fuzz_configs(folder: Path, count: int, draw: random.Random) -> Outcomes:
    """Configs of both stages, every key written out; those that are read build their network."""
    classes = {"tokenizer": TokenizerTrainingConfig, "generator": GeneratorTrainingConfig}
    whole = {name: to_dict(load_config(cls, f"debug/{name}")) for name, cls in classes.items()}
    spec = ImageTokenizer(load_config(TokenizerTrainingConfig, "debug/tokenizer").model).spec
    outcomes, file = Outcomes(), folder / "config.yaml"

    def build(name: str) -> None:
        config: Any = load_config(classes[name], file)
        with numbers_at_most(MAX_NUMBERS, "a fuzz builds"):
            if name == "tokenizer":
                ImageTokenizer(config.model)
            else:
                NextScaleGenerator(config.model, spec, ())

    for number in range(count):
        name = ("tokenizer", "generator")[number % 2]
        if draw.random() < 0.8:
            file.write_text(yaml.safe_dump(mutated(whole[name], draw)), encoding="utf-8")
        else:
            file.write_bytes(damaged(yaml.safe_dump(whole[name]).encode(), draw))
        outcomes.note(lambda name=name: build(name), "")  # type: ignore[misc]
    return outcomes


def main(argv: Sequence[str] | None = None) -> dict[str, Outcomes]:
    """Prints and returns the outcomes by kind of file.

    Raises:
        SystemExit: there are faults, which are printed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000, help="mutations of files")
    parser.add_argument("--configs", type=int, default=1000, help="mutations of configs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz_files(make_targets(Path(folder)), options.files, draw)
        found["configs"] = fuzz_configs(Path(folder), options.configs, draw)
    for name, outcomes in found.items():
        print(
            f"{name:<36} refused {outcomes.refused:>5}  read {outcomes.read:>5}  "
            f"faults {len(outcomes.faults):>3}  slowest {outcomes.slowest:.2f} s"
        )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"largest memory of the process {memory:.2f} GiB")
    faults = [fault for outcomes in found.values() for fault in outcomes.faults]
    if faults:
        raise SystemExit("\n".join(["faults:", *faults]))
    return found


if __name__ == "__main__":
    run_program(main)
