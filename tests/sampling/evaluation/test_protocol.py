import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from lambda24.common.config import from_dict, load_config
from lambda24.common.data.dataset import ImageDataset, load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.images import to_pil
from lambda24.common.metrics.extractors import EfficientNetLite0Features
from lambda24.sampling.evaluation.measure import MetricsConfig, evaluate_images
from lambda24.sampling.evaluation.protocol import (
    EvaluationConfig,
    EvaluationRun,
    evaluate_generator,
)
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.settings import SamplingConfig

CONFIGS = Path(__file__).parents[3] / "configs" / "evaluation"
METRICS = MetricsConfig(
    extractor=EfficientNetLite0Features(size=32), kid_subsets=5, kid_subset_size=20
)


class RealImages:
    """A perfect generator: image with seed s and label y is a fixed real image of class y."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset
        self.generator = SimpleNamespace(num_classes=10)
        self.image_tokenizer = SimpleNamespace(config=SimpleNamespace(image_size=16))
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.sampling = SamplingConfig(guidance_scale=1.5)
        self.calls: list[tuple[list[int], list[int]]] = []

    def digest(self) -> str:
        return "weights"

    def image(self, label: int, seed: int) -> Tensor:
        members = (self.dataset.labels == label).nonzero().flatten()
        return self.dataset.images_uint8([int(members[seed // 10 % len(members)])])

    def __call__(
        self, labels: Sequence[int], seeds: Sequence[int], **options: Any
    ) -> list[Image.Image]:
        self.calls.append((list(labels), list(seeds)))
        self.options = options
        pairs = zip(labels, seeds, strict=True)
        return to_pil(torch.cat([self.image(label, seed) for label, seed in pairs]))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    return load_dataset(DataConfig(path="digits", image_size=16), train=False)


def run(pipeline: RealImages, dataset: ImageDataset, config: EvaluationConfig) -> Any:
    return evaluate_generator(cast(Pipeline, pipeline), dataset, config, part="eval")


def test_labels_and_seeds_follow_from_the_position(dataset: ImageDataset) -> None:
    pipeline = RealImages(dataset)
    config = EvaluationConfig(num_images=40, first_seed=100, batch_size=16, metrics=METRICS)
    run(pipeline, dataset, config)
    labels = [label for call in pipeline.calls for label in call[0]]
    seeds = [seed for call in pipeline.calls for seed in call[1]]
    assert labels == [index % 10 for index in range(40)]
    assert seeds == list(range(100, 140))
    assert [len(call[0]) for call in pipeline.calls] == [16, 16, 8]


def test_result_is_that_of_the_images_whatever_the_batch(dataset: ImageDataset) -> None:
    pipeline = RealImages(dataset)
    images = torch.cat([pipeline.image(index % 10, index) for index in range(60)])
    expected = evaluate_images(images, dataset.images_uint8(range(len(dataset))), METRICS)
    for batch_size in (7, 60):
        config = EvaluationConfig(num_images=60, batch_size=batch_size, metrics=METRICS)
        result = run(pipeline, dataset, config)
        assert result.gfid == pytest.approx(expected.gfid, rel=1e-4)
        assert result.inception_score == pytest.approx(expected.inception_score, rel=1e-4)
        assert result.precision == expected.precision == 1
        assert result.recall == expected.recall


def test_protocol_says_what_was_sampled(dataset: ImageDataset) -> None:
    pipeline = RealImages(dataset)
    result = run(pipeline, dataset, EvaluationConfig(num_images=30, first_seed=7, metrics=METRICS))
    protocol = json.loads(json.dumps(result.protocol))
    assert protocol["num_images"] == 30
    assert protocol["images_per_class"] == [3, 3]
    assert protocol["seeds"] == "image i has seed 7 + i"
    assert protocol["sampling"]["guidance_scale"] == 1.5
    assert (protocol["batch_size"], protocol["dtype"]) == (64, "torch.float32")
    assert protocol["model"] == "weights"
    assert protocol["reference"]["fingerprint"] == dataset.fingerprint
    assert protocol["reference"]["part"] == "eval"
    assert protocol["reference"]["data"]["path"] == "digits"
    assert protocol["reference"]["num_images"] == len(dataset)
    own = EvaluationConfig(
        num_images=30, sampling=SamplingConfig(guidance_scale=3.0), metrics=METRICS
    )
    assert run(pipeline, dataset, own).protocol["sampling"]["guidance_scale"] == 3.0
    assert pipeline.options["config"].guidance_scale == 3.0


def test_unequal_class_counts_are_refused_unless_told(dataset: ImageDataset) -> None:
    pipeline = RealImages(dataset)
    with pytest.raises(ValueError, match=r"num_images 34 .* 10 classes; choose 30"):
        run(pipeline, dataset, EvaluationConfig(num_images=34, metrics=METRICS))
    assert not pipeline.calls
    config = EvaluationConfig(num_images=34, allow_unequal_classes=True, metrics=METRICS)
    assert run(pipeline, dataset, config).protocol["images_per_class"] == [3, 4]
    few = replace(METRICS, kid_subset_size=6)
    with pytest.raises(ValueError, match=r"num_images 6 .* 10 classes; choose 10 or"):
        run(pipeline, dataset, EvaluationConfig(num_images=6, metrics=few))
    config = EvaluationConfig(num_images=6, allow_unequal_classes=True, metrics=few)
    assert run(pipeline, dataset, config).protocol["images_per_class"] == [0, 1]


@pytest.mark.parametrize(
    ("num_images", "changes", "message"),
    [
        (
            30,
            {"kid_subset_size": 31},
            r"^eval\S+s\.kid_subset_size 31 exceeds num_images 30",
        ),
        (40, {"max_reference": 30, "kid_subset_size": 31}, "31 exceeds max_reference 30"),
        (500, {"kid_subset_size": 400}, r"400 exceeds the reference's number of images, \d{3}$"),
        (
            40,
            {"num_resamples": 21},
            r"s\.num_resamples 21 leaves less than 2 .* num_images 40",
        ),
        (
            30,
            {"neighbors": 30},
            r"^eval\S+s\.neighbors 30 is not less than num_images 30",
        ),
        (30, {"max_reference": 25, "density_neighbors": 25}, "is not less than max_reference 25"),
        (20, {"neighbors": 10, "num_resamples": 2}, "less than num_images 20 without one of num_r"),
    ],
)
def test_counts_that_cannot_work_are_refused_before_anything_is_sampled(
    dataset: ImageDataset, num_images: int, changes: dict[str, int], message: str
) -> None:
    pipeline = RealImages(dataset)
    config = EvaluationConfig(num_images=num_images, metrics=replace(METRICS, **changes))
    with pytest.raises(ValueError, match=message):
        run(pipeline, dataset, config)
    assert not pipeline.calls


def test_config_for_small_folders() -> None:
    """Works from 100 images on both sides, with weights that need no download."""
    run = load_config(EvaluationRun, CONFIGS / "folder.yaml", ["data.path=my_images"])
    assert isinstance(run.evaluation.metrics.extractor, EfficientNetLite0Features)
    assert run.evaluation.num_images <= 1000
    run.evaluation.metrics.check(num_images=100, num_reference=100)
    with pytest.raises(ValueError, match=r"^eval\S+s\.kid_subset_size 100 exceeds num_images 99"):
        run.evaluation.metrics.check(num_images=99, num_reference=1000)


def test_seeds_beyond_the_last_one_are_refused_before_anything_is_sampled(
    dataset: ImageDataset,
) -> None:
    pipeline = RealImages(dataset)
    config = EvaluationConfig(num_images=30, first_seed=2**32 - 29, metrics=METRICS)
    with pytest.raises(ValueError, match="first_seed 4294967267 and num_images 30"):
        run(pipeline, dataset, config)
    assert not pipeline.calls


def test_models_that_do_not_fit_the_data_are_refused(dataset: ImageDataset) -> None:
    config = EvaluationConfig(num_images=40, metrics=METRICS)
    pipeline = RealImages(dataset)
    pipeline.generator.num_classes = 5
    with pytest.raises(ValueError, match="has 5 classes, the reference data 10"):
        run(pipeline, dataset, config)
    pipeline = RealImages(dataset)
    pipeline.image_tokenizer.config.image_size = 32
    with pytest.raises(ValueError, match=r"32 pixels, data\.image_size is 16"):
        run(pipeline, dataset, config)


class TwoProcesses:
    """What `Accelerator` offers, for process `rank` of 2; gathers with what the other one kept."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self, rank: int, kept: list[Tensor]) -> None:
        self.process_index, self.kept, self.others = rank, kept, list(kept)
        self.is_main_process = rank == 0

    def gather(self, local: Tensor) -> Tensor:
        if self.process_index == 0:
            self.kept.append(local)
            return torch.cat([local, local])
        return torch.cat([self.others.pop(0), local])

    def main_process_first(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()


def test_two_processes_give_the_images_of_one(dataset: ImageDataset) -> None:
    config = EvaluationConfig(
        num_images=31, batch_size=6, allow_unequal_classes=True, metrics=METRICS
    )
    alone = run(RealImages(dataset), dataset, config)
    kept: list[Tensor] = []
    seeds = []
    for rank in (0, 1):
        pipeline, accelerator = RealImages(dataset), TwoProcesses(rank, kept)
        together = evaluate_generator(
            cast(Pipeline, pipeline), dataset, config, accelerator=cast(Any, accelerator)
        )
        seeds.append([seed for call in pipeline.calls for seed in call[1]])
    assert seeds == [list(range(0, 31, 2)), [*range(1, 31, 2), 30]]
    assert together.gfid == pytest.approx(alone.gfid, rel=1e-4)
    assert together.inception_score == pytest.approx(alone.inception_score, rel=1e-4)
    assert together.recall == alone.recall
    assert together.kid_mean == pytest.approx(alone.kid_mean, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("name", ["cifar10", "digits"])
def test_configs_load(name: str) -> None:
    config = load_config(EvaluationRun, CONFIGS / f"{name}.yaml", ["data.path=digits"])
    assert config.evaluation.num_images % 10 == 0
    published = load_config(
        EvaluationRun, CONFIGS / f"{name}.yaml", ["evaluation.metrics.extractor.kind=inception"]
    )
    assert published.evaluation.metrics.extractor.kind == "inception"


def test_config_errors_name_the_key() -> None:
    with pytest.raises(ValueError, match=r"num_images"):
        from_dict(EvaluationConfig, {"num_images": 1})
    with pytest.raises(ValueError, match=r"metrics\.extractor\.kind: got 'vgg'"):
        from_dict(EvaluationConfig, {"num_images": 10, "metrics": {"extractor": {"kind": "vgg"}}})
