from dataclasses import replace
from typing import Any

import pytest

from lambda24.generator.config import GeneratorConfig

CONFIG = GeneratorConfig(depth=3, width=32, num_heads=4, num_classes=5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_heads", 5, "width 32 must be divisible by num_heads 5"),
        ("num_heads", 16, r"32 / 16 = 2"),
        ("depth", 0, "depth must be at least 1, got 0"),
        ("drop_path", 1.0, r"drop_path must be in \[0, 1\), got 1.0"),
        ("mlp_ratio", 0.0, r"width x mlp_ratio must be at least 1, got 32 x 0\.0"),
        ("mlp_ratio", -1.0, r"got 32 x -1\.0"),
        ("rope_theta", 0.0, "rope_theta must be above 0, got 0.0"),
    ],
)
def test_bad_configs_name_field_and_value(field: str, value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **{field: value})
