"""The cache of teacher features: found means equal, and nothing stale is ever found."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lambda24.common.config import from_dict
from lambda24.tokenizer.teachers.alignment import AlignmentConfig, VFAlignment
from lambda24.tokenizer.teachers.cache import CachedTeacher, FeatureCache
from lambda24.tokenizer.teachers.networks import EfficientNetLite0Teacher, Teacher, build_teacher


class Patches(Teacher):
    """One convolution, from patches of 8 pixels."""

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features


def teacher(size: int = 32) -> Teacher:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 6, 8, stride=8)
    return Patches(network, size=size, mean=(0.5,) * 3, std=(0.5,) * 3, precision="fp32")


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def cached(folder: Path, base: Teacher | None = None, *, max_gib: float = 1.0) -> CachedTeacher:
    return CachedTeacher(base or teacher(), folder, max_gib=max_gib)


def test_features_are_the_teachers_to_half_precision(tmp_path: Path) -> None:
    module, x = cached(tmp_path), images(5)
    exact = module.teacher(x)
    first, second = module(x), module(x)
    torch.testing.assert_close(first, exact, rtol=1e-3, atol=1e-3)
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    assert len(module.cache) == 5


def test_found_features_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = cached(tmp_path), images(4)
    expected = module(x)
    other = cached(tmp_path)  # another process, or a run that goes on
    monkeypatch.setattr(other.teacher, "forward", lambda images: pytest.fail("computed"))
    order = torch.tensor([2, 0, 2, 3])
    assert torch.equal(other(x[order]), expected[order])


def test_features_do_not_depend_on_what_is_known(tmp_path: Path) -> None:
    base = build_teacher(EfficientNetLite0Teacher(size=32, stride=8, precision="fp32"))
    x = images(20)
    whole = cached(tmp_path / "whole", base)(x)
    piecewise = cached(tmp_path / "piecewise", base)
    piecewise(x[3:4])
    piecewise(x[11:18])
    assert torch.equal(piecewise(x), whole)


def test_flips_and_repeats(tmp_path: Path) -> None:
    module, x = cached(tmp_path), images(2)
    features = module(torch.cat([x, x, x.flip(3)]))
    assert torch.equal(features[:2], features[2:4])
    assert not torch.equal(features[:2], features[4:])
    assert len(module.cache) == 4


def test_other_teachers_never_meet(tmp_path: Path) -> None:
    x = images(2)
    cached(tmp_path)(x)
    changed = teacher()
    with torch.no_grad():
        changed.network.weight.mul_(1.1)
    for other in (cached(tmp_path, changed), cached(tmp_path, teacher(64))):
        assert len(other.cache) == 0
        torch.testing.assert_close(other(x), other.teacher(x), rtol=1e-3, atol=1e-3)
    assert len(list(tmp_path.glob("*.sqlite"))) == 3


def test_file_of_another_identity_is_refused(tmp_path: Path) -> None:
    first = FeatureCache(tmp_path, {"weights": "a"}, (1,), max_gib=1.0)
    second = FeatureCache(tmp_path, {"weights": "b"}, (1,), max_gib=1.0)
    second.path.unlink()
    first.path.rename(second.path)
    with pytest.raises(ValueError, match="holds features of"):
        FeatureCache(tmp_path, {"weights": "b"}, (1,), max_gib=1.0)


def test_full_cache_stays_readable(tmp_path: Path) -> None:
    module, x = cached(tmp_path, max_gib=1e-9), images(3)
    with pytest.warns(UserWarning, match="no longer added"):
        features = module(x)
    torch.testing.assert_close(features, module.teacher(x), rtol=1e-3, atol=1e-3)
    assert torch.equal(module(x), features)  # warned once
    assert len(module.cache) == 0


def test_alignment_through_the_cache(tmp_path: Path) -> None:
    config = {"teacher": {"kind": "efficientnet_lite0", "size": 32, "precision": "fp32"}}
    latent, x = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1)), images(2)
    results = []
    for extra in ({}, {"cache": str(tmp_path)}, {"cache": str(tmp_path)}):
        torch.manual_seed(0)
        module = VFAlignment(from_dict(AlignmentConfig, {**config, **extra}), 4)
        assert set(module.state_dict()) == {"projection.weight"}
        results.append(module(latent, x))
    for name in ("vf_cosine", "vf_distance"):
        torch.testing.assert_close(results[1][name], results[0][name], rtol=1e-2, atol=1e-3)
        assert torch.equal(results[1][name], results[2][name])
