"""Pipeline: names, batches, saving, errors."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image

from lambda24.generator.model import NextScaleGenerator
from lambda24.sampling.generate import generate
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.ramps import LinearRamp
from lambda24.sampling.settings import SamplingConfig
from lambda24.tokenizer.quantizers import FSQConfig
from tests.sampling.tiny_pipeline import tiny_pipeline

NAMES = ("cat", "dog", "tree frog")


def make(levels: tuple[int, ...] = (5, 3), names: tuple[str, ...] = NAMES) -> Pipeline:
    sampling = SamplingConfig(guidance_scale=1.5)
    return tiny_pipeline(
        names, sampling, quantizer=FSQConfig(levels=levels), num_classes=3, depth=2
    )


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return make()


def pixels(images: list[Image.Image]) -> list[bytes]:
    assert all(image.size == (16, 16) and image.mode == "RGB" for image in images)
    return [image.tobytes() for image in images]


def test_names_numbers_and_batches_give_the_same_images(pipeline: Pipeline):
    by_name = pixels(pipeline(["cat", "dog", "tree frog", "cat", "dog"], seeds=[7, 1, 2, 3, 4]))
    by_number = pixels(pipeline([0, 1, 2, 0, 1], seeds=[7, 1, 2, 3, 4], batch_size=2))
    assert by_name == by_number
    assert by_name[0] != by_name[3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_are_bit_identical_in_any_company(
    pipeline: Pipeline, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """Floats before rounding to pixels: 64 at once, eight, the share of one of two, one alone."""
    shown = Pipeline(pipeline.image_tokenizer, pipeline.generator).to(dtype=dtype)
    monkeypatch.setattr("lambda24.sampling.pipeline.to_pil", list)
    labels, seeds = [i % 3 for i in range(64)], list(range(100, 164))
    together = shown(labels, seeds, guidance_scale=2.0)
    assert len(together) == 64

    def check(positions: range) -> None:
        part = shown(
            [labels[i] for i in positions], [seeds[i] for i in positions], guidance_scale=2
        )
        assert all(torch.equal(a, together[i]) for a, i in zip(part, positions, strict=True))

    for positions in (range(3, 11), range(1, 64, 2)):
        check(positions)
    for i in (6, 63):
        check(range(i, i + 1))


def test_every_group_has_the_same_size(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    seen = []
    forward = NextScaleGenerator.forward

    def spy(self, inputs, labels, cache=None):  # type: ignore[no-untyped-def]
        seen.append(len(labels))
        return forward(self, inputs, labels, cache)

    monkeypatch.setattr(NextScaleGenerator, "forward", spy)
    assert len(pipeline([0, 1, 2, 0], batch_size=3, guidance_scale=1.0)) == 4
    assert seen == [3] * 6  # two groups of three scales


def test_edit_keeps_what_the_mask_leaves(pipeline: Pipeline):
    image = pipeline([0], [1])[0]
    black, white = Image.new("L", (16, 16), 0), Image.new("L", (16, 16), 255)
    kept = pipeline.edit([image] * 2, ["dog", "cat"], [3, 4], mask=black)
    whole = pipeline.edit([image] * 2, ["dog", "cat"], [3, 4], keep_scales=3)
    assert pixels(kept) == pixels(whole)
    assert kept[0].tobytes() == kept[1].tobytes()
    drawn = pipeline.edit([image] * 2, ["dog", "cat"], [3, 4], mask=white)
    assert pixels(drawn) == pixels(pipeline(["dog", "cat"], [3, 4]))
    with pytest.raises(ValueError, match="2 labels but 1 images"):
        pipeline.edit([image], [0, 1])
    with pytest.raises(ValueError, match=r"must be 16 x 16, got \(8, 8\)"):
        pipeline.edit([image], [0], mask=black.resize((8, 8)))


def test_model_card_says_what_is_known(pipeline: Pipeline, tmp_path: Path):
    card = pipeline.model_card()
    assert card.startswith("---\nlibrary_name: lambda24\n")
    assert "cat, dog, tree frog" in card
    assert "| scales | 1, 2, 4 |" in card
    assert '"guidance_scale": 1.5' in card
    assert "Not recorded." in card
    assert "Not measured." in card
    run = tmp_path / "run"
    pipeline.save_pretrained(run)
    (run / "config.yaml").write_text("seed: 3\ndata: {path: cifar10, flip: true}\n")
    (run / "evaluation.json").write_text(
        json.dumps({"gfid": 7.25, "protocol": {"num_images": 50}, "sfid": None})
    )
    Pipeline.from_pretrained(run).save_pretrained(tmp_path / "model")
    Pipeline.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")
    card = (tmp_path / "again" / "README.md").read_text("utf-8")
    for text in ("| path | cifar10 |", "| gfid | 7.25 |", '"num_images": 50', "seed: 3"):
        assert text in card
    assert "Not measured." in (run / "README.md").read_text("utf-8")  # an existing one stays
    (tmp_path / "model" / "training.json").write_text("{")
    with pytest.raises(ValueError, match="training is damaged"):
        Pipeline.from_pretrained(tmp_path / "model")


def test_model_card_has_no_metrics_of_other_weights(pipeline: Pipeline, tmp_path: Path):
    run = tmp_path / "run"
    pipeline.save_pretrained(run)
    metrics = {"gfid": 7.25, "protocol": {"model": pipeline.digest()}}
    (run / "evaluation.json").write_text(json.dumps(metrics))
    loaded = Pipeline.from_pretrained(run)
    assert "| gfid | 7.25 |" in loaded.model_card()
    assert "does not say which weights" not in loaded.model_card()
    next(loaded.generator.parameters()).data.add_(1)  # trained on, say
    card = loaded.model_card()
    assert "7.25" not in card
    assert f"is of other weights: {pipeline.digest()}, not {loaded.digest()}." in card
    unknown = Pipeline(pipeline.image_tokenizer, pipeline.generator, None, {"metrics": {"gfid": 2}})
    assert "| gfid | 2 |" in unknown.model_card()
    assert "does not say which weights" in unknown.model_card()


@pytest.mark.parametrize(
    ("label", "seed", "message"),
    [
        (1.7, 0, r"labels must be integers, got 1\.7"),
        (True, 0, "labels must be integers, got True"),
        (None, 0, "labels must be integers, got None"),
        (1, 1.2, r"seeds must be integers, got 1\.2"),
        (1, True, "seeds must be integers, got True"),
        (1, 2**32, "seeds must be in .* got 4294967296"),
    ],
)
def test_numbers_are_not_rounded(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, label: Any, seed: Any, message: str
):
    monkeypatch.setattr("lambda24.sampling.pipeline.generate", lambda *a: pytest.fail("drawn"))
    with pytest.raises(ValueError, match=message):
        pipeline([0] * 5 + [label], [0] * 5 + [seed])


def test_integers_of_all_types_are_labels_and_seeds(pipeline: Pipeline):
    one = pipeline([np.int64(1), torch.tensor(2)], torch.tensor([3, 4]))
    assert pixels(one) == pixels(pipeline([1, 2], [3, 4]))


def test_seeds_default_to_zero_one_two(pipeline: Pipeline):
    assert pixels(pipeline([1, 1])) == pixels(pipeline([1, 1], seeds=[0, 1]))
    assert pipeline([]) == []


def test_null_label_is_allowed(pipeline: Pipeline):
    assert pixels(pipeline([3], [4])) != pixels(pipeline([0], [4]))


def test_own_settings_config_and_overrides(pipeline: Pipeline):
    own = pixels(pipeline([0, 1], [1, 2]))
    assert own == pixels(pipeline([0, 1], [1, 2], config=SamplingConfig(guidance_scale=1.5)))
    other = pixels(pipeline([0, 1], [1, 2], guidance_scale=4, top_k=[3, 3, 3]))
    explicit = SamplingConfig(guidance_scale=4.0, top_k=(3.0, 3.0, 3.0))
    assert other == pixels(pipeline([0, 1], [1, 2], config=explicit))
    assert other != own
    ramp = {"kind": "linear", "start": 1.5, "end": 1.5}
    assert own == pixels(pipeline([0, 1], [1, 2], guidance_scale=ramp))
    assert own == pixels(pipeline([0, 1], [1, 2], guidance_scale=LinearRamp(start=1.5, end=1.5)))


def test_images_are_those_of_generate(pipeline: Pipeline):
    generated = generate(
        pipeline.generator,
        pipeline.image_tokenizer,
        torch.tensor([2]),
        [9],
        pipeline.sampling,
    )
    expected = ((generated.images[0] + 1) * 127.5 + 0.5).floor().clamp(0, 255).permute(1, 2, 0)
    assert np.array_equal(np.asarray(pipeline([2], [9])[0]), expected.numpy().astype(np.uint8))


def test_progress_bar_counts_images(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]):
    pipeline([0, 1, 2], batch_size=2, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_save_and_load(pipeline: Pipeline, tmp_path: Path):
    folder = tmp_path / "model"
    pipeline.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "generator",
        "sampling.json",
        "tokenizer",
    ]
    loaded = Pipeline.from_pretrained(folder)
    assert loaded.sampling == pipeline.sampling
    assert loaded.label_names == NAMES
    assert pixels(loaded(["dog"], [3])) == pixels(pipeline(["dog"], [3]))


def test_saving_into_a_run_folder_keeps_the_rest(pipeline: Pipeline, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "checkpoints").is_dir()
    assert Pipeline.from_pretrained(tmp_path).sampling == pipeline.sampling


def test_settings_file_is_optional_and_checked(pipeline: Pipeline, tmp_path: Path):
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "sampling.json").unlink()
    assert Pipeline.from_pretrained(tmp_path).sampling == SamplingConfig()
    (tmp_path / "sampling.json").write_text(json.dumps({"guidance": 2}))
    with pytest.raises(ValueError, match=r"(?s)sampling\.json.*guidance"):
        Pipeline.from_pretrained(tmp_path)


def test_missing_part_is_named(pipeline: Pipeline, tmp_path: Path):
    pipeline.generator.save_pretrained(tmp_path / "generator")
    with pytest.raises(ValueError, match="tokenizer/ is missing"):
        Pipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        Pipeline.from_pretrained(tmp_path / "nothing" / "here")


def test_parts_of_different_pyramids_are_refused(pipeline: Pipeline, tmp_path: Path):
    pipeline.save_pretrained(tmp_path)
    make(levels=(5, 5)).image_tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"codebook_sizes=\(25,\).*codebook_sizes=\(15,\)"):
        Pipeline.from_pretrained(tmp_path)


def test_bad_calls(pipeline: Pipeline):
    with pytest.raises(ValueError, match="unknown class 'treefrog'; closest: tree frog"):
        pipeline(["treefrog"])
    with pytest.raises(ValueError, match="unknown class 'xyz'; known: cat, dog, tree frog"):
        pipeline(["xyz"])
    with pytest.raises(ValueError, match="no class names, give numbers"):
        make(names=())(["cat"])
    with pytest.raises(ValueError, match=r"\[0, 3\].*got 4"):
        pipeline([4])
    with pytest.raises(ValueError, match="2 labels but 1 seeds"):
        pipeline([0, 1], [5])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        pipeline([0], batch_size=0)
    for size in (2.5, "4", None):
        with pytest.raises(ValueError, match=f"batch_size must be integers, got {size!r}"):
            pipeline([0], batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="labels must be a list of classes, got 'cat'"):
        pipeline("cat", [0])
    with pytest.raises(ValueError, match="labels must be a list of classes, got 1"):
        pipeline(1, [0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seeds must be a list of integers, got 7"):
        pipeline([1], 7)  # type: ignore[arg-type]
    for given in ({"images": ["cat.png"]}, {"images": [Image.new("RGB", (16, 16))], "mask": "a"}):
        with pytest.raises(ValueError, match="images and mask must be PIL images, got str"):
            pipeline.edit(labels=["cat"], **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"keep_scales must be integers, got 1\.5"):
        pipeline.edit([Image.new("RGB", (16, 16))], ["cat"], keep_scales=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="guidance_scal"):
        pipeline([0], guidance_scal=2.0)
    with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
        pipeline.to(dtype=torch.float64)


def test_bf16_runs_the_transformer_in_bf16(pipeline: Pipeline):
    seen = []
    half = Pipeline(pipeline.image_tokenizer, pipeline.generator).to("cpu", torch.bfloat16)
    hook = half.generator.blocks[0].attention.proj.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    assert len(half([0, 1], [1, 2])) == 2
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert next(half.generator.parameters()).dtype == torch.float32


def test_models_are_put_in_eval_mode(pipeline: Pipeline):
    dropping = NextScaleGenerator(
        replace(pipeline.generator.config, drop_path=0.5), pipeline.generator.spec
    ).train()
    assert not Pipeline(pipeline.image_tokenizer, dropping).generator.training


@pytest.mark.parametrize(
    ("dropout", "guidance", "said"), [(0, 1.5, 1), (0, 1, 0), (0.1, 1.5, 0), (None, 1.5, 0)]
)
def test_guidance_without_class_dropout_is_said_once(
    dropout: float | None, guidance: float, said: int, caplog: pytest.LogCaptureFixture
):
    pipeline = tiny_pipeline(names=("cat", "dog", "frog", "horse"))
    pipeline.training = {} if dropout is None else {"config": {"class_dropout": dropout}}
    for _ in range(2):
        pipeline(["cat"], [0], guidance_scale=guidance)
    assert sum("class_dropout 0" in record.message for record in caplog.records) == said


def test_repr_is_one_line(pipeline: Pipeline):
    assert "3 classes, 16 x 16 pixels, 3 scales" in repr(pipeline)
    assert len(repr(pipeline)) < 120


def test_push_to_hub_uploads_the_folder(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}

    def upload(api: object, *, repo_id: str, folder_path: str, **options: Any) -> Any:
        images = Pipeline.from_pretrained(folder_path)(["cat"], [3])
        seen.update(options, repo_id=repo_id, image=images[0], card=Path(folder_path, "README.md"))
        seen["has_card"] = seen["card"].is_file()
        return SimpleNamespace(commit_url="https://hub/commit/1")

    made = SimpleNamespace(repo_id="somebody/cats")
    monkeypatch.setattr(HfApi, "create_repo", lambda api, repo_id, **options: made)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert pipeline.push_to_hub("cats", commit_message="first") == "https://hub/commit/1"
    assert (seen["repo_id"], seen["commit_message"], seen["has_card"]) == (
        made.repo_id,
        "first",
        True,
    )
    assert seen["image"].tobytes() == pipeline(["cat"], [3])[0].tobytes()
