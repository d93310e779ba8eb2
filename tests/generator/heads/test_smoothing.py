"""Label smoothing, the Z-loss of several normalisers and the most likely token, for every head."""

import pytest
import torch
from torch import Tensor

from lambda24.generator.heads import (
    BitsHeadConfig,
    CategoricalHeadConfig,
    CoordinatesHeadConfig,
    Head,
    HeadConfig,
    LatticeHeadConfig,
    build_head,
)
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.softmax.groups import best_code_score
from lambda24.tokenizer.lattices.softmax.scores import code_scores
from lambda24.tokenizer.tokens import TokenSpec

WIDTH = 6
HEADS: dict[str, tuple[HeadConfig, tuple[int, ...]]] = {
    "lattice": (LatticeHeadConfig(), (leech.NUM_CODES,)),
    "mixture": (LatticeHeadConfig(num_mixtures=3), (leech.NUM_CODES,)),
    "coordinates": (CoordinatesHeadConfig(), (leech.NUM_CODES,)),
    "categorical": (CategoricalHeadConfig(chunk_size=2), (500,)),
    "groups": (CategoricalHeadConfig(chunk_size=2), (30, 20)),
    "bits": (BitsHeadConfig(), (16, 8)),
}


def trained_head(name: str) -> Head:
    """A head in float64 with scores of order one."""
    torch.manual_seed(1)
    config, sizes = HEADS[name]
    spec = TokenSpec(scales=(1,), codebook_sizes=sizes, code_dim=24, latent_size=1)
    head = build_head(config, WIDTH, spec)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head.double()


def dense(head: Head, hidden: Tensor) -> list[Tensor]:
    """Scores of all codes of each codebook, `(N, V_g)`."""
    logits = head.logits(hidden)
    if logits.ndim == 2:
        return [logits]
    return [group[:, group[0] > -torch.inf] for group in logits.unbind(1)]


@pytest.mark.parametrize("name", HEADS)
def test_uniform_nll_is_the_mean_over_all_tokens(name: str) -> None:
    head = trained_head(name)
    hidden = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)
    tokens = torch.zeros(3, len(HEADS[name][1]), dtype=torch.int64)
    assert head.loss(hidden, tokens).uniform_nll is None
    loss = head.loss(hidden, tokens, with_uniform=True)
    assert loss.uniform_nll is not None
    logits = dense(head, hidden)
    expected = loss.log_z - torch.stack([group.mean(1) for group in logits]).sum(0)
    if name in ("bits", "coordinates"):  # whose dense logits may be short of a constant
        score = loss.log_z - loss.nll
        found = torch.stack([group[:, 0] for group in logits]).sum(0)
        torch.testing.assert_close(found, score)
    torch.testing.assert_close(loss.uniform_nll, expected, rtol=0, atol=1e-10)
    inputs = (hidden, *head.parameters())
    smoothed = 0.9 * loss.nll + 0.1 * loss.uniform_nll
    torch.testing.assert_close(loss.smoothed(0.1), smoothed)
    assert loss.smoothed(0.0) is loss.nll
    # Gradients by central differences along one direction of all inputs.
    directions = [torch.randn_like(x) for x in inputs]
    gradients = torch.autograd.grad(loss.smoothed(0.1).sum(), inputs)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for x, d in zip(inputs, directions, strict=True):
                x.add_(step * d)
            moved = head.loss(hidden, tokens, with_uniform=True).smoothed(0.1).sum()
            values.append(float(moved))
            for x, d in zip(inputs, directions, strict=True):
                x.sub_(step * d)
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_z_loss_squares_each_normaliser(name: str) -> None:
    head = trained_head(name)
    hidden = torch.randn(4, WIDTH, dtype=torch.float64)
    loss = head.loss(hidden, torch.zeros(4, len(HEADS[name][1]), dtype=torch.int64))
    match name:
        case "coordinates":
            factors = head.distribution(hidden).scores.logsumexp(-1)  # type: ignore[attr-defined]
        case "bits":
            bits = head.distribution(hidden).bit_logits  # type: ignore[attr-defined]
            factors = torch.log1p(bits.exp())
        case _:
            factors = torch.stack([group.logsumexp(1) for group in dense(head, hidden)], dim=1)
    torch.testing.assert_close(loss.z_loss, factors.square().sum(1))
    torch.testing.assert_close(loss.log_z, factors.sum(1))


@pytest.mark.parametrize("name", HEADS)
def test_is_best_is_the_most_likely_token(name: str) -> None:
    head = trained_head(name).float()
    hidden = 3 * torch.randn(2, 4, WIDTH)
    logits = dense(head, hidden.flatten(0, 1))
    best = torch.stack([group.argmax(1) for group in logits], dim=1).view(2, 4, -1)
    if name == "coordinates":  # a code whose coordinates are all most likely: sharp scores
        head.linear.weight.data.zero_()  # type: ignore[union-attr]
        code = leech.codebook(torch.int64)[123] + 4
        head.linear.bias.data = torch.eye(9)[code].flatten()  # type: ignore[union-attr]
        best = torch.full((2, 4, 1), 123)
    assert head.is_best(hidden, best).all()
    second = best.clone()
    second[0, :, -1] = (best[0, :, -1] + 1) % HEADS[name][1][-1]
    assert head.is_best(hidden, second).tolist() == [[False] * 4, [True] * 4]


@pytest.mark.parametrize("spread", [0.1, 10.0])
def test_the_best_code_of_every_type(spread: float) -> None:
    scores = spread * torch.randn(40, 24, 9, dtype=torch.float64)
    scores[10:20, :, ::4] += 3 * spread  # type 4
    scores[20:30, :, 3:6:2] += 3 * spread  # type 3
    scores[30:, :, 2::4] += 3 * spread  # type 2
    expected = code_scores(scores).amax(1)
    torch.testing.assert_close(best_code_score(scores), expected)


def test_every_output_layer_is_marked_for_the_optimizer() -> None:
    for name in HEADS:
        for module in trained_head(name).modules():
            if isinstance(module, torch.nn.Linear):
                assert module.optimizer_role == "unembedding"
