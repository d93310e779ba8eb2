import pytest
import torch

from lambda24.generator.objective import (
    GuardConfig,
    LimitError,
    accuracies,
    check_limits,
    scale_weights,
)
from lambda24.tokenizer import TokenSpec

SPEC = TokenSpec(scales=(1, 2, 4), codebook_sizes=(10,), code_dim=3, latent_size=4)


def test_scale_weights() -> None:
    assert torch.equal(scale_weights("uniform", SPEC), torch.ones(21))
    weights = scale_weights("inverse_side", SPEC)
    assert weights.mean() == pytest.approx(1)
    assert (weights[0] / weights[1]) == pytest.approx(2)
    assert (weights[0] / weights[20]) == pytest.approx(4)


def test_accuracy_weighs_scales_by_length() -> None:
    right = [[torch.tensor([True])], [torch.tensor([True, False])], [torch.zeros(8).bool()]]
    found = accuracies(right, SPEC)
    assert found["accuracy_1"] == 0.5
    assert found["accuracy"] == pytest.approx((1 + 0.5 * 4) / 21)


def test_limits() -> None:
    scalars = {"gradient_norm": torch.tensor(5.0), "abs_log_z": torch.tensor(30.0)}
    check_limits(GuardConfig(), scalars)
    check_limits(GuardConfig(gradient_norm=5.0, abs_log_z=31), scalars)
    with pytest.raises(LimitError, match=r"gradient_norm is 5, guard\.gradient_norm is 4"):
        check_limits(GuardConfig(gradient_norm=4), scalars)
    with pytest.raises(LimitError, match=r"abs_log_z is 30, guard\.abs_log_z is 20"):
        check_limits(GuardConfig(abs_log_z=20), scalars)
