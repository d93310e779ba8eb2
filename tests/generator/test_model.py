"""NextScaleGenerator: causality, cache against teacher forcing, null class, errors, saving."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lambda24.generator.config import GeneratorConfig
from lambda24.generator.heads import CategoricalHeadConfig
from lambda24.generator.model import NextScaleGenerator
from lambda24.tokenizer.tokens import TokenSpec

SPEC = TokenSpec(scales=(1, 2, 4), codebook_sizes=(11,), code_dim=6, latent_size=4)
CONFIG = GeneratorConfig(
    depth=3, width=32, num_heads=4, num_classes=5, head=CategoricalHeadConfig()
)
VARIANTS = {
    "infinity": CONFIG,
    "shared": replace(CONFIG, adaln="shared", rope_grid="corners"),
    "var": replace(CONFIG, position="learned", qk_norm=False),
}


def make(config: GeneratorConfig = CONFIG, spec: TokenSpec = SPEC) -> NextScaleGenerator:
    """A model whose blocks all matter: initial gammas would hide most of what they do."""
    torch.manual_seed(0)
    model = NextScaleGenerator(config, spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch(size: int = 3, spec: TokenSpec = SPEC) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(size, spec.length, spec.code_dim, generator=generator)
    return inputs, torch.arange(size)


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_scales_equal_teacher_forcing(name: str):
    model = make(VARIANTS[name])
    inputs, labels = batch()
    with torch.no_grad():
        expected = model(inputs, labels)
        cache = model.make_cache(len(labels))
        for k in range(SPEC.num_scales):
            part = SPEC.scale_slice(k)
            hidden = model(inputs[:, part], labels, cache)
            assert torch.allclose(hidden, expected[:, part], atol=2e-6, rtol=1e-5)
            logits = model.head.logits(hidden)
            assert torch.allclose(logits, model.head.logits(expected[:, part]), atol=1e-5)
    assert cache.length == SPEC.length


def test_one_scale_needs_no_mask():
    spec = replace(SPEC, scales=(4,))
    model = make(spec=spec)
    inputs, labels = batch(spec=spec)
    with torch.no_grad():
        hidden = model(inputs, labels, model.make_cache(len(labels)))
        assert torch.allclose(hidden, model(inputs, labels), atol=2e-6)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("bf16", [False, True])
def test_inputs_of_a_scale_reach_it_and_later_scales_only(name: str, bf16: bool):
    model = make(VARIANTS[name])
    inputs, labels = batch()

    def run(values: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden: Tensor = model(values, labels).detach()
            return hidden

    before = run(inputs)
    for k in range(1, SPEC.num_scales):
        changed = inputs.clone()
        changed[:, SPEC.offsets[k + 1] - 1] += 1.0  # the last position of the scale
        after = run(changed)
        assert torch.equal(after[:, : SPEC.offsets[k]], before[:, : SPEC.offsets[k]])
        reached = (after != before).any(-1)[:, SPEC.offsets[k] :]
        assert reached.all()


def test_first_scale_reads_the_class_and_not_its_inputs():
    model = make()
    inputs, labels = batch()
    changed = inputs.clone()
    changed[:, 0] = torch.nan
    with torch.no_grad():
        assert torch.equal(model(changed, labels), model(inputs, labels))
        other = model(inputs, labels.flip(0))
        assert (other != model(inputs, labels)).any(-1)[0].all()


def test_null_class_is_the_last_row():
    model = make()
    inputs, _ = batch()
    null = torch.full((3,), model.num_classes)
    with torch.no_grad():
        before = model(inputs, null)
        model.class_embedding.weight[:-1] += 1.0
        assert torch.equal(model(inputs, null), before)
        model.class_embedding.weight[-1] += 1.0
        assert not torch.equal(model(inputs, null), before)


def test_hidden_is_fp32_and_every_parameter_learns_under_autocast():
    model = make(replace(CONFIG, adaln="shared")).train()
    inputs, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(inputs, labels)
        tokens = torch.randint(0, 11, (3, SPEC.length, 1))
        loss = model.head.loss(hidden, tokens).nll.mean()
    assert hidden.dtype == torch.float32
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_cache_takes_autocasts_dtype():
    model = make()
    assert model.make_cache(2).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        cache = model.make_cache(2)
        assert cache.dtype == torch.bfloat16
        inputs, _ = batch(2)
        hidden = model(inputs[:, :1], torch.tensor([0, 1]), cache)
    assert hidden.dtype == torch.float32


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("bf16", [False, True])
def test_checkpointed_gradients_are_the_plain_ones(name: str, bf16: bool):
    """Bit for bit, with the same branches dropped."""
    model = make(replace(VARIANTS[name], drop_path=0.5)).train()
    inputs, labels = batch()
    weights = torch.randn(3, SPEC.length, CONFIG.width)

    def gradients(checkpointed: bool) -> list[Tensor]:
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden = model(inputs, labels, checkpoint_activations=checkpointed)
        used = [p for n, p in model.named_parameters() if not n.startswith("head.")]
        grads = torch.autograd.grad(hidden, used, weights, materialize_grads=True)
        assert torch.rand(1).item() == following  # the outer stream of draws goes on
        return [hidden.detach(), *grads]

    torch.manual_seed(4)
    torch.rand(2 * 2 * 3)  # two branches of two blocks that may be dropped, three images
    following = torch.rand(1).item()
    plain, checkpointed = gradients(False), gradients(True)
    assert all(torch.equal(one, two) for one, two in zip(plain, checkpointed, strict=True))


def test_checkpointing_runs_blocks_twice():
    model = make().train()
    calls: list[int] = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda *_: calls.append(1))
    model(*batch(), checkpoint_activations=True).sum().backward()
    assert len(calls) == 2 * CONFIG.depth


def test_compiled_blocks_agree_and_copies_run_eagerly():
    """Two compilations serve any depth: the first block never drops its branches."""
    model = make(replace(CONFIG, depth=4, drop_path=0.3)).train()
    names, graphs = list(model.state_dict()), []

    def run(module: NextScaleGenerator) -> Tensor:
        torch.manual_seed(4)
        hidden: Tensor = module(*batch())
        return hidden.detach()

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    before = run(model)
    model.compile(backend=count, fullgraph=True)
    torch.testing.assert_close(run(model), before, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 2
    assert list(model.state_dict()) == names
    assert torch.equal(run(copy.deepcopy(model)), before)


def test_drop_path_grows_linearly():
    model = make(replace(CONFIG, drop_path=0.2))
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_masks_and_angles_are_not_saved():
    saved = make().state_dict()
    assert not {"mask", "rope", "level_ids"} & set(saved)


def test_bad_calls_name_both_shapes():
    model = make()
    inputs, labels = batch()
    with pytest.raises(ValueError, match=r"\(3, 21, 6\), got \(3, 20, 6\)"):
        model(inputs[:, 1:], labels)
    with pytest.raises(ValueError, match=r"\(3, 21, 6\), got \(3, 21, 5\)"):
        model(inputs[..., 1:], labels)
    with pytest.raises(ValueError, match=r"\[0, 5\].*got \[0, 6\]"):
        model(inputs, torch.tensor([0, 6, 1]))
    with pytest.raises(ValueError, match=r"got \[-1, 1\]"):
        model(inputs, torch.tensor([0, -1, 1]))
    cache = model.make_cache(3)
    with pytest.raises(ValueError, match=r"step 0 must be \(B, n, D\) = \(3, 1, 6\)"):
        model(inputs, labels, cache)
    with pytest.raises(ValueError, match="cache has batch 3, labels 2"):
        model(inputs[:2, :1], labels[:2], cache)
    with pytest.raises(ValueError, match="num_classes 5 entries, got 2"):
        NextScaleGenerator(CONFIG, SPEC, ("cat", "dog"))


def test_save_and_load_keep_everything(tmp_path: Path):
    model = NextScaleGenerator(CONFIG, SPEC, ("a", "b", "c", "d", "e")).eval()
    model.save_pretrained(tmp_path / "generator")
    loaded = NextScaleGenerator.from_pretrained(tmp_path / "generator")
    assert (loaded.config, loaded.spec, loaded.label_names) == (
        model.config,
        model.spec,
        model.label_names,
    )
    inputs, labels = batch()
    with torch.no_grad():
        assert torch.equal(loaded(inputs, labels), model(inputs, labels))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_cache_keeps_the_modulation_of_its_labels(name: str):
    model = make(VARIANTS[name])
    inputs, labels = batch()
    calls = []
    model.head_adaln.register_forward_hook(lambda *_: calls.append(1))
    cache = model.make_cache(3)

    def scale(k: int, labels: Tensor, cache: Any) -> Tensor:
        part = inputs[: len(labels), SPEC.scale_slice(k)]
        with torch.no_grad():
            hidden: Tensor = model(part, labels, cache)
        return hidden

    scale(0, labels, cache)
    kept = scale(1, labels.clone(), cache)
    assert len(calls) == 1
    view = cache.first(2)
    alone = scale(2, labels[:2], view)
    assert len(calls) == 1
    again = scale(2, labels.flip(0), cache)  # other labels: made anew
    assert len(calls) == 2
    assert not torch.allclose(alone, again[:2], atol=1e-3)
    cache.reset()
    with torch.no_grad():
        model.head_adaln.bias.add_(1)
    scale(0, labels, cache)
    assert len(calls) == 3
    assert not torch.allclose(scale(1, labels, cache), kept, atol=1e-3)
    labels.fill_(4)  # in place
    scale(2, labels, cache)
    assert len(calls) == 4
