"""What heads with scores of coordinates share: one layer W -> K (24 x 9), and sums over a code.

Column v + 4 of a row of nine belongs to the value v of a coordinate.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from lambda24.generator.heads.base import Head, head_linear, head_outputs
from lambda24.tokenizer.lattices import leech
from lambda24.tokenizer.lattices.softmax.tables import NUM_VALUES
from lambda24.tokenizer.tokens import TokenSpec


class LeechHead(Head):
    """A head for tokens that are canonical indices of the 196,560 codes of dimension 24.

    Args:
        kind: name of the head, for messages.
        width: W, channels of the hidden states.
        spec: must describe tokens of the canonical Leech order.
        num_mixtures: K; above 1 the layer has K more outputs, the mixture logits.

    Raises:
        ValueError: the codebook is not one of 196,560 codes of dimension 24.
    """

    cells: Tensor
    value_counts: Tensor

    def __init__(self, kind: str, width: int, spec: TokenSpec, num_mixtures: int = 1) -> None:
        super().__init__()
        if spec.codebook_sizes != (leech.NUM_CODES,) or spec.code_dim != leech.DIM:
            raise ValueError(
                f"the {kind} head needs codebook_sizes ({leech.NUM_CODES},) and code_dim "
                f"{leech.DIM}, got {spec.codebook_sizes} and {spec.code_dim}"
            )
        self.num_mixtures = num_mixtures
        self.is_linear = num_mixtures == 1
        extra = num_mixtures if num_mixtures > 1 else 0
        self.linear = head_linear(width, num_mixtures * leech.DIM * NUM_VALUES + extra)
        cells = leech.codebook(torch.int8) + 4
        self.register_buffer("cells", cells, persistent=False)
        # Codes with each value of a coordinate: the same for all 24, which the group permutes.
        counts = torch.bincount(cells[:, 0].long(), minlength=NUM_VALUES)
        self.register_buffer("value_counts", counts, persistent=False)

    def mixture_scores(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `(..., K, 24, 9)` and mixture logits `(..., K)`, zero when K = 1."""
        outputs = head_outputs(hidden, self.linear.weight, self.linear.bias)
        num_scores = self.num_mixtures * leech.DIM * NUM_VALUES
        scores = rearrange(
            outputs[..., :num_scores], "... (k i v) -> ... k i v", i=leech.DIM, v=NUM_VALUES
        )
        if self.num_mixtures == 1:
            return scores, outputs.new_zeros(*outputs.shape[:-1], 1)
        return scores, outputs[..., num_scores:]

    def token_scores(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Scores of `tokens (...,)` in each component, `(..., K, 24, 9)` -> `(..., K)`."""
        cells = self.cells[tokens].long()[..., None, :, None]  # (..., 1, 24, 1)
        cells = cells.expand(*scores.shape[:-1], 1)
        return scores.gather(-1, cells).sum((-2, -1))

    def mean_score(self, scores: Tensor) -> Tensor:
        """Mean over all codes of their scores, `(..., 24, 9)` -> `(...,)`."""
        frequencies = self.value_counts.to(scores.dtype) / leech.NUM_CODES
        return (scores * frequencies).sum((-2, -1))
