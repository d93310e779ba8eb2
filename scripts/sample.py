"""Draws images: `python scripts/sample.py FOLDER --labels cat,dog --seeds 0:8 --out samples.png`.

One row of the grid per label, one column per seed. FOLDER is a pipeline or run folder or a Hub id.
Sampling settings follow as key=value, for example guidance_scale=2.5 top_k=900
'guidance_scale={kind: linear, start: 1, end: 3}'; otherwise the folder's own apply.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from common.config import load_config, read_yaml_text
from common.images import save_grid, save_image
from sampling.generate import SamplingConfig
from sampling.pipeline import Pipeline, override

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(argv: Sequence[str] | None = None) -> None:
    """Loads the pipeline, draws every label with every seed, writes the grid and the PNGs."""
    options = _parser().parse_intermixed_args(argv)
    pipeline = Pipeline.from_pretrained(options.model).to(options.device, DTYPES[options.dtype])
    config = sampling_config(pipeline.sampling, options.config, options.overrides)
    labels = parse_labels(options.labels, pipeline)
    seeds = parse_seeds(options.seeds)
    pairs = [(label, seed) for label in labels for seed in seeds]
    images = pipeline(
        [label for label, _ in pairs],
        [seed for _, seed in pairs],
        batch_size=options.batch_size,
        progress=True,
        config=config,
    )
    names = [_name(label, pipeline) for label in labels]
    save_grid(_pixels(images), options.out, labels=names, columns=len(seeds))
    print(f"{len(images)} images: {options.out}")
    if options.folder is not None:
        folder = Path(options.folder)
        for (label, seed), image in zip(pairs, images, strict=True):
            save_image(image, folder / f"{_file_name(_name(label, pipeline))}_seed{seed}.png")
        print(f"one file per image: {folder}")


def sampling_config(
    default: SamplingConfig, file: str | None, overrides: Sequence[str]
) -> SamplingConfig:
    """The default or the settings of a YAML file, with key=value overrides.

    Raises:
        ValueError: an override without `=`, an unknown key, a value of the wrong type.
    """
    base = default if file is None else load_config(SamplingConfig, file)
    values = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"override {text!r}: expected key=value, e.g. guidance_scale=2.5")
        values[key] = read_yaml_text(value)
    return override(base, values)


def parse_labels(text: str, pipeline: Pipeline) -> list[int]:
    """Class numbers of "cat,dog,7" or "all"; a name wins over a number.

    Raises:
        ValueError: unknown names.
    """
    if text == "all":
        return list(range(pipeline.generator.num_classes))
    labels = []
    for part in (part.strip() for part in text.split(",")):
        is_number = part.isdecimal() and part not in pipeline.label_names
        labels.append(pipeline.label_index(int(part) if is_number else part))
    return labels


def parse_seeds(text: str) -> list[int]:
    """Seeds of "0:8" (0 to 7), "3" or "1,5,10:12".

    Raises:
        ValueError: anything else, or no seed at all.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        if not first.isdecimal() or (colon and not last.isdecimal()):
            raise ValueError(f"seeds must look like 0:8 or 1,5,10:12, got {text!r}")
        seeds += range(int(first), int(last) if colon else int(first) + 1)
    if not seeds:
        raise ValueError(f"seeds {text!r} are an empty range")
    return seeds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="pipeline or run folder, or Hub id")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="sampling settings")
    parser.add_argument("--labels", default="all", help="names or numbers, comma separated, or all")
    parser.add_argument("--seeds", default="0:8", help="for example 0:8 or 1,5,10:12")
    parser.add_argument("--out", default="samples.png", help="grid file")
    parser.add_argument("--folder", help="also write one PNG per image there")
    parser.add_argument("--config", help="YAML file of sampling settings")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="autocast of the networks")
    return parser


def _name(label: int, pipeline: Pipeline) -> str:
    if label == pipeline.generator.num_classes:
        return "(null)"
    return pipeline.label_names[label] if pipeline.label_names else str(label)


def _file_name(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in name)


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """uint8 (B, 3, H, W)."""
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return rearrange(stacked, "b h w c -> b c h w")


if __name__ == "__main__":
    main()
