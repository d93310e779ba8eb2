"""The console command: `lambda24 PROGRAM ...` runs `scripts/PROGRAM.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from lambda24.common.command_line import run_program

PROGRAMS = {
    "quickstart": "train, sample and measure on handwritten digits, in minutes",
    "train-tokenizer": "stage 1: images to token pyramids and back",
    "train-generator": "stage 2: a next-scale transformer over the tokens",
    "extract-tokens": "encode a training set once for stage 2",
    "sample": "draw images, or edit one",
    "playground": "a local page to try models",
    "evaluate-tokenizer": "PSNR, SSIM, rFID and code usage",
    "evaluate-generator": "gFID, Inception Score, precision and recall",
    "evaluate-images": "the same of images from anywhere",
    "compress": "an image codec: files to tokens and back",
    "fuzz-codec": "damage files of coded images: none may give wrong ones",
    "sweep": "try sampling settings",
    "plot-run": "curves and pictures of run folders",
    "compare-quantizers": "one autoencoder around each quantizer",
    "preset-table": "sizes and estimated costs of the presets",
    "fuzz-files": "damage what programs read back, and see it refused",
    "benchmark": "speed of search, heads, training steps and sampling",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program named first with the arguments behind it; None is the command line's.

    Raises:
        ValueError: no such program.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, PROGRAMS))
        print("usage: lambda24 PROGRAM [ARGUMENTS], with --help for those of a program\n")
        print("\n".join(f"  {name:{width}}  {line}" for name, line in PROGRAMS.items()))
        return
    name, *rest = arguments
    if name not in PROGRAMS:
        raise ValueError(f"program must be one of {', '.join(PROGRAMS)}, got {name!r}")
    sys.argv[0] = f"lambda24 {name}"  # what argparse calls it
    import_module(f"lambda24.scripts.{name.replace('-', '_')}").main(rest)


def console() -> None:
    """Entry point of the installed command."""
    run_program(main)


if __name__ == "__main__":
    console()
