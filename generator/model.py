"""NextScaleGenerator: a transformer predicts all tokens of the next scale from the coarser ones.

Class embedding = start token and AdaLN condition; the inputs of later scales are linear maps of the
interpolated cumulative latent; attention is causal between scales and full inside one. With
`position="rope2d"` it is Infinity-CC's architecture, with "learned" VAR's. It stops at hidden
states: a head turns them into a loss or a distribution.

Shapes: B images, L tokens of a pyramid, n tokens of a call, C code channels, W width, S scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

from lambda24.common.config import from_dict, to_dict
from lambda24.common.pretrained import PretrainedModel
from lambda24.generator.blocks import Block, Vectors
from lambda24.generator.cache import KVCache, Modulation
from lambda24.generator.config import GeneratorConfig
from lambda24.generator.cpu_forms.adaln import modulate
from lambda24.generator.embeddings import rope_table
from lambda24.generator.heads import build_head
from lambda24.generator.initialization import initialize
from lambda24.generator.masks import (
    block_causal_mask,
    flex_block_mask,
    scale_ids,
    wants_flex_attention,
)
from lambda24.generator.phases import drawing_steps, flat_positions, input_dim, step_ids
from lambda24.tokenizer.tokens import TokenSpec


class NextScaleGenerator(PretrainedModel):
    """Class and coarser scales in, hidden states of the next scale out.

    Args:
        config: shape of the network.
        spec: the pyramid it generates.
        label_names: names of the classes in order, or nothing; travels with the weights.

    Raises:
        ValueError: `label_names` that are not `num_classes` many.
    """

    folder_name: ClassVar[str] = "generator"
    rope: Tensor
    level_ids: Tensor
    mask: Tensor
    step_ids: Tensor

    def __init__(
        self, config: GeneratorConfig, spec: TokenSpec, label_names: Sequence[str] = ()
    ) -> None:
        super().__init__()
        if label_names and len(label_names) != config.num_classes:
            raise ValueError(
                f"label_names must have num_classes {config.num_classes} entries, "
                f"got {len(label_names)}"
            )
        self.config = config
        self.spec = spec
        self.label_names = tuple(label_names)
        width = config.width
        # The last row is the null class of guidance.
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)
        self.start = _table(spec.scale_lengths[0], width)
        self.level_embedding = nn.Embedding(spec.num_scales, width)
        self.input_projection = nn.Linear(input_dim(spec, config.phases), width)
        self.input_projection.optimizer_role = "embedding"  # type: ignore[assignment]
        self.position_table: nn.Parameter | None = None
        if config.position == "learned":
            self.position_table = _table(spec.length, width)
        else:
            table = rope_table(
                spec,
                width // config.num_heads,
                theta=config.rope_theta,
                grid=config.rope_grid,
                reference=config.rope_reference,
            )
            self.register_buffer("rope", table, persistent=False)
        self.register_buffer("level_ids", scale_ids(spec), persistent=False)
        self.steps = drawing_steps(spec, config.phases)
        ids = step_ids(spec, config.phases)
        self.register_buffer("mask", block_causal_mask(ids), persistent=False)
        self.register_buffer("step_ids", ids, persistent=False)
        self._flex_masks: dict[torch.device, Any] = {}
        shared = config.adaln == "shared"
        self.shared_adaln = nn.Linear(width, 6 * width) if shared else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.num_heads,
                mlp_ratio=config.mlp_ratio,
                qk_norm=config.qk_norm,
                shared_adaln=shared,
                drop_path=config.drop_path * i / max(1, config.depth - 1),
            )
            for i in range(config.depth)
        )
        self.head_adaln = nn.Linear(width, 2 * width)
        initialize(self)
        self.head = build_head(config.head, width, spec)

    @property
    def num_classes(self) -> int:
        """Real classes; this number itself is the null label."""
        return self.config.num_classes

    @property
    def device(self) -> torch.device:
        return self.start.device

    def forward(
        self,
        inputs: Tensor,
        labels: Tensor,
        cache: KVCache | None = None,
        *,
        checkpoint_activations: bool = False,
    ) -> Tensor:
        """Hidden states (B, n, W), fp32, after the class-modulated final norm.

        Args:
            inputs: (B, n, D), the latent so far on each scale's grid and, with phases, what they
                have drawn around (`generator.phases`); all L positions without a cache, exactly
                the next step's with one. The first scale's values are not read.
            labels: (B,) int64 in [0, num_classes]; num_classes is the null class.
            cache: keys and values of the earlier steps; extended by this one.
            checkpoint_activations: gradients recompute what is inside blocks: less memory, more
                time. Drop path draws the same again.

        Raises:
            ValueError: another length or channel count, or (on CPU, where looking costs nothing)
                labels out of range.
        """
        places = self._places(inputs, labels, cache)
        has_values = not (torch.compiler.is_compiling() or isinstance(labels, FakeTensor))
        if inputs.device.type == "cpu" and has_values:
            check_labels(labels, self.num_classes)
        modulation = self._modulation(labels, cache)
        x = self._embed(inputs, modulation.condition, places, is_first=not (cache and cache.step))
        rope = None if self.config.position == "learned" else self.rope[:, places]
        mask = None if cache is not None or len(self.steps) == 1 else self._mask()
        for layer, block in enumerate(self.blocks):
            extend = None if cache is None else partial(cache.append, layer)
            run: Callable[..., Tensor] = block
            if checkpoint_activations and torch.is_grad_enabled():
                draws = self.config.drop_path > 0
                run = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=draws)
            x = run(x, modulation.layers[layer], rope, mask, extend)
        if cache is not None:
            cache.advance()
        with torch.autocast(x.device.type, enabled=False):
            return modulate(x.float(), *modulation.head)

    def compile(self, **options: Any) -> None:
        """`torch.compile`, in place, for each block: two compilations at most serve them all."""
        for block in self.blocks:
            block.compile(**options)

    def make_cache(
        self,
        batch_size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> KVCache:
        """An empty cache for `batch_size` images.

        `dtype` defaults to what attention computes in: autocast's, where it is on, else the
        weights'.
        """
        device = torch.device(device) if device is not None else self.device
        if dtype is None:
            autocast = torch.is_autocast_enabled(device.type)
            dtype = torch.get_autocast_dtype(device.type) if autocast else self.start.dtype
        return KVCache(
            [len(step.positions) for step in self.steps],
            num_layers=self.config.depth,
            batch_size=batch_size,
            num_heads=self.config.num_heads,
            head_dim=self.config.width // self.config.num_heads,
            dtype=dtype,
            device=device,
        )

    def config_dict(self) -> dict[str, Any]:
        return {
            "config": to_dict(self.config),
            "spec": self.spec.to_dict(),
            "label_names": list(self.label_names),
        }

    @classmethod
    def from_config_dict(cls, data: dict[str, Any]) -> NextScaleGenerator:
        return cls(
            from_dict(GeneratorConfig, data["config"]),
            TokenSpec(**data["spec"]),
            data["label_names"],
        )

    def _places(self, inputs: Tensor, labels: Tensor, cache: KVCache | None) -> Tensor | slice:
        """Flat positions of this call; checks shapes."""
        spec = self.spec
        places: Tensor | slice = slice(spec.length)
        length, what = spec.length, "all scales"
        if cache is not None:
            length, what = cache.next_length, f"step {cache.step}"
            step = self.steps[cache.step]
            places = spec.scale_slice(step.scale)
            if length < spec.scale_lengths[step.scale]:
                places = flat_positions(spec, step).to(inputs.device)
        expected = (labels.shape[0], length, self.input_projection.in_features)
        if tuple(inputs.shape) != expected:
            raise ValueError(
                f"inputs of {what} must be (B, n, D) = {expected}, got {tuple(inputs.shape)}"
            )
        if cache is not None and cache.batch_size != labels.shape[0]:
            raise ValueError(f"the cache has batch {cache.batch_size}, labels {labels.shape[0]}")
        return places

    def _modulation(self, labels: Tensor, cache: KVCache | None) -> Modulation:
        """What the labels do to each layer: once for all scales of a cache.

        Without one, blocks make their own vectors, where activation checkpointing can redo it.
        """
        if cache is not None and cache.modulation is not None and cache.modulation.is_of(labels):
            return cache.modulation
        condition = self.class_embedding(labels)  # (B, W)
        active = F.silu(condition)
        with torch.autocast(labels.device.type, enabled=False):
            shared = active
            if self.shared_adaln is not None:
                shared = self.shared_adaln(active).unflatten(1, (6, -1))
            layers: tuple[Tensor | Vectors, ...] = (shared,) * len(self.blocks)
            if cache is not None:
                blocks = cast("Iterable[Block]", self.blocks)
                layers = tuple(block.vectors(shared, self.start.dtype) for block in blocks)
            scale, shift = self.head_adaln(active).float().unsqueeze(1).chunk(2, dim=-1)
        found = Modulation(labels.clone(), condition, layers, (scale, shift))
        if cache is not None:
            cache.modulation = found
        return found

    def _embed(
        self, inputs: Tensor, condition: Tensor, places: Tensor | slice, *, is_first: bool
    ) -> Tensor:
        """Token, level and (VAR) position embeddings (B, n, W), computed in the weights' dtype."""
        first = self.spec.scale_lengths[0]
        with torch.autocast(inputs.device.type, enabled=False):
            parts = []
            if is_first:
                parts.append(condition[:, None] + self.start)
                inputs = inputs[:, first:]
            if inputs.shape[1]:
                parts.append(self.input_projection(inputs.to(self.start.dtype)))
            added = self.level_embedding(self.level_ids[places])
            if self.position_table is not None:
                added = added + self.position_table[places]
            return torch.cat(parts, dim=1) + added

    def _mask(self) -> Any:
        device = self.mask.device
        if not wants_flex_attention(self.spec, device):
            return self.mask
        if device not in self._flex_masks:
            self._flex_masks[device] = flex_block_mask(self.step_ids)
        return self._flex_masks[device]


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raises ValueError unless all labels lie in [0, num_classes]; reads the device."""
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) > num_classes):
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(
            f"labels must lie in [0, {num_classes}] ({num_classes} is the null class), "
            f"got [{low}, {high}]"
        )


def _table(rows: int, width: int) -> nn.Parameter:
    """A learned table, exempt from weight decay."""
    table = nn.Parameter(torch.empty(rows, width))
    table.no_weight_decay = True  # type: ignore[attr-defined]
    return table
