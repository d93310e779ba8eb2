"""DiffAugment: each operation does what it says, and draws come from keys alone."""

import pytest
import torch

from lambda24.tokenizer.adversary.diffaugment import DiffAugmentConfig, diff_augment

KEYS = torch.arange(64)
IMAGES = torch.rand(64, 3, 16, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
NOTHING = {"color": False, "translation": 0.0, "cutout": 0.0}


def augment(images=IMAGES, keys=KEYS, stream=7, **options):
    return diff_augment(images, keys, stream, DiffAugmentConfig(**(NOTHING | options)))


def test_nothing_is_nothing():
    assert torch.equal(augment(), IMAGES)


@pytest.mark.parametrize("options", [{"color": True}, {"translation": 0.25}, {"cutout": 0.5}])
def test_an_image_depends_on_its_key_and_stream_only(options):
    whole = augment(**options)
    halves = [augment(IMAGES[part], KEYS[part], **options) for part in (slice(32), slice(32, 64))]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(augment(stream=8, **options), whole)
    assert not torch.equal(augment(keys=KEYS + 1, **options), whole)


def test_translation_shifts_by_whole_pixels_and_fills_with_zeros():
    moved = augment(translation=0.25)
    shifts = set()
    for image, result in zip(IMAGES, moved, strict=True):
        for dy in range(-4, 5):
            for dx in range(-3, 4):
                expected = torch.zeros_like(image)
                target = expected[:, max(0, dy) : 16 + min(0, dy), max(0, dx) : 12 + min(0, dx)]
                target.copy_(image[:, max(0, -dy) : 16 - max(0, dy), max(0, -dx) : 12 - max(0, dx)])
                if torch.equal(expected, result):
                    shifts.add((dy, dx))
    assert {dy for dy, _ in shifts} == set(range(-4, 5))
    assert {dx for _, dx in shifts} == set(range(-3, 4))


def test_cutout_zeroes_one_box():
    kept = augment(torch.ones(64, 3, 16, 12), cutout=0.5)[:, 0]
    areas = (kept == 0).sum(dim=(1, 2))
    assert areas.max() == 8 * 6
    assert areas.min() >= 4 * 3  # its centre lies in the image
    rows, columns = (kept == 0).any(dim=2), (kept == 0).any(dim=1)
    assert torch.equal(areas, rows.sum(1) * columns.sum(1))
    assert rows.any(dim=0).all()
    assert columns.any(dim=0).all()


def test_color_keeps_what_the_paper_keeps():
    colored = augment(color=True)
    gray_before, gray_after = (x.mean(dim=1).flatten(1) for x in (IMAGES, colored))
    # Luminance is only shifted (brightness) and scaled around its mean (contrast in [0.5, 1.5)).
    scale = gray_after.std(dim=1) / gray_before.std(dim=1)
    assert scale.min() >= 0.5 - 1e-5
    assert scale.max() <= 1.5
    assert scale.max() - scale.min() > 0.8
    shift = (gray_after.mean(dim=1) - gray_before.mean(dim=1)).abs()
    assert 0.4 < shift.max() <= 0.5 + 1e-5
    chroma = (colored - colored.mean(1, keepdim=True)).flatten(1).std(1) / scale
    ratio = chroma / (IMAGES - IMAGES.mean(1, keepdim=True)).flatten(1).std(1)
    assert ratio.min() < 0.2
    assert 1.8 < ratio.max() <= 2 + 1e-4


def test_gradients_pass_through():
    images = IMAGES.clone().requires_grad_()
    augment(images, color=True, translation=0.1, cutout=0.2).square().sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
