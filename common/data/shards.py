"""One split of a streamed Hugging Face dataset (parquet, webdataset .tar, ...), shard by shard.

A shard is a file; where there are fewer files than asked for, parquet files are split into their
row groups. Rows come in the order of the file, images undecoded, from any row on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lambda24.common.data.sources import IMAGE_KEYS, LABEL_KEYS, find_column, open_splits

ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Row:
    """An encoded image (bytes, or the path of a file; None: the row is empty) and its label."""

    content: bytes | str | None
    label: int


class ShardedSplit:
    """Rows of the shards `numbers` of a split.

    Args:
        rows: streaming `datasets.IterableDataset` with undecoded images.
        numbers: shards of `rows` that belong to this object.
    """

    def __init__(
        self,
        rows: Any,
        numbers: Sequence[int],
        *,
        image_key: str,
        label_key: str,
        label_names: tuple[str, ...],
        path: str,
    ) -> None:
        self._rows, self._numbers, self._path = rows, tuple(numbers), path
        self._image_key, self._label_key = image_key, label_key
        self.label_names = label_names
        self._index = {name: number for number, name in enumerate(label_names)}

    @property
    def num_shards(self) -> int:
        return len(self._numbers)

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        """Rows of one shard from row `start` on; nothing is decoded to get there.

        Raises:
            ValueError: a label that is none of `label_names`.
        """
        rows = self._rows.shard(num_shards=self._rows.num_shards, index=self._numbers[shard])
        if start:
            rows = rows.skip(start)
        # Not `iter(rows)`: inside a worker process that would split the shard over the workers.
        for batch in rows.iter(batch_size=ROWS_AT_ONCE):
            for cell, label in zip(batch[self._image_key], batch[self._label_key], strict=True):
                content = None if cell is None else cell["bytes"] or cell["path"]
                yield Row(content, self._label(label, shard))

    def _label(self, value: Any, shard: int) -> int:
        label = self._index.get(value, -1) if isinstance(value, str) else int(value)
        if not 0 <= label < len(self.label_names):
            raise ValueError(
                f"data.path {self._path!r}: shard {shard} has label {value!r} "
                f"(allowed: 0 to {len(self.label_names) - 1}, or a label name)"
            )
        return label


def open_shards(
    path: str,
    *,
    split: str,
    eval_splits: Sequence[str],
    image_key: str | None,
    label_key: str | None,
    label_names: tuple[str, ...] | None,
    min_shards: int,
) -> tuple[ShardedSplit, ShardedSplit]:
    """The shards to train on, at least `min_shards`, and those to evaluate on.

    Args:
        eval_splits: the first that exists is evaluated on; if none does, the last shard of `split`
            is held out.

    Raises:
        ValueError: no such data, split or column, unknown label names, or too few shards.
    """
    import datasets

    splits = open_splits(path, streaming=True)
    if split not in splits:
        raise ValueError(f"data.split: got {split!r}, but {path!r} has only: {', '.join(splits)}")
    image_key = find_column(path, splits[split], "image", image_key, datasets.Image, IMAGE_KEYS)
    label_key = find_column(
        path, splits[split], "label", label_key, datasets.ClassLabel, LABEL_KEYS
    )
    names = getattr(splits[split].features[label_key], "names", None) or label_names
    if not names:
        raise ValueError(
            f"data.streaming: column {label_key!r} of {path!r} does not name its classes; give "
            f"data.streaming.label_names or data.streaming.num_classes"
        )

    def part(rows: Any, numbers: Sequence[int]) -> ShardedSplit:
        undecoded = rows.cast_column(image_key, datasets.Image(decode=False))
        return ShardedSplit(
            undecoded,
            numbers,
            image_key=str(image_key),
            label_key=str(label_key),
            label_names=tuple(names),
            path=path,
        )

    training = splits[split]
    other = next((name for name in eval_splits if name in splits and name != split), None)
    needed = min_shards + (other is None)
    if training.num_shards < needed and hasattr(training, "reshard"):  # newer versions have it
        training = training.reshard()
    count = training.num_shards
    if count < needed:
        raise ValueError(
            f"data.streaming.lanes: split {split!r} of {path!r} has {count} shards, which is less "
            f"than {min_shards} lanes" + ("" if other else " and one shard to evaluate on")
        )
    if other is None:
        return part(training, range(count - 1)), part(training, [count - 1])
    evaluation = splits[other]
    return part(training, range(count)), part(evaluation, range(evaluation.num_shards))
