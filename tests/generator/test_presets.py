"""Parameter counts of the preset table, on the meta device, against published sizes."""

from dataclasses import replace

import pytest
import torch

from generator.heads import CategoricalHeadConfig, LatticeHeadConfig
from generator.model import GeneratorConfig, NextScaleGenerator
from generator.presets import PRESETS, preset
from tokenizer.lattices import leech
from tokenizer.tokens import TokenSpec

# Millions. Infinity-CC: 12 d w^2 + AdaLN + head, as in its paper (240 M, .49 B), README (1.3 B) and
# the 2.8 B of its largest row. VAR: the repository's table (310 M, 600 M, 1.0 B, 2.0 B, 2.3 B).
MILLIONS = {
    "infinity-cc-12": 242,
    "infinity-cc-16": 494,
    "infinity-cc-24": 1328,
    "infinity-cc-32": 2829,
    "var-d16": 310.3,
    "var-d20": 600.9,
    "var-d24": 1033,
    "var-d30": 2010,
    "var-d36-512": 2354,
}


def count(config: GeneratorConfig, spec: TokenSpec) -> int:
    with torch.device("meta"):
        model = NextScaleGenerator(config, spec)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", MILLIONS)
def test_published_sizes(name: str):
    row = preset(name)
    assert count(row.config, row.spec) / 1e6 == pytest.approx(MILLIONS[name], rel=2e-3)


def test_small_presets_fit_a_small_machine():
    for name in PRESETS.keys() - MILLIONS.keys():
        row = preset(name)
        assert isinstance(row.config.head, LatticeHeadConfig)
        assert row.spec.codebook_sizes == (leech.NUM_CODES,)
        # The lattice head holds real tables: count everything else, on the meta device.
        trunk = replace(row.config, head=CategoricalHeadConfig())
        small = replace(row.spec, codebook_sizes=(1,))
        assert 10e6 < count(trunk, small) < 50e6


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="no preset 'var-d17', known: infinity-cc-12"):
        preset("var-d17")


def test_with_classes_changes_the_class_table_only():
    row = preset("mini-32").with_classes(7)
    assert row.config.num_classes == 7
    assert row.spec == preset("mini-32").spec
