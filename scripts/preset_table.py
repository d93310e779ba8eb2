"""Prints a Markdown table of generator presets: `python scripts/preset_table.py [NAME ...]`.

Parameters, and estimates of memory on one GPU (fp32 states, bf16 activations, nothing sharded, no
temporary buffers) and of training cost (6 N D and attention at an assumed speed). Nothing is
measured, downloaded or trained; the same command prints the same table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lambda24.common.command_line import run_program
from lambda24.common.optim.adamw import OptimizerConfig
from lambda24.common.optim.build import AnyOptimizerConfig, DionConfig, MuonConfig
from lambda24.generator.cost import ASSUMED_TFLOPS
from lambda24.generator.presets import IMAGENET_CLASSES, PRESETS, preset
from lambda24.scripts.reports.presets import preset_table

OPTIMIZERS: dict[str, AnyOptimizerConfig] = {
    "adamw": OptimizerConfig(),
    "dion": DionConfig(),
    "muon": MuonConfig(),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    published = [name for name in PRESETS if preset(name).config.num_classes == IMAGENET_CLASSES]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=published, metavar="NAME")
    parser.add_argument("--images", type=int, default=16, help="of a micro-batch on a GPU")
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="dion")
    parser.add_argument(
        "--tflops", type=float, default=ASSUMED_TFLOPS, help="assumed sustained speed of a GPU"
    )
    options = parser.parse_args(argv)
    optimizer = OPTIMIZERS[options.optimizer]
    print(preset_table(options.names, optimizer, images=options.images, tflops=options.tflops))


if __name__ == "__main__":
    run_program(main)
