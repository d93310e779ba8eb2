"""Settings of a stage-1 run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lambda24.common.config import config_class
from lambda24.common.data.settings import DataConfig
from lambda24.common.optim.adamw import OptimizerConfig
from lambda24.common.training.loop import LoopConfig
from lambda24.tokenizer.adversary.adversary import AdversaryConfig
from lambda24.tokenizer.losses import ReconstructionLossConfig
from lambda24.tokenizer.model import TokenizerConfig
from lambda24.tokenizer.teachers.alignment import AlignmentConfig


@config_class
class TokenizerTrainingConfig:
    """One stage-1 run: `python scripts/train_tokenizer.py FILE.yaml`.

    Args:
        scale_dropout: share of training images that are decoded from their first 1 to S - 1 scales
            only, which makes coarse scales carry what a generator must decide first.
        prefix_weight: of the reconstruction loss of each image decoded from its first 1 to S - 1
            scales, beside the whole one. Decodes twice.
        alignment: None trains without a vision foundation model.
        adversary: None trains without a discriminator.
        compile: encoder and decoder with `torch.compile`.
    """

    run: str
    data: DataConfig
    model: TokenizerConfig
    optimizer: OptimizerConfig
    loop: LoopConfig
    loss: ReconstructionLossConfig = ReconstructionLossConfig()
    scale_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    prefix_weight: Annotated[float, Field(ge=0)] = 0.0
    alignment: AlignmentConfig | None = None
    adversary: AdversaryConfig | None = None
    compile: bool = False
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    num_eval_images: Annotated[int, Field(ge=1)] = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.data.image_size != self.model.image_size:
            raise ValueError(
                f"data.image_size {self.data.image_size} must equal model.image_size "
                f"{self.model.image_size}"
            )
        if self.adversary is not None and self.adversary.start_step >= self.loop.steps:
            raise ValueError(
                f"adversary.start_step {self.adversary.start_step} must be below loop.steps "
                f"{self.loop.steps}, or the discriminator never trains"
            )
        num_scales = len(self.model.pyramid.scales)
        if num_scales == 1 and max(self.prefix_weight, self.scale_dropout) > 0:
            raise ValueError(
                "one scale has no prefixes: prefix_weight and scale_dropout must be 0, got "
                f"{self.prefix_weight} and {self.scale_dropout}"
            )

    @property
    def has_adaptive_weight(self) -> bool:
        """Whether a step differentiates losses with respect to single weights."""
        parts = (self.alignment, self.adversary)
        return any(part is not None and part.adaptive for part in parts)
