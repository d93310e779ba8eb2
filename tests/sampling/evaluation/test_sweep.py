import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lambda24.common.config import from_dict, load_config, save_config
from lambda24.common.data.dataset import ImageDataset, load_dataset
from lambda24.common.data.settings import DataConfig
from lambda24.common.metrics.extractors import EfficientNetLite0Features
from lambda24.sampling.evaluation import protocol as evaluation
from lambda24.sampling.evaluation.measure import MetricsConfig
from lambda24.sampling.evaluation.protocol import EvaluationConfig, evaluate_generator
from lambda24.sampling.evaluation.sweep import (
    SweepConfig,
    SweepFolder,
    SweepRow,
    SweepRun,
    describe,
    grid,
    sweep,
)
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.ramps import LinearRamp, VarRamp
from lambda24.sampling.settings import SamplingConfig
from lambda24.scripts.reports.sweep import best, draw, lines, setting, table
from tests.sampling.tiny_pipeline import tiny_pipeline

DATA = DataConfig(path="digits", image_size=16, max_images=40)
METRICS = MetricsConfig(
    extractor=EfficientNetLite0Features(size=32), kid_subsets=3, kid_subset_size=10
)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    return load_dataset(DATA, train=False)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline((), num_classes=10, scales=(1, 2))


def make_run(num_images: int = 20, **changes: Any) -> SweepRun:
    values = EvaluationConfig(num_images=30, batch_size=10, metrics=METRICS)
    plan = SweepConfig(num_images=num_images, first_seed=500, **changes)
    return SweepRun(data=DATA, reference="eval", evaluation=values, sweep=plan)


def test_rows_are_those_of_the_evaluator(
    pipeline: Pipeline, dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, built = [], []
    measure, build = evaluation.measure_reference, evaluation.build_extractor
    monkeypatch.setattr(
        evaluation, "measure_reference", lambda *a: measured.append(1) or measure(*a)
    )
    monkeypatch.setattr(evaluation, "build_extractor", lambda *a: built.append(1) or build(*a))
    ramp = LinearRamp(start=1.0, end=3.0)
    run = make_run(guidance_scale=(1.0, ramp), top_k=(None, 2.0))
    rows = sweep(pipeline, dataset, run, tmp_path, model="weights")
    assert (len(measured), len(built)) == (1, 1)
    expected = [
        SamplingConfig(guidance_scale=scale, top_k=k) for scale in (1.0, ramp) for k in (None, 2.0)
    ]
    assert [row.sampling for row in rows] == expected
    assert len({row.result.gfid for row in rows}) == 4
    config = EvaluationConfig(
        num_images=20, first_seed=500, batch_size=10, sampling=expected[3], metrics=METRICS
    )
    alone = evaluate_generator(pipeline, dataset, config, part="eval")
    for name in ("gfid", "inception_score", "precision", "recall", "kid_mean"):
        assert getattr(rows[3].result, name) == getattr(alone, name), name
    written, single = rows[3].result.protocol, alone.protocol
    for protocol in (written, single):
        protocol.pop("comparison_seconds")
    assert written == single
    stored = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["gfid"] for row in stored] == [row.result.gfid for row in rows]


def test_a_sweep_goes_on_where_it_was_cut_off(
    pipeline: Pipeline, dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[float] = []
    measure = evaluation.GeneratorEvaluator.measure

    def counted(self: Any, sampling: SamplingConfig) -> Any:
        if len(sampled) == 2:
            raise KeyboardInterrupt
        sampled.append(sampling.guidance_scale)  # type: ignore[arg-type]
        return measure(self, sampling)

    monkeypatch.setattr(evaluation.GeneratorEvaluator, "measure", counted)
    run = make_run(guidance_scale=(1.0, 2.0, 3.0))
    with pytest.raises(KeyboardInterrupt):
        sweep(pipeline, dataset, run, tmp_path, model="weights")
    rows_file = tmp_path / "rows.jsonl"
    first, second = rows_file.read_text().splitlines()
    rows_file.write_text(f"{first}\n{second[:50]}")  # killed while it wrote
    sampled.clear()
    rows = sweep(pipeline, dataset, run, tmp_path, model="weights")
    assert sampled == [2.0, 3.0]
    assert rows_file.read_text().splitlines()[:2] == [first, _same_time(second, rows[1])]
    assert [row.sampling.guidance_scale for row in rows] == [1.0, 2.0, 3.0]
    sampled.clear()
    assert len(sweep(pipeline, dataset, run, tmp_path, model="weights")) == 3
    assert sampled == []
    assert [row.result.gfid for row in SweepFolder(tmp_path).rows()] == [
        row.result.gfid for row in rows
    ]


def test_a_metric_that_is_not_finite_is_recorded_and_the_sweep_goes_on(
    pipeline: Pipeline, dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = evaluation.compare_features

    def broken(*arguments: Any) -> Any:
        result = compare(*arguments)
        if result.protocol["sampling"]["guidance_scale"] != 2.0:
            return result
        errors, intervals = {"recall": math.nan}, {"recall": (math.nan, math.nan)}
        return replace(result, gfid=math.nan, recall=math.inf, errors=errors, intervals=intervals)

    monkeypatch.setattr(evaluation, "compare_features", broken)
    run, announced = make_run(guidance_scale=(1.0, 2.0, 3.0)), []
    rows = sweep(pipeline, dataset, run, tmp_path, model="weights", announce=announced.append)
    assert announced[1].startswith("2 of 3, guidance_scale 2: gFID -, ")
    stored = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert stored[1]["gfid"] is stored[1]["recall"] is stored[1]["errors"]["recall"] is None
    assert stored[1]["intervals"] == {"recall": [None, None]}
    assert stored[1]["precision"] == rows[1].result.precision
    monkeypatch.setattr(evaluation, "sample_features", lambda *a: pytest.fail("sampled"))
    read = sweep(pipeline, dataset, run, tmp_path, model="weights")
    for found in (rows, read):
        assert [row.sampling.guidance_scale for row in found] == [1.0, 2.0, 3.0]
        cells = [cell.strip() for cell in table(found).splitlines()[-1].split("|")]
        assert (cells[1], cells[3], cells[6]) == ("2", "-", "-")
        assert [point.guidance for line in lines(found, 2) for point in line.points] == [1.0, 3.0]
        assert best(found) in (found[0], found[2])
        assert best([found[1]]) is None
        assert len(draw([found[1]], 2).axes) == 2


def _same_time(line: str, row: SweepRow) -> str:
    data = json.loads(line)
    data["protocol"]["comparison_seconds"] = row.result.protocol["comparison_seconds"]
    return json.dumps(data)


def test_rows_of_another_model_or_evaluation_are_not_mixed(
    pipeline: Pipeline, dataset: ImageDataset, tmp_path: Path
) -> None:
    sweep(pipeline, dataset, make_run(guidance_scale=(1.0,)), tmp_path, model="weights")
    with pytest.raises(ValueError, match="model: the folder has 'weights', got 'other'"):
        sweep(pipeline, dataset, make_run(guidance_scale=(2.0,)), tmp_path, model="other")
    with pytest.raises(ValueError, match=r"evaluation\.num_images: the folder has 20, got 30"):
        sweep(pipeline, dataset, make_run(30, guidance_scale=(2.0,)), tmp_path, model="weights")
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(ValueError, match=r"has rows but no sweep\.json"):
        sweep(pipeline, dataset, make_run(guidance_scale=(2.0,)), tmp_path, model="weights")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": (None, 76.0)}, r"sweep: top_k must be an integer in \[1, 75\], got 76"),
        ({"temperature": (1.0, -1.0)}, "sweep: temperature must be positive, got -1"),
        ({"guidance_scale": ((1.0, 2.0, 3.0),)}, "sweep: guidance_scale lists 3 values"),
        ({"guidance_scale": (2.0, (2.0, 2.0))}, r"sweep: .* draws what .* draws"),
        ({"num_images": 25}, "num_images 25 is not a multiple of 10 classes"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_is_sampled(
    pipeline: Pipeline,
    dataset: ImageDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(evaluation, "sample_features", lambda *a: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=message):
        sweep(pipeline, dataset, make_run(**changes), tmp_path / "sweep", model="weights")
    assert not (tmp_path / "sweep").exists()


def test_fewer_images_than_a_metric_needs_are_refused_before_anything_is_sampled(
    pipeline: Pipeline, dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "sample_features", lambda *a: pytest.fail("sampled"))
    run = make_run(20)
    large = replace(run.evaluation, metrics=replace(METRICS, kid_subset_size=25))
    with pytest.raises(ValueError, match="kid_subset_size 25 exceeds num_images 20"):
        sweep(
            pipeline, dataset, replace(run, evaluation=large), tmp_path / "sweep", model="weights"
        )
    assert not (tmp_path / "sweep").exists()


def test_the_final_evaluation_has_other_seeds(tmp_path: Path) -> None:
    file = Path(__file__).parents[3] / "configs" / "evaluation" / "digits.yaml"
    run = load_config(SweepRun, file, ["sweep.num_images=100"])
    assert (run.swept.first_seed, run.swept.num_images) == (1_000_000, 100)
    assert run.swept.metrics == run.evaluation.metrics
    assert load_config(SweepRun, file, ["sweep.first_seed=500"]).swept.num_images == 500
    with pytest.raises(ValueError, match=r"seeds 499 to 998 overlap with .* 0 to 499"):
        load_config(SweepRun, file, ["sweep.first_seed=499"])
    with pytest.raises(ValueError, match=r"sweep\.guidance_scale"):
        load_config(SweepRun, file, ["sweep.guidance_scale=[]"])
    with pytest.raises(ValueError, match=r"sweep\.top_k"):
        load_config(SweepRun, file, ["sweep.top_k=[none]"])


def test_settings_that_are_not_swept_are_the_evaluations(pipeline: Pipeline) -> None:
    base = SamplingConfig(guidance_scale=9.0, temperature=0.9, min_p=0.1)
    plan = from_dict(SweepConfig, {"guidance_scale": None, "top_k": [None, 3]})
    assert grid(plan, base, pipeline.generator.spec) == [
        SamplingConfig(guidance_scale=9.0, temperature=0.9, min_p=0.1, top_k=k) for k in (None, 3.0)
    ]
    ramp = SamplingConfig(guidance_scale=LinearRamp(start=1.0, end=2.5), top_k=3.0)
    assert describe(ramp) == "guidance_scale linear 1→2.5, top_k 3"
    assert describe(SamplingConfig(guidance_scale=VarRamp(cfg=1.5))) == "guidance_scale var 1.5"
    var = from_dict(SweepConfig, {"guidance_scale": [{"kind": "var", "cfg": 4}]})
    assert grid(var, base, pipeline.generator.spec)[0].guidance_scale == VarRamp(cfg=4.0)
    assert describe(SamplingConfig(temperature=0.9)) == "guidance_scale 1, temperature 0.9"


def made_up(guidance: Any, top_k: float | None, gfid: float) -> SweepRow:
    values = dict.fromkeys(("sfid", "inception_score"))
    numbers = dict.fromkeys(
        ("density", "coverage", "clipped_density", "clipped_coverage", "kid_mean", "kid_std"), 0.5
    )
    result = evaluation.EvaluationResult(
        gfid=gfid,
        precision=gfid / 100,
        recall=1 - gfid / 100,
        errors={},
        intervals={},
        protocol={},
        **values,
        **numbers,  # type: ignore[arg-type]
    )
    return SweepRow(SamplingConfig(guidance_scale=guidance, top_k=top_k), result)


ROWS = [
    made_up(3.0, None, 30.0),
    made_up(1.0, None, 20.0),
    made_up(1.0, 900.0, 40.0),
    made_up(LinearRamp(start=1.0, end=3.0), 900.0, 10.0),
]


def test_table_has_the_best_setting_first() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(ROWS).splitlines()]
    assert rows[0][:6] == ["guidance", "top-k", "gFID", "IS", "precision", "recall"]
    assert [row[:3] for row in rows[2:]] == [
        ["linear 1→3", "900", "10.00"],
        ["1", "none", "20.00"],
        ["3", "none", "30.00"],
        ["1", "900", "40.00"],
    ]


def test_plot_has_a_line_for_each_top_k_by_guidance() -> None:
    found = lines(ROWS, num_scales=5)
    assert [line.name for line in found] == ["top-k none", "top-k 900"]
    points = [[(p.guidance, p.gfid, p.text) for p in line.points] for line in found]
    assert points == [
        [(1.0, 20.0, "1"), (3.0, 30.0, "3")],
        [(1.0, 40.0, "1"), (2.0, 10.0, "linear 1→3")],
    ]
    left, right = draw(ROWS, num_scales=5).axes
    assert [line.get_xydata().tolist() for line in left.lines] == [
        [[1, 20], [3, 30]],
        [],
        [[1, 40]],
        [[2, 10]],
    ]
    assert right.lines[0].get_xydata().tolist() == [[0.8, 0.2], [0.7, 0.3]]
    assert [text.get_text() for text in right.texts] == ["1", "3", "1", "linear 1→3"]
    assert left.get_xlabel() == "guidance scale (mean over scales)"


def test_settings_are_written_with_whole_top_k(tmp_path: Path) -> None:
    save_config(setting(made_up(2.0, 900.0, 10.0)), tmp_path / "best.yaml")
    text = (tmp_path / "best.yaml").read_text()
    assert "guidance_scale: 2.0\n" in text
    assert "top_k: 900\n" in text
    sampling = SamplingConfig(top_k=LinearRamp(start=900.0, end=1.5))
    row = replace(made_up(1.0, None, 10.0), sampling=sampling)
    assert setting(row)["top_k"] == {"kind": "linear", "start": 900, "end": 1.5}
    assert "start: 900," in str(setting(row)).replace("'", "")
    assert from_dict(SamplingConfig, setting(row)) == sampling
    assert setting(made_up(1.0, None, 10.0))["top_k"] is None
