"""Adversarial losses and R1 against their formulas, and what a pass may touch."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from lambda24.common.data.batches import Batch
from lambda24.tokenizer.adversary.adversary import (
    Adversary,
    AdversaryConfig,
    DiscriminatorLoss,
    HingeConfig,
    NonSaturatingConfig,
    discriminator_loss,
    frozen,
    generator_loss,
)
from lambda24.tokenizer.adversary.diffaugment import DiffAugmentConfig
from lambda24.tokenizer.adversary.discriminators import PatchGANConfig

SMALL = PatchGANConfig(channels=8, num_layers=1)
R1 = NonSaturatingConfig(r1_gamma=6.0, r1_interval=4)


def make_batch(size=4):
    images = torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images, torch.zeros(size, dtype=torch.int64), torch.arange(size))


def make_adversary(**options):
    torch.manual_seed(0)
    adversary = Adversary(AdversaryConfig(discriminator=SMALL, **options), 8)
    adversary.prepare(Accelerator(cpu=True))
    return adversary


class Polynomial(nn.Module):
    """Logits a * (w . x + x . x / 2) for each a."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(192, generator=torch.Generator().manual_seed(1)))
        self.register_buffer("a", torch.tensor([1.0, 2.0, 6.0]))

    def forward(self, images):
        x = images.flatten(1)
        return (x @ self.w + x.square().sum(1) / 2)[:, None] * self.a


def test_r1_is_the_squared_gradient_of_the_mean_logit():
    batch = make_batch()
    module = DiscriminatorLoss(AdversaryConfig(discriminator=SMALL, loss=R1), 8)
    module.discriminator = Polynomial()
    w, x = module.discriminator.w, batch.images.flatten(1)
    expected = (3 * (w + x)).square().sum(1).mean()  # the mean of a is 3
    with torch.autocast("cpu", torch.bfloat16):  # R1 stays in fp32
        found = module(batch.images, batch.images * 0.5, batch.keys, penalize=True)
    torch.testing.assert_close(found["r1"], expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found["loss"] - found["d_loss"], 6.0 / 2 * 4 * expected)
    (second,) = torch.autograd.grad(found["r1"], w)
    torch.testing.assert_close(second, 2 * 9 * (w + x.mean(0)).detach(), rtol=1e-4, atol=1e-4)
    assert not batch.images.requires_grad


def test_r1_goes_through_the_augmentation():
    batch = make_batch()
    augment = DiffAugmentConfig(color=False, translation=0.0, cutout=0.9)
    config = AdversaryConfig(discriminator=SMALL, loss=R1, augment=augment)
    module = DiscriminatorLoss(config, 8)
    module.discriminator = Polynomial()
    seen = module.augment(torch.ones_like(batch.images), batch.keys, 102).flatten(1)
    w, x = module.discriminator.w, batch.images.flatten(1)
    expected = (3 * seen * (w + x)).square().sum(1).mean()
    torch.testing.assert_close(module.gradient_penalty(batch.images, batch.keys), expected)
    assert seen.mean() < 0.9


def test_r1_is_lazy_and_counts_from_the_start_step():
    adversary = make_adversary(loss=R1, start_step=3)
    batch = make_batch()
    assert [adversary.is_active(step) for step in (2, 3)] == [False, True]
    steps = range(3, 12)
    found = [adversary.train_step([batch], [-batch.images], step, 20) for step in steps]
    assert [step for step, row in zip(steps, found, strict=True) if "r1" in row] == [3, 7, 11]
    none = make_adversary(loss=NonSaturatingConfig(r1_gamma=0.0))
    assert "r1" not in none.train_step([batch], [-batch.images], 0, 20)


def test_losses_against_their_formulas():
    real, fake = torch.tensor([[0.5, 2.0]]), torch.tensor([[-3.0, 1.0]])
    hinge, logistic = HingeConfig(), NonSaturatingConfig()
    assert discriminator_loss(real, fake, hinge) == 0.5 * ((0.5 + 0) / 2 + (0 + 2) / 2)
    assert generator_loss(fake, hinge) == 1
    expected = -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    torch.testing.assert_close(discriminator_loss(real, fake, logistic), expected)
    torch.testing.assert_close(generator_loss(fake, logistic), -fake.sigmoid().log().mean())


@pytest.mark.parametrize("loss", [HingeConfig(), NonSaturatingConfig()])
def test_the_generators_pass_leaves_the_discriminators_gradients_alone(loss):
    adversary = make_adversary(loss=loss, augment=DiffAugmentConfig())
    batch = make_batch()
    parameters = dict(adversary.discriminator.named_parameters())
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    before = {name: p.grad.clone() for name, p in parameters.items()}
    fakes = batch.images.clone().requires_grad_()
    adversary.generator_loss(batch, fakes).backward()
    assert fakes.grad.abs().max() > 0
    assert all(torch.equal(p.grad, before[name]) for name, p in parameters.items())
    assert all(p.requires_grad for p in parameters.values())


def test_frozen_restores_what_was_trained():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    with frozen(layers):
        assert not any(parameter.requires_grad for parameter in layers.parameters())
    trained = [True, True, False, False]
    assert [parameter.requires_grad for parameter in layers.parameters()] == trained
    with pytest.raises(RuntimeError), frozen(layers):
        layers(torch.ones(3))
    assert [parameter.requires_grad for parameter in layers.parameters()] == trained


def test_micro_batches_are_the_same_step():
    options = {"loss": R1, "augment": DiffAugmentConfig()}
    whole, parts = make_adversary(**options), make_adversary(**options)
    batch = make_batch(6)
    chunks = [
        Batch(*part)
        for part in zip(
            *(t.chunk(3) for t in (batch.images, batch.labels, batch.keys)), strict=True
        )
    ]
    fakes = batch.images.flip(0)
    for step in range(2):
        one = whole.train_step([batch], [fakes], step, 4)
        three = parts.train_step(chunks, list(fakes.chunk(3)), step, 4)
    for name in one:
        torch.testing.assert_close(one[name], three[name], rtol=1e-3, atol=1e-5)
    pairs = zip(whole.discriminator.parameters(), parts.discriminator.parameters(), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
