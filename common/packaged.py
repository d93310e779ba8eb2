"""Trained models that come with the package: pipeline folders below `lambda24.models`, by name."""

from __future__ import annotations

from pathlib import Path

NAMES = ("digits", "cifar10")
MODELS = Path(__file__).resolve().parents[1] / "models"  # beside `common` in a checkout, too


def packaged_folder(name: str) -> Path | None:
    """The folder of a packaged model; None if no model has this name.

    Raises:
        ValueError: a model of this name that the installation does not hold.
    """
    if name not in NAMES:
        return None
    folder = MODELS / name
    if not folder.is_dir():
        held = [other for other in NAMES if (MODELS / other).is_dir()]
        raise ValueError(
            f"the model {name!r} is not part of this installation, which holds: "
            f"{', '.join(held) or 'none'}"
        )
    return folder
