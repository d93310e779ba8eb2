"""The benchmark of heads measures the same loss in each, and counts no gradient as extra memory."""

from __future__ import annotations

import time

import torch

from lambda24.generator.heads import build_head
from lambda24.generator.heads.categorical import CategoricalHeadConfig
from lambda24.scripts.benchmarks.head import FullLogits, _step, time_heads
from lambda24.tokenizer.tokens import TokenSpec


def test_reference_and_blocks_have_the_same_gradients() -> None:
    torch.manual_seed(0)
    reference = FullLogits(8, 50)
    head = build_head(CategoricalHeadConfig(), 8, TokenSpec((1,), (50,), 24, 1))
    head.load_state_dict({f"linears.0.{n}": v for n, v in reference.linear.state_dict().items()})
    found = []
    for module in (reference, head):
        hidden = torch.ones(6, 8, requires_grad=True)
        _step(module, hidden, torch.arange(6)[:, None])
        found.append([hidden.grad, *(parameter.grad for parameter in module.parameters())])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def test_full_logits_need_their_logits_and_blocks_do_not() -> None:
    timings = time_heads(16, tokens=512, repeats=2, clock=time.process_time, num_codes=20_000)
    full, blocks = timings
    assert (full.name, full.speed) == ("full logits", 1.0)
    assert blocks.name == "categorical, in blocks"
    if full.extra_bytes is not None and blocks.extra_bytes is not None:
        assert full.extra_bytes > 2 * 512 * 20_000 * 4  # logits and their gradient, 40 MB each
        assert blocks.extra_bytes < full.extra_bytes / 4
