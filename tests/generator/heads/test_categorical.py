import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lambda24.generator.heads import CategoricalHead, CategoricalHeadConfig, categorical
from lambda24.generator.heads.categorical import chunked_cross_entropy
from lambda24.tokenizer.tokens import TokenSpec

NUM_CODES, WIDTH = 500, 12


def spec(*codebook_sizes: int) -> TokenSpec:
    return TokenSpec(scales=(1, 2), codebook_sizes=codebook_sizes, code_dim=6, latent_size=2)


def trained_head(*codebook_sizes: int, chunk_size: int = 7) -> CategoricalHead:
    """A head in float64 with weights of order one."""
    torch.manual_seed(0)
    head = CategoricalHead(
        CategoricalHeadConfig(chunk_size=chunk_size), WIDTH, spec(*codebook_sizes)
    )
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head.double()


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
@pytest.mark.parametrize("block_bytes", [400, 10_000, 4 << 20])
def test_loss_and_gradients_equal_full_logits(
    chunk_size: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(categorical.BLOCK_BYTES, "cpu", block_bytes)
    generator = torch.Generator().manual_seed(1)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    hidden, weight, bias = leaf(20, WIDTH), leaf(NUM_CODES, WIDTH), leaf(NUM_CODES)
    tokens = torch.randint(NUM_CODES, (20,), generator=generator)
    nll_weight, z_weight = torch.randn(2, 20, dtype=torch.float64, generator=generator)

    def objective(nll: Tensor, log_z: Tensor) -> Tensor:
        return (nll_weight * nll).sum() + (z_weight * log_z.square()).sum()

    loss = chunked_cross_entropy(hidden, weight, bias, tokens, chunk_size)
    logits = F.linear(hidden, weight, bias)
    log_z = logits.logsumexp(1)
    nll = F.cross_entropy(logits, tokens, reduction="none")
    torch.testing.assert_close(loss.nll, nll, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss.log_z, log_z, rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(objective(loss.nll, loss.log_z), (hidden, weight, bias))
    expected = torch.autograd.grad(objective(nll, log_z), (hidden, weight, bias))
    for gradient, exact in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-11, atol=1e-11)


def test_large_logits_stay_finite() -> None:
    hidden = torch.tensor([[50.0], [-50.0]], requires_grad=True)
    weight = torch.tensor([[40.0], [-40.0], [39.0]])  # logits (2000, -2000, 1950), then negated
    loss = chunked_cross_entropy(hidden, weight, torch.zeros(3), torch.tensor([2, 1]), 1)
    assert loss.nll.tolist() == [50.0, 0.0]
    assert loss.log_z.tolist() == [2000.0, 2000.0]
    (gradient,) = torch.autograd.grad(loss.nll.sum(), hidden)
    assert gradient.flatten().tolist() == [1.0, 0.0]


def test_codebooks_add_up() -> None:
    head = trained_head(500, 300)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(3, 5, WIDTH, dtype=torch.float64, generator=generator)
    tokens = torch.randint(300, (3, 5, 2), generator=generator)
    loss = head.loss(hidden, tokens)
    logits = head.logits(hidden)  # (3, 5, 2, 500)
    expected = -logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1).sum(-1)
    torch.testing.assert_close(loss.nll, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(loss.log_z, logits.logsumexp(-1).sum(-1), rtol=0, atol=1e-11)
    assert (logits[..., 1, 300:] == -torch.inf).all()
    draws = head.distribution(hidden).sample(torch.rand(3, 5, 2, generator=generator))
    assert draws.shape == (3, 5, 2)
    assert draws[..., 1].max() < 300


def test_one_codebook_keeps_the_axis_of_tokens_only() -> None:
    head = trained_head(500)
    hidden = torch.randn(3, 5, WIDTH)
    assert head.logits(hidden).shape == (3, 5, 500)
    assert head.distribution(hidden).sample(torch.rand(3, 5, 1)).shape == (3, 5, 1)
    assert head.loss(hidden, torch.zeros(3, 5, 1, dtype=torch.int64)).nll.shape == (3, 5)


def test_starts_near_uniform_in_float32_under_autocast() -> None:
    head = CategoricalHead(CategoricalHeadConfig(), 64, spec(1000))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head.loss(torch.randn(40, 64), torch.randint(1000, (40, 1)))
    assert loss.nll.dtype == torch.float32
    torch.testing.assert_close(loss.nll, torch.full((40,), 1000.0).log(), rtol=0, atol=0.1)


def test_no_tokens_have_no_gradient() -> None:
    weight = torch.randn(5, 3, requires_grad=True)
    tokens = torch.zeros(0, dtype=torch.int64)
    loss = chunked_cross_entropy(torch.zeros(0, 3), weight, torch.zeros(5), tokens, 4)
    (gradient,) = torch.autograd.grad(loss.nll.sum(), weight)
    assert gradient.eq(0).all()
