import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lambda24.common.config import from_dict
from lambda24.common.data.dataset import load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.metrics.distances import feature_stats, frechet_distance
from lambda24.common.metrics.extractors import EfficientNetLite0Features, FeatureExtractor
from lambda24.common.metrics.reference import TensorImages, extract_features
from lambda24.sampling.evaluation.measure import MetricsConfig, compare_features, evaluate_images
from lambda24.sampling.evaluation.result import EvaluationResult, markdown

CONFIG = MetricsConfig(
    extractor=EfficientNetLite0Features(size=32),
    kid_subsets=10,
    kid_subset_size=50,
    max_reference=150,
)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def digits() -> Tensor:
    dataset = load_dataset(DataConfig(path="digits", image_size=16), train=True)
    return dataset.images_uint8(range(400))


@pytest.fixture(scope="module")
def same(digits: Tensor) -> EvaluationResult:
    return evaluate_images(digits[:200], digits[200:], CONFIG)


def test_equal_distributions_beat_damaged_ones(digits: Tensor, same: EvaluationResult) -> None:
    noise = torch.randint(0, 60, (200, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    noisy = (digits[:200].int() + noise).clamp(0, 255).to(torch.uint8)
    damaged = evaluate_images(noisy, digits[200:], CONFIG)
    assert damaged.gfid > 2 * same.gfid
    assert damaged.kid_mean > same.kid_mean + 3 * same.kid_std
    assert abs(same.kid_mean) < 3 * same.kid_std
    assert damaged.coverage < same.coverage
    assert damaged.precision < same.precision


def test_identical_sets_score_perfectly(digits: Tensor) -> None:
    result = evaluate_images(digits[:150], digits[:150], CONFIG)
    assert result.gfid == pytest.approx(0, abs=1e-3)
    assert (result.precision, result.recall, result.coverage) == (1, 1, 1)
    assert (result.clipped_density, result.clipped_coverage) == (1, 1)


def test_order_of_the_images_does_not_matter(digits: Tensor, same: EvaluationResult) -> None:
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    shuffled = evaluate_images(digits[:200][order], digits[200:], CONFIG)
    assert shuffled.inception_score == pytest.approx(same.inception_score, rel=1e-5)
    assert shuffled.gfid == pytest.approx(same.gfid, rel=1e-5)
    assert shuffled.precision == same.precision
    assert shuffled.recall == same.recall


def test_missing_classes_cost_recall(digits: Tensor) -> None:
    labels = load_dataset(DataConfig(path="digits", image_size=16), train=True).labels[:400]
    few = digits[labels < 3]
    result = evaluate_images(few, digits, CONFIG)
    assert result.recall < 0.8
    assert result.coverage <= 0.7
    assert result.precision > 0.9


def test_protocol_is_complete(same: EvaluationResult) -> None:
    protocol = same.protocol
    assert protocol["extractor"]["name"] == "efficientnet-lite0"
    assert protocol["extractor"]["resize"] == "bilinear, antialiased, to 32"
    assert protocol["num_images"] == 200
    assert protocol["reference"] == {"num_images": 200, "num_neighbour_images": 150}
    assert protocol["metrics"]["kid_subset_size"] == 50
    assert set(protocol["versions"]) >= {"torch", "torch-fidelity"}
    assert len(protocol["warnings"]) == 2
    assert "200 generated images for 1280 features" in protocol["warnings"][0]
    assert set(same.errors) == {"precision", "recall", "coverage"}
    low, high = same.intervals["recall"]
    assert (low + high) / 2 == pytest.approx(same.recall)
    assert (high - low) / 2 == pytest.approx(1.96 * same.errors["recall"], rel=1e-3)
    assert same.sfid is None


def test_bootstrap_errors_are_opt_in(digits: Tensor) -> None:
    config = from_dict(
        MetricsConfig,
        {
            "extractor": {"kind": "efficientnet_lite0", "size": 32},
            "kid_subsets": 2,
            "kid_subset_size": 20,
            "num_resamples": 2,
        },
    )
    result = evaluate_images(digits[:40], digits[40:80], config)
    assert result.errors["gfid"] > 0
    metrics = {"gfid", "inception_score", "precision", "recall", "density", "coverage", "kid_mean"}
    metrics |= {"clipped_density", "clipped_coverage"}
    assert set(result.errors) == set(result.intervals) == metrics
    # Two groups: Student's t with one degree of freedom.
    low, high = result.intervals["gfid"]
    assert (high - low) / 2 == pytest.approx(12.706 * result.errors["gfid"], rel=1e-3)
    subsets = result.kid_std / math.sqrt(2)
    assert result.errors["kid_mean"] > subsets
    assert f"| {result.gfid:.2f} ± {(high - low) / 2:.2f} | - |" in markdown({"ours": result})
    assert "jackknife leaving out each of 2" in result.protocol["definitions"]["intervals"]
    with pytest.raises(ValueError, match="0 or at least 2, got 1"):
        from_dict(MetricsConfig, {"num_resamples": 1})


def test_json_and_markdown(same: EvaluationResult, tmp_path: Path) -> None:
    same.save(tmp_path / "evaluation.json")
    loaded = json.loads((tmp_path / "evaluation.json").read_text())
    assert loaded["gfid"] == same.gfid
    assert loaded["protocol"]["extractor"] == same.protocol["extractor"]
    found = EvaluationResult.from_dict(loaded)
    assert (found.clipped_density, found.kid_mean) == (same.clipped_density, same.kid_mean)
    older = {name: value for name, value in loaded.items() if not name.startswith("clipped")}
    assert math.isnan(EvaluationResult.from_dict(older).clipped_coverage)
    header, rule, row = markdown({"ours": same}).splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row.startswith(f"| ours | {same.gfid:.2f} |")
    assert "efficientnet-lite0 (bilinear, antialiased, to 32)" in row


def test_sizes_and_counts_that_do_not_fit(digits: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(3, 16, 16\) and \(3, 8, 8\)"):
        evaluate_images(digits, digits[..., :8, :8], CONFIG)
    with pytest.raises(ValueError, match=r"kid_subset_size 50 .* 30 and 150"):
        evaluate_images(digits[:30], digits[200:], CONFIG)
    with pytest.raises(ValueError, match="uint8"):
        evaluate_images(digits[:60].float(), digits[200:].float(), CONFIG)


class Corners(torch.nn.Module):
    """Corner pixels as pooled features, the first row as spatial ones."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images[:, :, 5, 5].float(), images[:, 0, 8].float()


def test_sfid_is_the_distance_of_the_spatial_features(digits: Tensor) -> None:
    extractor = FeatureExtractor(Corners(), {"name": "corners", "resize": "none"}, ("spatial",))
    generated, real = digits[:200], digits[200:]
    features = extract_features(generated.split(64), extractor)
    result = compare_features(features, TensorImages(real), extractor, CONFIG)
    stats = [feature_stats(images[:, 0, 8].float()) for images in (generated, real)]
    assert result.sfid == pytest.approx(frechet_distance(*stats), rel=1e-6)
    assert result.sfid > result.gfid > 0
    assert f"| {result.gfid:.2f} | {result.sfid:.2f} | - |" in markdown({"ours": result})
