import math
from pathlib import Path
from typing import Any

import pytest

from lambda24.common.training.run_folder import RunFolder
from lambda24.scripts.reports.curves import (
    Panel,
    comparison_panels,
    curves,
    draw_comparison,
    draw_run,
    read_curves,
    run_panels,
)
from lambda24.scripts.reports.plots import save_figure


def records(factor: float = 1.0) -> list[dict[str, Any]]:
    """What a generator's run writes: training every 10 steps, evaluation every 20."""
    found: list[dict[str, Any]] = []
    for step in range(10, 50, 10):
        training = {
            "seconds": 2.0 * step,
            "loss": factor * step,
            "nll_0": step + 1.0,
            "lr": 1e-3,
            "nll_1": step + 2.0,
            "gradient_norm": 10.0 ** (step / 10),
        }
        found.append({"step": step, **training})
        if step % 20 == 0:
            held_out = {"eval/loss": factor * step + 5, "eval/nll_0": 3.0, "eval/nll_1": 4.0}
            found.append({"step": step, **held_out, "eval/accuracy": step / 100})
    return found


def content(panel: Panel) -> list[tuple[int, bool, tuple[float, ...]]]:
    return [(line.owner, line.is_held_out, line.curve.values) for line in panel.lines]


def test_a_run_folder_is_read_by_key(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for record in [{"step": 1, "loss": 3.0}, {"step": 2, "loss": math.inf, "lr": 0.1}]:
        folder.append_metrics(record)
    with open(folder.metrics_file, "a") as file:
        file.write('{"step": 3, "lo')  # killed while it wrote
    found = read_curves(tmp_path)
    assert set(found) == {"loss", "lr"}
    assert (found["lr"].steps, found["lr"].values) == ((2,), (0.1,))
    assert found["loss"].steps == (1, 2)
    assert found["loss"].values[0] == 3
    assert math.isnan(found["loss"].values[1])
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"other is not a run folder: metrics\.jsonl has no"):
        read_curves(tmp_path / "other")
    with pytest.raises(ValueError, match=r"nothing is not a run folder: no such folder exists"):
        read_curves(tmp_path / "nothing")


def test_a_run_has_a_panel_for_each_quantity_and_one_for_all_its_scales() -> None:
    loss, nll, held_out, accuracy, rate, norm = run_panels(curves(records()))
    assert loss.title == "loss (all terms)"
    assert content(loss) == [(0, False, (10, 20, 30, 40)), (0, True, (25, 45))]
    assert loss.lines[1].curve.steps == (20, 40)
    assert (nll.title, nll.unit) == ("negative log-likelihood, per scale", "nats per token")
    assert content(nll) == [(0, False, (11, 21, 31, 41)), (1, False, (12, 22, 32, 42))]
    assert held_out.title == "negative log-likelihood, per scale, held out"
    assert content(held_out) == [(0, True, (3, 3)), (1, True, (4, 4))]
    assert content(accuracy) == [(0, True, (0.2, 0.4))]
    assert (rate.title, norm.title) == ("learning rate", "gradient norm before clipping")
    assert [panel.is_log for panel in (nll, rate, norm)] == [False, False, True]


def test_keys_choose_panels() -> None:
    run = curves(records())
    assert [panel.title for panel in run_panels(run, ["lr", "nll_1"])] == [
        "learning rate",
        "negative log-likelihood, per scale",
        "negative log-likelihood, per scale, held out",
    ]
    assert content(run_panels(run, ["nll_1"])[0]) == [(1, False, (12, 22, 32, 42))]
    assert len(run_panels(run, ["eval/loss", "loss"])) == 1
    assert content(run_panels(run, ["seconds"])[0]) == [(0, False, (20, 40, 60, 80))]
    with pytest.raises(ValueError, match="no run has the key 'los'; there are: seconds, loss, "):
        run_panels(run, ["los"])


def test_runs_are_laid_over_each_other() -> None:
    first, second = curves(records()), curves(records(2.0))
    del second["gradient_norm"]
    panels = comparison_panels([first, second], ["loss", "gradient_norm", "nll"])
    assert [panel.title for panel in panels] == [
        "loss (all terms)",
        "gradient norm before clipping",
        "negative log-likelihood, scale 0",
        "negative log-likelihood, scale 1",
    ]
    assert content(panels[0]) == [
        (0, False, (10, 20, 30, 40)),
        (0, True, (25, 45)),
        (1, False, (20, 40, 60, 80)),
        (1, True, (45, 85)),
    ]
    assert [line.owner for line in panels[1].lines] == [0]
    assert len(comparison_panels([first, second])) == 4  # without those of a scale
    with pytest.raises(ValueError, match="no run has the key 'abs_log_z'"):
        comparison_panels([first, second], ["abs_log_z"])


def test_figures_show_the_panels(tmp_path: Path) -> None:
    panels = run_panels(curves(records()))
    figure = draw_run(panels, sides=(1, 4))
    for axes, panel in zip(figure.axes, panels, strict=True):
        drawn = [tuple(line.get_ydata()) for line in axes.lines]
        assert drawn == [line.curve.values for line in panel.lines]
        assert (axes.get_title(), axes.get_xlabel()) == (panel.title, "step")
        assert axes.get_yscale() == ("log" if panel.is_log else "linear")
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["training", "held out", "scale 0 (1x1)", "scale 1 (4x4)"]
    shades = [line.get_color() for line in figure.axes[1].lines]
    assert shades == [handle.get_color() for handle in legend.get_lines()[2:]]
    both = draw_comparison(comparison_panels([curves(records())] * 2, ["loss", "lr"]), ["a", "b"])
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["a", "b", "held out"]
    assert len(both.axes[0].lines) == 4
    save_figure(both, tmp_path / "plots" / "both.png")
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["both.png"]


def test_log_axes_have_plain_numbers() -> None:
    values = [{"step": step, "gradient_norm": 0.1 * 3**step} for step in range(4)]
    figure = draw_run(run_panels(curves(values)))
    (axes,) = figure.axes
    figure.canvas.draw()
    ticks = (*axes.get_ymajorticklabels(), *axes.get_yminorticklabels())
    assert {"0.1", "0.2", "0.5", "1", "2"} <= {tick.get_text() for tick in ticks}
    assert not any("e" in tick.get_text() for tick in ticks)
