"""Encodes a training set once: `python scripts/extract_tokens.py GENERATOR.yaml tokens=FOLDER`.

Takes the config of `train_generator.py` with the same overrides; the same command trains from the
tokens then. Stopped, it goes on where it was. Under `accelerate launch` processes share the shards.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm import tqdm

from lambda24.common.command_line import run_program
from lambda24.common.config import load_config
from lambda24.common.training.launch import resolve_precision
from lambda24.generator.settings import GeneratorTrainingConfig
from lambda24.tokenizer import ImageTokenizer
from lambda24.tokenizer.token_cache import make_plan, start_cache, write_shards


def main(argv: Sequence[str] | None = None) -> int:
    """Returns how many shards this process made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", help="YAML file, see configs/generator")
    parser.add_argument("overrides", nargs="*", help="key=value; tokens=FOLDER is needed")
    parser.add_argument(
        "--variants",
        type=int,
        help="random crops, moves and bends of an image (data.crop: random or data.augment)",
    )
    parser.add_argument("--shard-size", type=int, default=4096, help="images of a shard")
    parser.add_argument("--batch-size", type=int, default=64, help="images encoded at a time")
    options = parser.parse_intermixed_args(argv)
    for name in ("variants", "shard_size", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    config = load_config(GeneratorTrainingConfig, options.config, options.overrides)
    if config.tokens is None:
        raise ValueError("tokens: missing, the folder to write is required")
    state = PartialState()
    image_tokenizer = ImageTokenizer.from_pretrained(config.tokenizer).to(state.device)
    precision = resolve_precision(config.loop.precision)
    plan, dataset = make_plan(
        image_tokenizer,
        config.data,
        variants=options.variants,
        shard_size=options.shard_size,
        precision=precision,
    )
    folder = Path(config.tokens)
    if state.is_main_process:
        start_cache(folder, plan)
    state.wait_for_everyone()
    shards = write_shards(
        folder,
        plan,
        image_tokenizer,
        dataset,
        batch_size=options.batch_size,
        rank=state.process_index,
        world_size=state.num_processes,
    )
    autocast = torch.autocast(state.device.type, torch.bfloat16, enabled=precision == "bf16")
    own = range(state.process_index, plan.num_shards, state.num_processes)
    made = 0
    with autocast, tqdm(desc="shards", total=len(own), disable=not state.is_main_process) as bar:
        for shard in shards:
            made += 1
            bar.update(own.index(shard) + 1 - bar.n)  # those before it were there
        bar.update(len(own) - bar.n)
    state.wait_for_everyone()
    return made


if __name__ == "__main__":
    run_program(main)
