"""The protocol of discriminators."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lambda24.tokenizer.adversary.discriminators.layers import advance_spectral_norms


class Discriminator(nn.Module, ABC):
    """Images to logits, high for real ones.

    A forward pass changes no state, so it may run any number of times in a step; a sample's logits
    depend on no sample outside its group of `group_size` consecutive ones.
    """

    group_size: int = 1

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, N) in fp32, N judgements of each image, of images (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: a batch that `group_size` does not divide.
        """

    def after_step(self) -> None:
        """Call after each optimizer step: spectral norms follow their weights."""
        advance_spectral_norms(self)
