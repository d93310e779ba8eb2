"""The README.md of a pipeline folder: what the model is, what made it, how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lambda24.generator.model import NextScaleGenerator
from lambda24.tokenizer.tokens import TokenSpec

TRAINING_FILE = "training.json"
MAX_NAMES = 50

HEADER = """---
library_name: lambda24
pipeline_tag: unconditional-image-generation
tags:
- class-conditional-image-generation
- next-scale-prediction
---
"""

USAGE = """```python
from lambda24.sampling import Pipeline

pipeline = Pipeline.from_pretrained("FOLDER_OR_HUB_ID")
images = pipeline(labels=[{labels}], seeds=[0, 1])  # PIL images
```"""


def model_card(
    generator: NextScaleGenerator,
    image_size: int,
    sampling: Mapping[str, Any],
    training: Mapping[str, Any],
    digest: str,
) -> str:
    """Markdown with the front matter of the Hugging Face Hub.

    Args:
        sampling: default settings, plain data.
        training: what is known of the training: `config`, a run's plain config, and `metrics`, the
            result file of an evaluation. Unknown parts are said to be unknown.
        digest: of the weights; metrics of others are left out. Needed where there are metrics.
    """
    names = [repr(name) for name in generator.label_names] or ["0", "1"]
    config, metrics = training.get("config"), training.get("metrics")
    sections = [
        f"{HEADER}\n# Class-conditional images of {image_size} x {image_size} pixels",
        "A next-scale transformer over a multi-scale tokenizer: it predicts all tokens of a scale "
        "at once, coarse to fine.",
        USAGE.format(labels=", ".join((names * 2)[:2])),
        "## Model\n\n" + _model(generator, generator.spec),
        "## Classes\n\n" + _classes(generator.label_names, generator.num_classes),
        "## Default sampling settings\n\n" + _block("json", json.dumps(sampling, indent=2)),
        "## Training data\n\n" + _data(config),
        "## Metrics\n\n" + _metrics(metrics, digest),
    ]
    if config:
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).strip()
        sections.append("## Training configuration\n\n" + _block("yaml", text))
    return "\n\n".join(sections) + "\n"


def read_training(folder: Path) -> dict[str, Any]:
    """What a pipeline folder says of its training, see `model_card`.

    Taken from its `training.json`, or from a run's `config.yaml` and `evaluation.json`.

    Raises:
        ValueError: a file that cannot be read.
    """
    try:
        if (folder / TRAINING_FILE).is_file():
            stored: dict[str, Any] = json.loads((folder / TRAINING_FILE).read_text("utf-8"))
            return stored
        training = {}
        if (folder / "config.yaml").is_file():
            training["config"] = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
        if (folder / "evaluation.json").is_file():
            training["metrics"] = json.loads((folder / "evaluation.json").read_text("utf-8"))
        return training
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{folder}: what it says of its training is damaged: {error}") from error


def _model(generator: NextScaleGenerator, spec: TokenSpec) -> str:
    count = sum(parameter.numel() for parameter in generator.parameters())
    config = generator.config
    return _table(
        {
            "generator": f"{count:,} parameters, depth {config.depth}, width {config.width}",
            "head": config.head.kind,
            "scales": ", ".join(map(str, spec.scales)),
            "tokens of an image": f"{spec.length}, {spec.bits_per_image:,.0f} bits",
            "codes": " x ".join(f"{size:,}" for size in spec.codebook_sizes),
        }
    )


def _classes(names: Sequence[str], num_classes: int) -> str:
    if not names:
        return f"{num_classes} classes without names."
    shown = ", ".join(names[:MAX_NAMES])
    return shown + (f", ... ({len(names)} in all)" if len(names) > MAX_NAMES else "")


def _data(config: Mapping[str, Any] | None) -> str:
    if not config or "data" not in config:
        return "Not recorded."
    return _table({key: str(value) for key, value in config["data"].items() if value is not None})


def _metrics(metrics: Mapping[str, Any] | None, digest: str) -> str:
    if not metrics:
        return "Not measured."
    protocol = metrics.get("protocol") or {}
    measured = protocol.get("model")
    if measured not in (None, digest):
        return (
            f"Not measured. The evaluation found with this model is of other weights: {measured}, "
            f"not {digest}."
        )
    numbers = {
        name: f"{value:.6g}"
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    text = _table(numbers)
    if measured is None:
        text += "\n\nThe evaluation does not say which weights it measured."
    if protocol:
        text += "\n\nProtocol:\n\n" + _block("json", json.dumps(protocol, indent=2))
    return text


def _table(rows: Mapping[str, str]) -> str:
    cells = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *cells])


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
