"""Named shapes: published Infinity-CC and VAR generators, and small ones for 32 and 64 pixels.

A preset is a config and the pyramid its parameter count was published with. Only shapes: none of
these rows was trained here, unless a file under configs/ says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lambda24.generator.config import GeneratorConfig
from lambda24.generator.heads import CategoricalHeadConfig, LatticeHeadConfig
from lambda24.tokenizer.tokens import TokenSpec

IMAGENET_CLASSES = 1000
LEECH_CODES, LEECH_DIM = 196_560, 24


@dataclass(frozen=True)
class Preset:
    """A generator's shape and the token pyramid that goes with it."""

    config: GeneratorConfig
    spec: TokenSpec

    def with_classes(self, num_classes: int) -> Preset:
        """The same shape for another number of classes."""
        return replace(self, config=replace(self.config, num_classes=num_classes))


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: unknown name; lists the known ones.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}, known: {', '.join(PRESETS)}")
    return PRESETS[name]


def _pyramid(scales: tuple[int, ...], codes: int, dim: int) -> TokenSpec:
    return TokenSpec(scales=scales, codebook_sizes=(codes,), code_dim=dim, latent_size=scales[-1])


def _infinity_cc() -> Iterator[tuple[str, Preset]]:
    """Infinity-CC, 256 px (arXiv 2512.14697): full 196,560-way head, Infinity's RoPE grid."""
    spec = _pyramid((1, 2, 4, 6, 8, 12, 16), LEECH_CODES, LEECH_DIM)
    rows = (
        # name, depth, width, heads, adaln
        ("infinity-cc-12", 12, 768, 8, "shared"),  # 0.24 B
        ("infinity-cc-16", 16, 1152, 12, "shared"),  # 0.49 B
        ("infinity-cc-24", 24, 1536, 16, "per_block"),  # 1.33 B
        ("infinity-cc-32", 32, 2048, 16, "per_block"),  # 2.8 B
    )
    for name, depth, width, heads, adaln in rows:
        config = GeneratorConfig(
            depth=depth,
            width=width,
            num_heads=heads,
            num_classes=IMAGENET_CLASSES,
            head=CategoricalHeadConfig(),
            adaln="shared" if adaln == "shared" else "per_block",
            rope_grid="corners",
            rope_reference=64,
            drop_path=0.1,
        )
        yield name, Preset(config, spec)


def _var() -> Iterator[tuple[str, Preset]]:
    """VAR (arXiv 2404.02905): width 64 x depth, 4,096 codes, learned positions."""
    at_256 = _pyramid((1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 4096, 32)
    at_512 = _pyramid((1, 2, 3, 4, 6, 9, 13, 18, 24, 32), 4096, 32)
    rows = (
        # name, depth, initial gamma; the 512 px model shares AdaLN
        ("var-d16", 16, 1e-3),  # 310 M
        ("var-d20", 20, 1e-3),  # 600 M
        ("var-d24", 24, 1e-4),  # 1.0 B
        ("var-d30", 30, 1e-5),  # 2.0 B
        ("var-d36-512", 36, 5e-6),  # 2.35 B
    )
    for name, depth, gamma_init in rows:
        large = name.endswith("-512")
        config = GeneratorConfig(
            depth=depth,
            width=64 * depth,
            num_heads=depth,
            num_classes=IMAGENET_CLASSES,
            head=CategoricalHeadConfig(),
            position="learned",
            adaln="shared" if large else "per_block",
            drop_path=0.1 * depth / 24,
            adaln_init=0.5,
            gamma_init=gamma_init,
        )
        yield name, Preset(config, at_512 if large else at_256)


def _mini() -> Iterator[tuple[str, Preset]]:
    """Small images on a CPU or one small GPU: 10 classes, lattice softmax.

    RoPE's base is 100, as for axial RoPE in vision transformers (arXiv 2403.13298): with 10,000
    most channel pairs hardly turn on a grid of 8.
    """
    rows = (
        # name, scales, depth, width, heads
        ("mini-32", (1, 2, 4, 8), 8, 384, 6),  # 85 tokens
        ("mini-64", (1, 2, 3, 4, 6, 8), 8, 512, 8),  # 130 tokens
    )
    for name, scales, depth, width, heads in rows:
        config = GeneratorConfig(
            depth=depth,
            width=width,
            num_heads=heads,
            num_classes=10,
            head=LatticeHeadConfig(),
            rope_theta=100.0,
        )
        yield name, Preset(config, _pyramid(scales, LEECH_CODES, LEECH_DIM))


PRESETS: dict[str, Preset] = dict((*_infinity_cc(), *_var(), *_mini()))
