"""The stage-1 task: how losses, weights, optimizers and averages come together."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch._functorch.config
from accelerate import Accelerator
from accelerate.utils import DistributedType

from lambda24.common.config import from_dict
from lambda24.common.data.batches import Batch
from lambda24.common.data.dataset import load_dataset
from lambda24.tokenizer.adversary.adaptive import adaptive_weight
from lambda24.tokenizer.settings import TokenizerTrainingConfig
from lambda24.tokenizer.task import TokenizerTask

PATCHGAN = {"discriminator": {"kind": "patchgan", "channels": 8, "num_layers": 2}, "weight": 0.5}
LITE0 = {"teacher": {"kind": "efficientnet_lite0", "size": 32, "stride": 16, "precision": "fp32"}}


def make_config(**changes):
    base = {
        "run": "",
        "data": {"path": "digits", "image_size": 16, "max_images": 40},
        "model": {
            "image_size": 16,
            "pyramid": {"scales": [1, 2]},
            "autoencoder": {
                "kind": "cnn",
                "channels": [8, 16],
                "patch_size": 4,
                "encoder_blocks": 1,
                "decoder_blocks": 1,
                "groups": 4,
            },
            "quantizer": {"kind": "fsq", "levels": [5, 5, 5]},
        },
        "optimizer": {"lr": 1e-3},
        "loop": {"steps": 4, "batch_size": 12, "log_every": 100},
    }
    return from_dict(TokenizerTrainingConfig, {**base, **changes})


@pytest.fixture(scope="module")
def data():
    return load_dataset(make_config().data, train=False)


@pytest.fixture
def make_task(data):
    def make(**changes):
        task = TokenizerTask(make_config(**changes), data)
        task.prepare(Accelerator(cpu=True))
        return task

    return make


def make_batch(size=12):
    images = torch.rand(size, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images, torch.zeros(size, dtype=torch.int64), torch.arange(size))


def split(batch, parts):
    columns = [tensor.chunk(parts) for tensor in (batch.images, batch.labels, batch.keys)]
    return [Batch(*row) for row in zip(*columns, strict=True)]


def test_the_loss_is_the_weighted_sum_of_its_parts(make_task):
    task = make_task(
        prefix_weight=0.25,
        alignment={**LITE0, "weight": 2.0, "adaptive": False},
        adversary={**PATCHGAN, "start_step": 1},
        loss={"l1_weight": 3.0},
    )
    batch = make_batch()
    before, after = (task._losses(batch, step)[1] for step in (0, 1))
    assert not {"g_loss", "g_weight"} & before.keys()
    aligned = before["vf_cosine"] + before["vf_distance"]
    expected = 3 * before["l1"] + before["quantizer"] + 0.25 * before["prefix"] + 2 * aligned
    torch.testing.assert_close(before["loss"], expected)
    torch.testing.assert_close(after["loss"], expected + 0.5 * after["g_loss"])
    assert before["prefix"] != 3 * before["l1"]


def test_adaptive_weights_refer_to_the_last_layers(make_task):
    task = make_task(
        alignment={**LITE0, "weight": 0.2, "adaptive": True},
        adversary={**PATCHGAN, "adaptive": True},
    )
    batch = make_batch()
    found = task._losses(batch, 0)[1]
    model = task.image_tokenizer
    output, aligned = task.model(batch.images, None, None)
    reconstruction = (output.images - batch.images).abs().mean()
    others = {
        "g_weight": (0.5, task.adversary.generator_loss(batch, output.images), model.decoder),
        "vf_weight": (0.2, sum(aligned.values()), model.encoder),
    }
    for name, (weight, loss, half) in others.items():
        expected = weight * adaptive_weight(reconstruction, loss, half.last_weight)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=0)


def test_adaptive_weights_of_compiled_networks(make_task, monkeypatch):
    """At the encoder's last weight, the gradient runs through the compiled decoder, twice."""
    monkeypatch.setattr(torch._functorch.config, "donated_buffer", True)  # the library's default
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    options = {"alignment": {**LITE0, "adaptive": True}, "model": _one_block(), "data": _data(16)}
    compiled, eager = make_task(**options, compile=True), make_task(**options)
    batch = make_batch()
    found, expected = (task.train_step([batch], 0) for task in (compiled, eager))
    for name in ("loss", "vf_weight", "gradient_norm"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)


def test_each_optimizer_steps_on_its_own_gradient(make_task):
    """One combined step is the tokenizer's alone, then the discriminator's on its images."""
    task, alone = (make_task(adversary=PATCHGAN) for _ in range(2))
    batch = make_batch()
    images, losses = alone._losses(batch, 0)
    losses["loss"].backward()
    assert all(p.grad is None for p in alone.adversary.discriminator.parameters())
    alone.optimizer.step()
    expected = alone.adversary.train_step([batch], [images], 0, 4)
    found = task.train_step([batch], 0)
    assert found["d_loss"] == expected["d_loss"]
    assert found["d_gradient_norm"] == expected["d_gradient_norm"] > 0
    for part in ("image_tokenizer", "adversary.module"):
        pair = [_resolve(side, part).parameters() for side in (task, alone)]
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))
    trained = [*task.model.parameters(), *task.adversary.module.parameters()]
    assert all(p.grad is None for p in trained)
    assert set(task.ema.state_dict()) == set(task.image_tokenizer.state_dict())


def _resolve(task, path):
    for name in path.split("."):
        task = getattr(task, name)
    return task


def test_the_tokenizer_feels_the_adversary(make_task):
    with_it, without = make_task(adversary={**PATCHGAN, "start_step": 1}), make_task()
    batch = make_batch()
    pairs = list(
        zip(with_it.image_tokenizer.parameters(), without.image_tokenizer.parameters(), strict=True)
    )
    for step, same in ((0, True), (1, False)):
        with_it.train_step([batch], step)
        without.train_step([batch], step)
        assert all(torch.equal(a, b) for a, b in pairs) == same


@pytest.mark.parametrize("adversary", [PATCHGAN])
def test_micro_batches_are_the_same_step(make_task, adversary):
    options = {"adversary": adversary, "prefix_weight": 0.5, "scale_dropout": 0.5}
    whole, parts = make_task(**options), make_task(**options)
    batch = make_batch()
    for step in range(2):
        one = whole.train_step([batch], step)
        three = parts.train_step(split(batch, 3), step)
    for name in ("loss", "l1", "prefix", "g_loss", "d_loss", "gradient_norm", "d_gradient_norm"):
        torch.testing.assert_close(one[name], three[name], rtol=2e-3, atol=1e-5)


def test_evaluation_looks_at_a_sorted_set_evenly(make_task):
    task = make_task(num_eval_images=3)
    originals, reconstructions, _ = task._reconstruct(task.config.num_eval_images)
    assert len(reconstructions) == 3
    assert torch.equal(originals, task.eval_data.images_uint8([0, 13, 26]))  # of 40
    with pytest.raises(ValueError, match="num_eval_images: got 0"):
        make_config(num_eval_images=0)


def test_state_continues_bit_for_bit(make_task):
    options = {
        "alignment": LITE0,
        "adversary": {**PATCHGAN, "adaptive": True},
        "scale_dropout": 0.5,
    }
    first, second = make_task(**options), make_task(**options)
    batch = make_batch()
    first.train_step([batch], 0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    scalars = [task.train_step(split(batch, 2), 1) for task in (first, second)]
    assert all(torch.equal(scalars[0][name], scalars[1][name]) for name in scalars[0])
    states = [task.state_dict() for task in (first, second)]
    for name in ("tokenizer", "ema", "alignment"):
        values = [state[name] for state in states]
        assert all(torch.equal(values[0][key], values[1][key]) for key in values[0])


def test_prefixes_are_drawn_from_keys(make_task):
    task = make_task(prefix_weight=1.0, model={**_three_scales(), "image_size": 32}, data=_data(32))
    keys = torch.arange(300)
    drawn = task._prefix(Batch(torch.zeros(300, 3, 32, 32), keys, keys))
    assert set(drawn.tolist()) == {1, 2}
    assert 100 < (drawn == 1).sum() < 200
    assert make_task()._prefix(make_batch()) is None


def _three_scales():
    autoencoder = {"kind": "cnn", "channels": [8], "patch_size": 8, "groups": 4}
    pyramid = {"scales": [1, 2, 4]}
    quantizer = {"kind": "fsq", "levels": [5, 5, 5]}
    return {"pyramid": pyramid, "autoencoder": autoencoder, "quantizer": quantizer}


def _one_block():
    autoencoder = {"kind": "cnn", "channels": [8], "patch_size": 8, "groups": 4}
    blocks = {"encoder_blocks": 1, "decoder_blocks": 1}
    return {
        "image_size": 16,
        "pyramid": {"scales": [1, 2]},
        "autoencoder": {**autoencoder, **blocks},
        "quantizer": {"kind": "fsq", "levels": [5, 5, 5]},
    }


def _data(size):
    return {"path": "digits", "image_size": size, "max_images": 40}


def test_what_does_not_fit_is_refused(make_task):
    stylegan2 = {"discriminator": {"kind": "stylegan2", "group_size": 8, "channel_base": 64}}
    with pytest.raises(ValueError, match=r"batch_size 12 is 12 images.*group_size 8 must"):
        make_task(adversary=stylegan2)
    vq = {"kind": "vq", "dim": 4, "codebook_size": 8, "revival_threshold": 0.5}
    task = TokenizerTask(make_config(model={**_one_block(), "quantizer": vq}), None)
    sharded = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ValueError, match=r"FSDP cannot train with .* revival: use DDP"):
        task.prepare(sharded)
    one_scale = {**_three_scales(), "image_size": 16, "pyramid": {"scales": [2]}}
    with pytest.raises(ValueError, match=r"one scale has no prefixes.* 0\.5 and 0\.0"):
        make_task(model=one_scale, prefix_weight=0.5)
    with pytest.raises(ValueError, match=r"start_step 4 must be below loop\.steps 4"):
        make_task(adversary={**PATCHGAN, "start_step": 4})
    with pytest.raises(ValueError, match=r"ema_decay: got 2\.0"):
        make_task(ema_decay=2.0)


def test_a_step_moves_the_average_by_its_rule(make_task):
    task = make_task(ema_decay=0.5)
    average = {name: p.clone() for name, p in task.ema.average.named_parameters()}
    task.train_step([make_batch()], 9)  # (1 + 9) / (10 + 9) is above the decay
    found = dict(task.ema.average.named_parameters())
    moved = 0
    for name, online in task.image_tokenizer.named_parameters():
        expected = 0.5 * average[name] + 0.5 * online.detach()
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)
        moved += int(not torch.equal(found[name], average[name]))
    assert moved > 5


def test_scale_dropout_keeps_the_first_scales_of_its_share_of_images(make_task):
    """Each image keeps all scales but with its probability, then at least one and never all."""
    task = make_task(
        model={"image_size": 32, **_three_scales()}, data=_data(32), scale_dropout=0.25
    )
    kept = task._num_kept(make_batch(600))
    counts = [int((kept == count).sum()) for count in range(4)]
    assert counts[0] == 0
    assert counts[3] == pytest.approx(450, abs=45)
    assert counts[1] == pytest.approx(75, abs=30)
    assert counts[2] == pytest.approx(75, abs=30)
    assert make_task()._num_kept(make_batch()) is None
