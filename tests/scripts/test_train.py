"""The training programs as a user runs them, on tiny networks and the built-in digits."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lambda24.common.config import from_dict, load_config, to_dict
from lambda24.generator import NextScaleGenerator
from lambda24.generator.frozen_tokenizer import tokenizer_config
from lambda24.generator.heads import CategoricalHeadConfig
from lambda24.generator.settings import GeneratorTrainingConfig, check_tokenizer
from lambda24.sampling import Pipeline, SamplingConfig
from lambda24.sampling.evaluation.protocol import EvaluationRun
from lambda24.scripts import train_generator, train_tokenizer
from lambda24.scripts.reports.quantizer_task import ComparisonConfig
from lambda24.tokenizer import ImageTokenizer
from lambda24.tokenizer.evaluation import TokenizerEvaluationRun
from lambda24.tokenizer.settings import TokenizerTrainingConfig

ROOT = Path(__file__).parents[2]
DEBUG = ROOT / "configs" / "debug"


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage_1") / "run"
    scores = train_tokenizer.main([str(DEBUG / "tokenizer.yaml"), f"run={folder}"])
    return folder, scores


def train_stage_2(stage_1, run, *overrides):
    names = [f"tokenizer={stage_1[0]}", f"run={run}", *overrides]
    return train_generator.main([str(DEBUG / "generator.yaml"), *names])


def digest(run):
    """SHA-1 of everything the newest checkpoint of a run holds."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    state = torch.load(newest / "state.pt", weights_only=True)["task"]
    sha = hashlib.sha1()

    def add(value):
        if isinstance(value, torch.Tensor):
            sha.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                sha.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            sha.update(repr(value).encode())

    add(state)
    return newest.name, sha.hexdigest()


def test_stage_1_learns_and_leaves_a_run_folder(stage_1):
    folder, scores = stage_1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["l1"] for line in lines if "l1" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert scores["psnr"] > 8
    names = {"config.yaml", "metrics.jsonl", "log.txt", "samples", "checkpoints", "tokenizer"}
    assert names <= {path.name for path in folder.iterdir()}
    assert (folder / "samples" / "step_000030.png").stat().st_size > 1000
    assert ImageTokenizer.from_pretrained(folder).spec.length == 21


def test_stage_2_learns_and_its_run_is_a_pipeline(stage_1, tmp_path):
    scores = train_stage_2(stage_1, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [row["nll"] for row in map(json.loads, lines) if "nll" in row]
    assert losses[-1] < losses[0]
    assert scores["nll"] < 12.19  # nats of a uniform draw from 196,560 codes
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    assert [image.size for image in pipeline(labels=["3", 7], seeds=[0, 1])] == [(16, 16)] * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_bit_for_bit(stage_1, tmp_path, workers):
    """Stage 2 whole, and killed (SIGKILL) after a checkpoint and started again."""
    options = ["loop.steps=6", "loop.save_every=3", f"data.num_workers={workers}"]
    train_stage_2(stage_1, tmp_path / "whole", *options)
    command = [sys.executable, str(ROOT / "scripts" / "train_generator.py")]
    command += [str(DEBUG / "generator.yaml"), f"tokenizer={stage_1[0]}"]
    command += [f"run={tmp_path / 'killed'}", "loop.steps=500", "loop.save_every=3", *options[2:]]
    # Sums of floats depend on the number of threads, so both runs have the same.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env={**os.environ, **threads}, cwd=ROOT)
    checkpoint = tmp_path / "killed" / "checkpoints" / "step_000003" / "state.pt"
    deadline = time.monotonic() + 600
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = sorted((tmp_path / "killed" / "checkpoints").glob("step_*/state.pt"))
    for later in steps[1:]:  # the kill may come after the next checkpoint on a slow machine
        later.unlink()
    config = tmp_path / "killed" / "config.yaml"
    config.write_text(config.read_text().replace("steps: 500", "steps: 6"))
    train_stage_2(stage_1, tmp_path / "killed", *options)
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


def test_two_processes_equal_one(stage_1, tmp_path):
    """The same global batch on one process and on two gloo processes."""
    options = ["loop.steps=3", "loop.batch_size=16", "loop.save_every=3"]
    train_stage_2(stage_1, tmp_path / "one", *options)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--standalone", str(ROOT / "scripts" / "train_generator.py")]
    command += [str(DEBUG / "generator.yaml"), f"tokenizer={stage_1[0]}"]
    command += [f"run={tmp_path / 'two'}", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=240)
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "step_000003" / "state.pt", weights_only=True)
        for name in ("one", "two")
    )
    for name, value in one["task"]["generator"].items():
        torch.testing.assert_close(two["task"]["generator"][name], value, atol=2e-5, rtol=1e-4)


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    arguments = [str(DEBUG / "tokenizer.yaml"), f"run={tmp_path / 'run'}", "--dry-run"]
    assert train_tokenizer.main(arguments) == {}
    printed = capsys.readouterr().out
    assert "21 tokens of 17.58 bits" in printed
    assert not (tmp_path / "run").exists()


def test_wrong_classes_and_sizes_are_refused_before_anything_is_written(stage_1, tmp_path):
    with pytest.raises(ValueError, match=r"num_classes is 7, but the data has 10 classes"):
        train_stage_2(stage_1, tmp_path / "run", "model.num_classes=7")
    with pytest.raises(ValueError, match=r"data\.image_size is 32, but the tokenizer .* 16"):
        train_stage_2(stage_1, tmp_path / "run", "data.image_size=32")
    with pytest.raises(ValueError, match=r"data\.image_size 8 must equal model\.image_size 16"):
        train_tokenizer.main([str(DEBUG / "tokenizer.yaml"), "data.image_size=8"])
    with pytest.raises(ValueError, match=r"^tokenizer: .*nowhere is not a folder"):
        train_stage_2((tmp_path / "nowhere",), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("head", ["lattice", "coordinates"])
def test_a_head_of_the_lattice_refuses_other_codes(tmp_path, head):
    codes = {"kind": "spherical", "code": "slq_released"}  # as many, in 24 dimensions
    config = load_config(TokenizerTrainingConfig, DEBUG / "tokenizer.yaml").model
    stage_1 = from_dict(type(config), to_dict(config) | {"quantizer": codes})
    overrides = [f"tokenizer={tmp_path}", f"model.head.kind={head}", "data.image_size=16"]
    run = load_config(GeneratorTrainingConfig, DEBUG / "generator.yaml", overrides)
    check_tokenizer(run, config)
    with pytest.raises(ValueError, match=rf"head\.kind is '{head}'.* those of 'slq_rel"):
        check_tokenizer(run, stage_1)


def test_a_tokenizer_that_changed_in_place_is_refused(stage_1, tmp_path):
    shutil.copytree(stage_1[0] / "tokenizer", tmp_path / "stage_1")
    short = ["loop.steps=1", "loop.batch_size=4", "num_eval_images=4"]
    train_stage_2((tmp_path / "stage_1",), tmp_path / "run", *short)
    image_tokenizer = ImageTokenizer.from_pretrained(tmp_path / "stage_1")
    next(image_tokenizer.encoder.parameters()).data.add_(0.1)
    image_tokenizer.save_pretrained(tmp_path / "stage_1")
    with pytest.raises(ValueError, match=r"stage_1 has changed since .*run was started on it"):
        train_stage_2((tmp_path / "stage_1",), tmp_path / "run", *short)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "generator").glob("*.yaml")), ids=str)
def test_both_stages_of_a_config_build_and_fit_together(path):
    config = load_config(GeneratorTrainingConfig, path)
    stage_1 = tokenizer_config(config.tokenizer)
    dense = isinstance(config.model.head, CategoricalHeadConfig)  # too large to be built here
    with torch.device("meta" if dense else "cpu"):
        spec = ImageTokenizer(stage_1).spec
        assert config.data.image_size == stage_1.image_size
        assert NextScaleGenerator(config.model, spec).spec == spec


def test_stage_1_trains_a_learned_codebook(tmp_path):
    overrides = [f"run={tmp_path / 'run'}", "model.quantizer.kind=vq_ema", "loop.steps=6"]
    train_tokenizer.main([str(DEBUG / "tokenizer.yaml"), *overrides, "loop.save_every=3"])
    first, last = (
        torch.load(tmp_path / "run" / "checkpoints" / name / "state.pt", weights_only=True)
        for name in ("step_000003", "step_000006")
    )
    states = [state["task"]["tokenizer"] for state in (first, last)]
    quantizer = [name for name in states[0] if "pyramid.quantizer" in name]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in quantizer)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=str)
def test_every_config_loads(path):
    config_class = {
        "sampling": SamplingConfig,
        "comparison": ComparisonConfig,
        "evaluation": TokenizerEvaluationRun if "tokenizer" in path.stem else EvaluationRun,
        "debug": {"tokenizer": TokenizerTrainingConfig, "generator": GeneratorTrainingConfig}.get(
            path.stem
        ),
        "tokenizer": TokenizerTrainingConfig,
        "generator": GeneratorTrainingConfig,
    }[path.parent.name]
    load_config(config_class, path)
