"""Draws images: `python scripts/sample.py FOLDER --labels cat,dog --seeds 0:8 --out samples.png`.

One row of the grid per label, one column per seed. FOLDER is a pipeline or run folder, the name
of a packaged model (digits, cifar10) or a Hub id.
Sampling settings follow as key=value, for example guidance_scale=2.5 top_k=900
'guidance_scale={kind: linear, start: 1, end: 3}' or, with VAR's cfg, '{kind: var, cfg: 1.5}';
otherwise the folder's own apply.

Many images, resumable, on all processes; image i has label i mod classes and seed i:
    accelerate launch scripts/sample.py FOLDER --count 50000 --folder images --npz images.npz
In-painting (white is drawn anew) and class swap:
    python scripts/sample.py FOLDER --labels dog --edit cat.png --mask mask.png
    python scripts/sample.py FOLDER --labels dog --edit cat.png --keep-scales 3
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from lambda24.common.command_line import run_program
from lambda24.common.config import to_dict
from lambda24.common.images import check_image_path, decode_rgb, from_pil, save_grid
from lambda24.common.training.launch import patient_accelerator
from lambda24.sampling.image_files import is_saved, save_png, write_npz
from lambda24.sampling.options import (
    MAX_IMAGES,
    class_name,
    file_name,
    parse_labels,
    parse_seeds,
    sampling_config,
)
from lambda24.sampling.pipeline import GROUP, Pipeline
from lambda24.sampling.playground.uploads import fit_square, open_upload
from lambda24.sampling.seeds import check_seeds
from lambda24.sampling.settings import SamplingConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(argv: Sequence[str] | None = None) -> None:
    """Loads the pipeline, draws this process's images, writes PNGs, grid and npz."""
    options = _parser().parse_intermixed_args(argv)
    _check(options)
    accelerator = patient_accelerator()
    if accelerator.num_processes > 1 and options.folder is None:
        raise ValueError(f"{accelerator.num_processes} processes need a --folder for their images")
    pipeline = Pipeline.from_pretrained(options.model)
    pipeline.to(options.device or accelerator.device, DTYPES[options.dtype])
    if options.compile:
        pipeline.compile()
    config = sampling_config(pipeline.sampling, options.config, options.overrides)
    config.resolve(pipeline.generator.spec)  # what does not fit is told before anything is drawn
    pairs = choose_pairs(options, pipeline)
    job = Job(pipeline, config, options.batch_size, Edit.of(options, pipeline))
    if options.folder is None:
        images = job.draw(pairs, progress=True)
    else:
        paths = job.paths(pairs, Path(options.folder))
        rank, world = accelerator.process_index, accelerator.num_processes
        job.fill(pairs[rank::world], paths[rank::world], progress=accelerator.is_main_process)
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return
        print(f"{len(pairs)} images: {options.folder}")
        if options.npz is not None:
            write_npz(paths, [label for label, _ in pairs], options.npz, seed=options.shuffle_seed)
            print(f"shuffled by seed {options.shuffle_seed}: {options.npz}")
        if options.out is None:
            return
        images = [decode_rgb(str(path)) for path in paths]
    out = options.out or "samples.png"
    rows = list(dict.fromkeys(label for label, _ in pairs))
    names = [class_name(label, pipeline) for label in rows] if options.count is None else None
    columns = len(pairs) // len(rows) if names else 10
    save_grid(from_pil(images), out, labels=names, columns=columns)
    print(f"grid of {len(images)} images: {out}")


@dataclass(frozen=True)
class Edit:
    """What of which image is kept; see `Pipeline.edit`."""

    image: Image.Image
    mask: Image.Image | None
    keep_scales: int

    @classmethod
    def of(cls, options: argparse.Namespace, pipeline: Pipeline) -> Edit | None:
        """Reads the image and the mask, resized and cropped alike to the model's size.

        Raises:
            ValueError: files that `open_upload` refuses, or a mask of another size than the image.
        """
        if options.edit is None:
            return None
        image = _open("--edit", options.edit)
        mask = None if options.mask is None else _open("--mask", options.mask)
        if mask is not None and mask.size != image.size:
            raise ValueError(
                f"--mask must have the size of the image {image.size}, got {mask.size}"
            )
        side = pipeline.image_tokenizer.config.image_size
        fitted = None if mask is None else fit_square(mask, side)
        return cls(fit_square(image, side), fitted, options.keep_scales)

    def settings(self) -> dict[str, Any]:
        """The pixels by their hash, and what is kept."""
        parts = {"image": self.image, "mask": self.mask}
        hashes = {
            name: None if part is None else hashlib.sha256(part.tobytes()).hexdigest()
            for name, part in parts.items()
        }
        return {**hashes, "keep_scales": self.keep_scales}


@dataclass(frozen=True)
class Job:
    """How labels and seeds become images and files."""

    pipeline: Pipeline
    config: SamplingConfig
    batch_size: int
    edit: Edit | None

    def draw(self, pairs: Sequence[tuple[int, int]], *, progress: bool) -> list[Image.Image]:
        """The images of (label, seed) pairs."""
        labels, seeds = [label for label, _ in pairs], [seed for _, seed in pairs]
        common: dict[str, Any] = {"batch_size": self.batch_size, "progress": progress}
        if self.edit is None:
            return self.pipeline(labels, seeds, config=self.config, **common)
        return self.pipeline.edit(
            [self.edit.image] * len(pairs),
            labels,
            seeds,
            keep_scales=self.edit.keep_scales,
            mask=self.edit.mask,
            config=self.config,
            **common,
        )

    def paths(self, pairs: Sequence[tuple[int, int]], folder: Path) -> list[Path]:
        """A file for each pair, named by class and seed."""
        generator = self.pipeline.generator
        stems = [file_name(class_name(k, self.pipeline)) for k in range(generator.num_classes + 1)]
        counts = Counter(stems)  # ImageNet has two classes "crane"
        unique = [stem if counts[stem] == 1 else f"{stem}-{k}" for k, stem in enumerate(stems)]
        return [folder / f"{unique[label]}_seed{seed}.png" for label, seed in pairs]

    def settings(self) -> dict[str, Any]:
        """What fixes the pixels of all images alike, next to label and seed."""
        return {
            "model": self.pipeline.digest(),
            "sampling": to_dict(self.config),
            "dtype": str(self.pipeline.dtype),
            "batch_size": self.batch_size,
            "edit": None if self.edit is None else self.edit.settings(),
            **({"compiled": True} if self.pipeline.is_compiled else {}),
        }

    def fill(
        self, pairs: Sequence[tuple[int, int]], paths: Sequence[Path], *, progress: bool
    ) -> None:
        """Draws the pairs whose files are missing; each file records all that made it.

        Raises:
            ValueError: files made with other settings.
        """
        shared = self.settings()

        def settings(i: int) -> dict[str, Any]:
            label, seed = pairs[i]
            return {**shared, "label": label, "seed": seed}

        missing = [i for i, path in enumerate(paths) if not is_saved(path, settings(i))]
        with tqdm(total=len(pairs), unit="image", disable=not progress) as bar:
            bar.update(len(pairs) - len(missing))
            for start in range(0, len(missing), self.batch_size):
                part = missing[start : start + self.batch_size]
                images = self.draw([pairs[i] for i in part], progress=False)
                for i, image in zip(part, images, strict=True):
                    save_png(image, paths[i], settings(i))
                bar.update(len(part))


def choose_pairs(options: argparse.Namespace, pipeline: Pipeline) -> list[tuple[int, int]]:
    """(label, seed) of each image: all labels with all seeds, or `--count` of them in turn.

    Raises:
        ValueError: unknown labels, malformed seeds, either more than once, or too many images.
    """
    labels, seeds = parse_labels(options.labels, pipeline), parse_seeds(options.seeds)
    if options.count is None:
        if len(labels) * len(seeds) > MAX_IMAGES:
            raise ValueError(
                f"{len(labels)} labels with {len(seeds)} seeds are more than {MAX_IMAGES} images"
            )
        return [(label, seed) for label in labels for seed in seeds]
    check_seeds([seeds[0] + options.count - 1])
    return [(labels[i % len(labels)], seeds[0] + i) for i in range(options.count)]


def _open(option: str, path: str) -> Image.Image:
    try:
        return open_upload(path)
    except ValueError as error:
        raise ValueError(f"{option} {path}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="pipeline or run folder, digits, cifar10, or Hub id")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="sampling settings")
    parser.add_argument("--labels", default="all", help="names or numbers, comma separated, or all")
    parser.add_argument("--seeds", default="0:8", help="for example 0:8 or 1,5,10:12")
    parser.add_argument("--count", type=int, help="images in all, seeds from the first of --seeds")
    parser.add_argument("--out", help="grid file; without --folder samples.png")
    parser.add_argument("--folder", help="one PNG per image; those already there are not drawn")
    parser.add_argument("--npz", help="pack the folder's images for ADM's evaluator, shuffled")
    parser.add_argument("--shuffle-seed", type=int, default=0, help="order of the npz file")
    parser.add_argument("--edit", metavar="IMAGE", help="keep part of this image")
    parser.add_argument("--mask", metavar="IMAGE", help="white where --edit's image is drawn anew")
    parser.add_argument("--keep-scales", type=int, default=0, help="first scales --edit keeps")
    parser.add_argument("--config", help="YAML file of sampling settings")
    parser.add_argument("--batch-size", type=int, default=GROUP, help="fixes the rounding, too")
    parser.add_argument("--device", help="default: a GPU of the process, else the CPU")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="autocast of the networks")
    parser.add_argument("--compile", action="store_true", help="torch.compile: for many images")
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.count is not None and options.count < 1:
        raise ValueError(f"--count must be at least 1, got {options.count}")
    if options.count is not None and options.count > MAX_IMAGES:
        raise ValueError(f"--count must be at most {MAX_IMAGES}, got {options.count}")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    if options.out is not None:
        check_image_path(options.out, "--out")
    if options.folder is not None and Path(options.folder).is_file():
        raise ValueError(f"--folder {options.folder} is a file")
    if options.npz is not None:
        _check_npz(options)
    if options.edit is None and (options.mask is not None or options.keep_scales):
        raise ValueError("--mask and --keep-scales say what to keep of an --edit image: none given")
    if options.edit is not None and options.mask is None and not options.keep_scales:
        raise ValueError(
            f"--edit {options.edit} keeps nothing of the image: --mask or --keep-scales says what"
        )


def _check_npz(options: argparse.Namespace) -> None:
    if options.folder is None:
        raise ValueError("--npz packs the images of a --folder, and there is none")
    path = Path(options.npz)
    if path.suffix != ".npz" or path.is_dir():
        raise ValueError(f"--npz must be a file that ends in .npz, got {options.npz}")
    if options.shuffle_seed < 0:
        raise ValueError(f"--shuffle-seed must be at least 0, got {options.shuffle_seed}")


if __name__ == "__main__":
    run_program(main)
