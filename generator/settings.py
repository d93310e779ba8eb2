"""Settings of a stage-2 run, and whether data, tokenizer and head suit them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lambda24.common.config import config_class
from lambda24.common.data.dataset import ImageDataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.optim.build import AnyOptimizerConfig
from lambda24.common.training.loop import LoopConfig
from lambda24.generator.config import GeneratorConfig
from lambda24.generator.objective import GuardConfig, ScaleWeights
from lambda24.generator.self_correction import SelfCorrectionConfig
from lambda24.tokenizer.model import TokenizerConfig
from lambda24.tokenizer.quantizers import SphericalConfig


@config_class
class GeneratorTrainingConfig:
    """One stage-2 run: `python scripts/train_generator.py FILE.yaml tokenizer=FOLDER`.

    Args:
        tokens: folder of `scripts/extract_tokens.py` to read tokens from; None encodes images.
        label_smoothing: share of the target that is uniform over all codes.
        scale_weights: "inverse_side" weighs the tokens of a scale by one over the root of its area,
            at a mean weight of one.
        self_correction: errors in the token history.
        guard: when to give up.
        checkpoint_activations: gradients recompute what is inside blocks: less memory, more time.
        compile: the generator's blocks with `torch.compile`.
    """

    run: str
    tokenizer: str
    data: DataConfig
    model: GeneratorConfig
    optimizer: AnyOptimizerConfig
    loop: LoopConfig
    tokens: str | None = None
    z_loss_weight: float = 1e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    scale_weights: ScaleWeights = "uniform"
    class_dropout: float = 0.1
    self_correction: SelfCorrectionConfig | None = None
    guard: GuardConfig = GuardConfig()
    checkpoint_activations: bool = False
    compile: bool = False
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    num_eval_images: Annotated[int, Field(ge=1)] = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"class_dropout must lie in [0, 1), got {self.class_dropout}")
        if self.z_loss_weight < 0:
            raise ValueError(f"z_loss_weight must not be negative, got {self.z_loss_weight}")
        if self.tokens is not None and self.self_correction is not None:
            raise ValueError(
                f"self_correction quantizes images anew, which tokens {self.tokens!r} replace: "
                "set one of the two"
            )


def check_classes(config: GeneratorTrainingConfig, data: ImageDataset) -> None:
    """Raises ValueError unless the model has the classes of the data."""
    if data.num_classes != config.model.num_classes:
        raise ValueError(
            f"model.num_classes is {config.model.num_classes}, but the data has "
            f"{data.num_classes} classes {data.label_names[:5]}"
        )


def check_tokenizer(config: GeneratorTrainingConfig, tokenizer: TokenizerConfig) -> None:
    """Raises ValueError unless data and head suit the tokenizer.

    The data must be cut to its images. A head of the lattice needs its tokens: number and dimension
    of the codes alone do not tell, `slq_released` has as many in another order.
    """
    if config.data.image_size != tokenizer.image_size:
        raise ValueError(
            f"data.image_size is {config.data.image_size}, but the tokenizer was trained at "
            f"{tokenizer.image_size}"
        )
    quantizer, head = tokenizer.quantizer, config.model.head.kind
    code = quantizer.code if isinstance(quantizer, SphericalConfig) else quantizer.kind
    if head in ("lattice", "coordinates") and code != "leech":
        raise ValueError(
            f"model.head.kind is {head!r}, for codes of 'leech', but tokenizer {config.tokenizer} "
            f"has those of {code!r}: choose 'categorical', or 'bits' for bsq and lfq"
        )
