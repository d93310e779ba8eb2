"""The command line of training programs."""

import pytest

from lambda24.common.config import config_class
from lambda24.common.data.settings import DataConfig
from lambda24.common.training import program
from lambda24.common.training.loop import LoopConfig


@config_class
class Config:
    run: str
    loop: LoopConfig
    data: DataConfig = DataConfig(image_size=8, max_images=20)
    seed: int = 0


@pytest.fixture
def call(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        program, "fit", lambda *args, **options: calls.append((args, options)) or {}
    )
    file = tmp_path / "config.yaml"
    file.write_text("{run: here, loop: {steps: 3, batch_size: 4}}")

    def run(*arguments):
        program.training_program(
            Config,
            lambda config, eval_data: ("task", config.seed, len(eval_data)),
            [str(file), *arguments],
            plan=lambda config: f"{config.loop.steps} steps",
            description=None,
            overrides_help="",
        )
        return calls

    return run


def test_overrides_and_options_reach_the_loop(call):
    (((task, data), options),) = call("seed=5", "--profile", "7", "loop.steps=9")[-1:]
    assert task[:2] == ("task", 5)
    assert task[2] == len(data) == 20
    assert options["loop"].steps == options["config"].loop.steps == 9
    assert (options["seed"], options["profile"], str(options["run"])) == (5, 7, "here")


def test_a_dry_run_trains_nothing(call, capsys):
    assert call("--dry-run", "loop.steps=9") == []
    assert capsys.readouterr().out.count("9 steps\n") == 1
