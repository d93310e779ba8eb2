from __future__ import annotations

import importlib.util
import json
from dataclasses import fields
from pathlib import Path

import pytest

from lambda24.common.config import load_config
from lambda24.scripts.reports.quantizer_comparison import ComparisonResult
from lambda24.scripts.reports.quantizer_task import ComparisonConfig
from lambda24.tokenizer.quantizers import build_quantizer

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location(
    "compare_quantizers", ROOT / "scripts" / "compare_quantizers.py"
)
assert spec is not None
assert spec.loader is not None
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "comparison").glob("*.yaml")))
def test_shipped_comparisons_are_at_equal_bits(path: Path) -> None:
    config = load_config(ComparisonConfig, path)
    groups: dict[str, list[float]] = {}
    for contender in config.contenders:
        bits = build_quantizer(contender.quantizer).bits
        groups.setdefault(contender.group, []).append(bits)
    for group, bits in groups.items():
        assert max(bits) - min(bits) < 0.5, (group, bits)


def test_unknown_contender_is_refused() -> None:
    path = ROOT / "configs" / "comparison" / "digits.yaml"
    with pytest.raises(ValueError, match="nobody"):
        program.main([str(path), "--only", "nobody"])


def test_only_leaves_overrides_alone_and_keeps_the_others_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "configs" / "comparison" / "digits.yaml"
    config = load_config(ComparisonConfig, path)
    row = {field.name: 1.0 for field in fields(ComparisonResult)}
    for contender in config.contenders[:2]:
        folder = tmp_path / contender.name / "seed_7"
        folder.mkdir(parents=True)
        result = {**row, "name": contender.name, "group": contender.group, "seed": 7}
        (folder / "result.json").write_text(json.dumps(result))
    first, second = (contender.name for contender in config.contenders[:2])
    program.main([str(path), "--only", first, "seeds=[7]", f"run={tmp_path}"])
    assert f"| {first} |" in (shown := capsys.readouterr().out)
    assert f"| {second} |" in shown
    assert (tmp_path / "table.md").read_text() in shown
    names = [r["name"] for r in json.loads((tmp_path / "results.json").read_text())["results"]]
    assert names == [first, second]


def test_report_files(tmp_path: Path) -> None:
    result = ComparisonResult(
        name="a",
        group="g",
        seed=0,
        bits=14.0,
        latent_channels=24,
        psnr=20.0,
        ssim=0.5,
        entropy_bits=12.0,
        usage=0.5,
        perplexity=4096.0,
        num_tokens=1e4,
        images_per_second=10.0,
        peak_memory_mib=1.0,
        seconds=3.0,
    )
    program.write_report(tmp_path, [result])
    assert json.loads((tmp_path / "results.json").read_text())["results"][0]["psnr"] == 20.0
    assert {p.name for p in tmp_path.glob("*.svg")} == {"psnr.svg", "ssim.svg", "entropy_bits.svg"}
    assert "| a |" in (tmp_path / "table.md").read_text()
