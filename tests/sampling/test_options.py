"""Classes, seeds and settings as text; what `scripts/sample.py` uses is tested there."""

import pytest

from lambda24.sampling.options import (
    MAX_IMAGES,
    parse_label,
    parse_labels,
    parse_schedule,
    parse_seeds,
    parse_settings,
    sampling_config,
    schedule_text,
)
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.playground.actions import class_choices
from lambda24.sampling.ramps import CosineRamp, LinearRamp, PowerRamp, VarRamp
from lambda24.sampling.settings import SamplingConfig, override
from tests.sampling.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


def test_a_name_wins_over_a_number(pipeline: Pipeline):
    assert [parse_label(text, pipeline) for text in (" cat ", "#2", "7", "#4")] == [0, 2, 3, 4]
    for text in ("", "cta", "#5", "-1", "1.5"):
        with pytest.raises(ValueError, match=r"unknown class|labels must be in \[0, 4\]"):
            parse_label(text, pipeline)


def test_a_number_that_may_be_meant_for_a_name_is_refused():
    """Folders 001 to 012: "2" drew the third of them."""
    pipeline = tiny_pipeline(names=("001", "002", "003", "11"))
    for text, readings in (
        ("2", "'002' or '#2' for number 2, '003'"),
        ("0", "'#0' for number 0, '001'"),
        ("12", "none is near"),
    ):
        with pytest.raises(
            ValueError, match=rf"label '{text}' is no class name, .*: write {readings}"
        ):
            parse_label(text, pipeline)
    assert [parse_label(text, pipeline) for text in ("002", "#2", "11")] == [1, 2, 3]
    names = tiny_pipeline(names=("cat", "dog", "eel", "fox"))
    assert parse_label("2", names) == 2


def test_integers_are_indices_and_it_is_said_once(caplog: pytest.LogCaptureFixture):
    pipeline = tiny_pipeline(names=("1", "2", "3", "11"))
    assert [pipeline.label_index(label) for label in (2, 0, "2")] == [2, 0, 1]
    assert len(caplog.records) == 1
    assert "count from 0, 0 is '1'" in caplog.text
    caplog.clear()
    assert tiny_pipeline(names=("0", "1", "2", "3")).label_index(2) == 2  # digits: no two readings
    assert not caplog.records


def test_too_many_seeds_are_refused_before_there_is_a_list_of_them():
    assert parse_seeds("3, 0:3", most=4) == [3, 0, 1, 2]
    for text in ("0:5", "0:4,9", "0:1000000000000000"):
        with pytest.raises(ValueError, match=f"seeds '{text}' are more than 4 images"):
            parse_seeds(text, most=4)


def test_seeds_of_no_bound_are_still_bounded():
    with pytest.raises(ValueError, match=f"are more than {MAX_IMAGES} images"):
        parse_seeds("0:100000000000")
    assert parse_seeds("4294967295") == [2**32 - 1]
    with pytest.raises(ValueError, match=r"seeds must be in \[0, 2\^32 .*, got 4294967296"):
        parse_seeds("4294967290:4294967297")


def test_what_is_very_long_is_refused_and_not_repeated(pipeline: Pipeline):
    digits = "9" * 5000  # more than Python turns into a number
    for text in (digits, f"#{digits}", "cat" * 100):
        with pytest.raises(ValueError, match=r"^unknown class '[9#cat]{100}'\.\.\.$"):
            parse_label(text, pipeline)
    for text in (digits, f"0:{digits}"):
        with pytest.raises(ValueError, match=r"^seeds must look like .* got '[0:9]{100}'\.\.\.$"):
            parse_seeds(text)
    for name in ("top_k", "guidance_scale"):
        with pytest.raises(ValueError, match=f"^{name}: "):
            parse_schedule(digits, name)
        with pytest.raises(ValueError, match=f"^{name}: "):
            sampling_config(SamplingConfig(), None, [f"{name}={digits}"])
    with pytest.raises(ValueError, match="are more than 64 images") as error:
        parse_seeds(",".join(map(str, range(10_000))), most=64)
    assert len(str(error.value)) < 200


def test_names_with_commas_are_found_before_their_parts():
    names = ("goldfish, Carassius auratus", "crane", "cat, big", "cat, big, striped")
    pipeline = tiny_pipeline(names)
    for number, name in enumerate(names):
        assert parse_labels(name, pipeline) == [number]
    assert parse_labels("goldfish,Carassius auratus", pipeline) == [0]
    text = "1, cat, big, striped,goldfish, Carassius auratus,cat, big"
    assert parse_labels(text, pipeline) == [1, 3, 0, 2]
    with pytest.raises(ValueError, match="unknown class 'goldfish'"):
        parse_labels("goldfish,crane", pipeline)


def test_an_empty_range_is_refused_beside_others():
    with pytest.raises(ValueError, match=r"seeds '5,3:1': 3:1 is an empty range"):
        parse_seeds("5,3:1")


def test_every_choice_of_the_form_means_its_class():
    pipeline = tiny_pipeline(names=("crane", "crane", "0", " 1 "))
    values = [value for _, value in class_choices(pipeline)]
    assert [parse_label(value, pipeline) for value in values] == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["{? [1] : 2}", "[" * 2000])
def test_hostile_yaml_is_a_value_error(text: str):
    with pytest.raises(ValueError, match="not valid YAML"):
        parse_schedule(text, "temperature")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2.5", 2.5),
        (" 1e-3 ", 0.001),
        ("1, 2,3", [1, 2, 3]),
        ("[4]", [4]),
        ("linear 1 3", {"kind": "linear", "start": 1, "end": 3}),
        ("power 1 3 0.5", {"kind": "power", "start": 1, "end": 3, "power": 0.5}),
        ("var 4", {"kind": "var", "cfg": 4}),
        ("{kind: cosine, start: 1, end: 3}", {"kind": "cosine", "start": 1, "end": 3}),
    ],
)
def test_schedules_are_numbers_lists_and_ramps(text: str, value: object):
    assert parse_schedule(text, "top_p") == value


@pytest.mark.parametrize(
    "text", ["much", "true", "linear", "linear 1 2 3", "var", "var 1 2", "1 2", "", "[1", "a: b:"]
)
def test_what_is_no_schedule_is_refused(text: str):
    with pytest.raises(ValueError, match=r"top_p|not valid YAML"):
        parse_schedule(text, "top_p")


@pytest.mark.parametrize(
    "text", [".nan", "1, -.inf", "1e400", "1" + "0" * 400, "1, x, 2", "1, [2]"]
)
def test_numbers_of_a_schedule_are_finite(text: str):
    with pytest.raises(ValueError, match=r"^top_p must be a number, one number per scale"):
        parse_schedule(text, "top_p")


@pytest.mark.parametrize(
    "schedule",
    [
        0.1,
        196560.0,
        1234567.0,
        (1.0, 2.5),
        (3.0,),
        LinearRamp(start=1.0, end=3.5),
        CosineRamp(start=-1.0, end=1e-7),
        PowerRamp(start=1.0, end=2.0, power=0.5),
        VarRamp(cfg=1.5),
    ],
)
def test_the_text_of_a_schedule_means_the_schedule(schedule):
    read = override(
        SamplingConfig(), {"guidance_scale": parse_schedule(schedule_text(schedule), "")}
    )
    assert read == SamplingConfig(guidance_scale=schedule)


def test_empty_fields_are_settings_not_used(pipeline: Pipeline):
    texts = {"guidance_scale": "", "temperature": "0.9", "top_k": " ", "top_p": "linear 0.5 1"}
    expected = SamplingConfig(temperature=0.9, top_p=LinearRamp(start=0.5, end=1.0))
    assert parse_settings(texts, pipeline) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temperature", "-1", "temperature must be positive, got -1"),
        ("temperature", ".nan", "temperature"),
        ("temperature", "1e-40", r"temperature must be in \[1e-05, 100000\], got 1e-40"),
        ("temperature", "var 4", "temperature"),
        ("guidance_scale", "1, 1e39, 1", r"guidance_scale must be in .*10000\], got 1e\+39"),
        ("guidance_scale", "var -20000", "guidance_scale must be in .*, got -19999"),
        ("top_k", "76", r"top_k must be an integer in \[1, 75\], got 76"),
        ("top_k", "linear -1e308 1e308", r"top_k must be an integer in \[1, 75\], got nan"),
        ("top_p", "1.5", r"top_p must be in \(0, 1\], got 1.5"),
        ("min_p", "-0.5", r"min_p must be in \[0, 1\], got -0.5"),
        ("guidance_scale", "1, 2", "guidance_scale lists 2 values, but there are 3 scales"),
        ("guidance_scale", "linear a 3", "guidance_scale.start: got 'a'"),
    ],
)
def test_settings_are_checked_against_the_model(
    pipeline: Pipeline, name: str, text: str, message: str
):
    with pytest.raises(ValueError, match=message):
        parse_settings({name: text}, pipeline)
