"""Settings of labelled image datasets: what to read and how to cut it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lambda24.common.config import Size, config_class
from lambda24.common.data.augmentation import AugmentConfig
from lambda24.common.data.cut import Cut
from lambda24.common.data.streaming import StreamingConfig


def _switch(value: Any) -> Any:
    """`streaming: true` is all defaults, `false` is none."""
    if isinstance(value, bool):
        return StreamingConfig() if value else None
    return value


@config_class
class DataConfig:
    """What to read and how to cut it.

    Args:
        path: "digits", a folder of class folders, a folder with parquet files, or a Hub dataset.
        split: training split.
        eval_split: None takes a validation or test split if there is one, else holds out
            `eval_fraction` of `split`, stratified by class.
        image_size: side of the square crop, in pixels.
        flip: mirror half of the training images.
        augment: small random moves and bends of training images; None: none.
        crop: where training crops are taken; evaluation always takes the centre.
        resize: the shorter side becomes `resize * image_size` before the crop; None: no resizing,
            and an image smaller than the crop is an error.
        image_key: image column; None detects it.
        label_key: label column; None detects it.
        num_workers: processes that decode.
        max_images: use only so many images of each split, a fixed random choice.
        streaming: read shards (parquet, webdataset .tar) in order instead of indexing them, from
            disk or the Hub; `true` takes the defaults. Without an evaluation split the last shard
            is held out.
    """

    path: Annotated[str, Field(min_length=1)] = "digits"
    split: str = "train"
    eval_split: str | None = None
    image_size: Size = 32
    flip: bool = False
    augment: AugmentConfig | None = None
    crop: Literal["center", "random"] = "center"
    resize: Annotated[float, Field(ge=1)] | None = 1.0
    image_key: str | None = None
    label_key: str | None = None
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    max_images: Annotated[int, Field(ge=1)] | None = None
    streaming: Annotated[StreamingConfig | None, BeforeValidator(_switch)] = None

    def __post_init__(self) -> None:
        if self.streaming is not None and self.max_images is not None:
            raise ValueError(
                f"max_images {self.max_images} needs an index, which data.streaming does not make; "
                "data.streaming.max_eval_images limits the evaluation"
            )

    @property
    def cut(self) -> Cut:
        """What training does to an image."""
        return Cut(self.image_size, self.resize, self.crop == "random", self.augment, self.flip)
