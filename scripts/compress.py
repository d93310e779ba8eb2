"""The image codec: files of images to tokens and back.

    python scripts/compress.py encode MODEL cat.png dog.jpg --out animals.l24 [--mode static]
    python scripts/compress.py decode MODEL animals.l24 --out folder [--scales 3]
    python scripts/compress.py fit MODEL --data cifar10
    python scripts/compress.py evaluate MODEL --data cifar10 --count 1000 --out report

MODEL is a tokenizer, pipeline or run folder, or a Hub id. `fit` counts codes of training images for
mode "static" and writes the tables beside the tokenizer. `evaluate` writes rates and distortions of
held-out images beside those of JPEG, WebP, JPEG 2000 and AVIF (table, CSV and plot).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from lambda24.common.command_line import run_program
from lambda24.common.data.dataset import load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.files import replace_text
from lambda24.common.images import decode_rgb, from_uint8, to_pil
from lambda24.common.metrics.reference import spread
from lambda24.generator.model import NextScaleGenerator
from lambda24.sampling.image_codec import Guess, ImageCodec
from lambda24.sampling.options import parse_label
from lambda24.sampling.pipeline import Pipeline
from lambda24.scripts.reports.plots import check_plots, save_figure
from lambda24.scripts.reports.rate_distortion import (
    draw,
    other_points,
    own_points,
    table,
    write_csv,
)
from lambda24.tokenizer.codec.container import MODES, Mode
from lambda24.tokenizer.codec.tables import TABLES_FILE, StaticTables
from lambda24.tokenizer.model import ImageTokenizer
from lambda24.tokenizer.tokens import TokenPyramid

BATCH = 64


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one of the four commands."""
    options = _parser().parse_args(argv)
    {"encode": encode, "decode": decode, "fit": fit, "evaluate": evaluate}[options.command](options)


def encode(options: argparse.Namespace) -> None:
    """Image files to one file of coded images."""
    codec, pipeline = open_codec(options.model, options.overlap)
    images = [decode_rgb(str(path)) for path in options.images]
    labels = _labels(options, pipeline, len(images))
    data = codec.encode(images, options.mode, labels=labels, progress=True)
    target = Path(options.out)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(target)
    pixels = sum(image.width * image.height for image in images)
    rate = f"{len(data)} bytes, {8 * len(data) / pixels:.4f} bits a pixel"
    print(f"{len(images)} images, {rate}: {target}")


def decode(options: argparse.Namespace) -> None:
    """A file of coded images to PNGs."""
    codec, _ = open_codec(options.model, options.overlap)
    file = Path(options.file)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    try:
        images = codec.decode(data, num_scales=options.scales, progress=True)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number:06d}.png")
    print(f"{len(images)} images: {folder}")


def fit(options: argparse.Namespace) -> None:
    """Tables of mode "static", from training images."""
    tokenizer, _ = open_models(options.model)
    folder = _tokenizer_folder(options.model)
    data = load_dataset(_data(options, tokenizer), train=True)
    count = min(len(data), options.count or len(data))
    positions = spread(len(data), count)

    def pyramids() -> Iterator[TokenPyramid]:
        with tqdm(total=count, unit="image") as bar:
            for start in range(0, count, BATCH):
                batch = positions[start : start + BATCH]
                yield tokenizer.encode(from_uint8(data.images_uint8(batch)))
                bar.update(len(batch))

    StaticTables.fit(pyramids(), tokenizer.spec).save(folder)
    print(f"tables of {count} training images: {folder / TABLES_FILE}")


def evaluate(options: argparse.Namespace) -> None:
    """Rates and distortions of held-out images."""
    check_plots()
    codec, pipeline = open_codec(options.model, options.overlap)
    if options.images:
        images = [decode_rgb(str(path)) for path in options.images][: options.count]
    else:
        data = load_dataset(_data(options, codec.image_tokenizer), train=False)
        positions = spread(len(data), min(len(data), options.count or len(data)))
        images = to_pil(from_uint8(data.images_uint8(positions)))
    modes: list[Mode] = ["fixed"]
    modes += ["static"] if codec.tables is not None else []
    modes += ["model"] if pipeline is not None else []
    points = []
    for point in own_points(codec, images, options.modes or modes, labels=options.labels):
        points.append(point)
        print(table([point]).splitlines()[-1])
    points += other_points(images)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "rates.md", table(points) + "\n")
    write_csv(points, folder / "rates.csv")
    save_figure(draw(points), folder / "rates.png")
    print(f"{len(images)} images; table, CSV and plot: {folder}")


def _labels(
    options: argparse.Namespace, pipeline: Pipeline | None, count: int
) -> list[int] | Guess | None:
    if options.labels is None:
        return None
    if options.mode != "model" or pipeline is None:
        raise ValueError(f"--labels are for mode 'model' and a generator, mode is {options.mode!r}")
    if options.labels == "guess":
        return "guess"
    labels = [parse_label(name, pipeline) for name in options.labels.split(",")]
    return labels * count if len(labels) == 1 else labels


def open_models(source: str) -> tuple[ImageTokenizer, Pipeline | None]:
    """The tokenizer of a folder or Hub id, and its pipeline if it has a generator."""
    folder = Path(source)
    is_tokenizer = folder.is_dir() and not (folder / NextScaleGenerator.folder_name).is_dir()
    if is_tokenizer:
        return ImageTokenizer.from_pretrained(source), None
    pipeline = Pipeline.from_pretrained(source)
    return pipeline.image_tokenizer, pipeline


def open_codec(source: str, overlap: int | None) -> tuple[ImageCodec, Pipeline | None]:
    """The codec of a folder or Hub id, with all modes that it has the parts for."""
    tokenizer, pipeline = open_models(source)
    tables = None
    folder = _tokenizer_folder(source)
    if (folder / TABLES_FILE).is_file():
        tables = StaticTables.load(folder, tokenizer.spec)
    generator = None if pipeline is None else pipeline.generator
    return ImageCodec(tokenizer, generator, tables, overlap=overlap), pipeline


def _tokenizer_folder(source: str) -> Path:
    """Where the tables lie."""
    inner = Path(source) / ImageTokenizer.folder_name
    return inner if inner.is_dir() else Path(source)


def _data(options: argparse.Namespace, tokenizer: ImageTokenizer) -> DataConfig:
    if options.data is None:
        raise ValueError("say which images: --data PATH")
    return DataConfig(path=options.data, image_size=tokenizer.config.image_size)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name) for name in ("encode", "decode", "fit", "evaluate")}
    for command in made.values():
        command.add_argument("model", help="tokenizer, pipeline or run folder, or a Hub id")
    for name in ("encode", "decode", "evaluate"):
        made[name].add_argument("--overlap", type=int, help="pixels that tiles share (side / 8)")
    made["encode"].add_argument("images", nargs="+", help="image files of any size")
    made["encode"].add_argument("--out", required=True, help="file to write")
    made["encode"].add_argument("--mode", choices=MODES, default="fixed")
    made["encode"].add_argument(
        "--labels", help='classes for mode model, one or one an image: cat,dog; or "guess"'
    )
    made["decode"].add_argument("file", help="what encode wrote")
    made["decode"].add_argument("--out", required=True, help="folder for PNGs")
    made["decode"].add_argument("--scales", type=int, help="decode the first so many scales only")
    for name in ("fit", "evaluate"):
        made[name].add_argument("--data", help="folder or Hub name, as data.path of a training")
        made[name].add_argument("--count", type=int, help="images, spread evenly over all")
    made["evaluate"].add_argument("--images", nargs="+", help="image files instead of --data")
    made["evaluate"].add_argument("--modes", nargs="+", choices=MODES)
    made["evaluate"].add_argument("--labels", choices=["guess"], help="of mode model")
    made["evaluate"].add_argument("--out", required=True, help="folder for table, CSV and plot")
    return parser


if __name__ == "__main__":
    run_program(main)
