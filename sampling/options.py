"""What people type: classes, seeds and sampling settings as text."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lambda24.common.config import load_config, read_yaml_text
from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.ramps import GuidanceSchedule
from lambda24.sampling.seeds import check_seeds
from lambda24.sampling.settings import SamplingConfig, override

RAMPS: dict[str, tuple[str, ...]] = {  # numbers of a ramp by their names, in the order typed
    "linear": ("start", "end"),
    "cosine": ("start", "end"),
    "power": ("start", "end", "power"),
    "var": ("cfg",),
}
MAX_IMAGES = 10_000_000  # whose labels and seeds are listed in memory
LONGEST = 100  # characters of a number, and of a text that an error message repeats


def parse_label(text: str, pipeline: Pipeline) -> int:
    """Class number of a name, of a number where no name is one, or of "#" and a number.

    Raises:
        ValueError: unknown names, numbers out of range, a number that could be meant for a name.
    """
    text = text.strip()
    if text in pipeline.label_names:
        return pipeline.label_index(text)
    if len(text) > LONGEST:
        raise ValueError(f"unknown class {_shown(text)}")
    number = text.removeprefix("#")
    if text.isdecimal() and any(name.isdecimal() for name in pipeline.label_names):
        raise ValueError(_two_readings(text, pipeline))
    return pipeline.label_index(int(number) if number.isdecimal() else text)


def _two_readings(text: str, pipeline: Pipeline) -> str:
    """Why a number that is no class name is refused where names are numbers."""
    readings = [f"{name!r}" for name in pipeline.label_names if _is_number(name, int(text))]
    if int(text) <= pipeline.generator.num_classes:
        readings.append(f"'#{text}' for number {text}, {class_name(int(text), pipeline)!r}")
    hint = " or ".join(readings) or "none is near"
    return f"label {text!r} is no class name, and class names here are numbers: write {hint}"


def _is_number(name: str, number: int) -> bool:
    return name.isdecimal() and int(name) == number


def parse_labels(text: str, pipeline: Pipeline) -> list[int]:
    """Class numbers of "cat,dog,7" or "all"; a name with commas is found before its parts.

    Raises:
        ValueError: unknown names, or a class twice.
    """
    if text == "all":
        return list(range(pipeline.generator.num_classes))
    labels = [parse_label(part, pipeline) for part in _split_names(text, pipeline.label_names)]
    if twice := _repeated(labels):
        raise ValueError(
            f"labels {_shown(text)} have class {class_name(twice[0], pipeline)} more than once"
        )
    return labels


def class_name(label: int, pipeline: Pipeline) -> str:
    """A class's name, else its number; "(null)" is the null class."""
    if label == pipeline.generator.num_classes:
        return "(null)"
    return pipeline.label_names[label] if pipeline.label_names else str(label)


def file_name(name: str) -> str:
    """A name with all but letters, digits, `-` and `_` replaced."""
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in name)


def parse_seeds(text: str, most: int = MAX_IMAGES) -> list[int]:
    """Seeds of "0:8" (0 to 7), "3" or "1,5,10:12".

    Args:
        most: how many there may be.

    Raises:
        ValueError: anything else, no seed at all, one that is too large or stands twice, too many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        is_number = first.isdecimal() and (last.isdecimal() or not colon)
        if not is_number or len(part) > LONGEST:
            raise ValueError(f"seeds must look like 0:8 or 1,5,10:12, got {_shown(text)}")
        start, stop = int(first), int(last) if colon else int(first) + 1
        if len(seeds) + stop - start > most:  # before any list is made
            raise ValueError(f"seeds {_shown(text)} are more than {most} images")
        if stop <= start:
            raise ValueError(f"seeds {_shown(text)}: {part.strip()} is an empty range")
        check_seeds([stop - 1])
        seeds += range(start, stop)
    if twice := _repeated(seeds):
        raise ValueError(f"seeds {_shown(text)} have {twice[0]} more than once")
    return seeds


def parse_schedule(text: str, name: str) -> Any:
    """What `override` takes for a setting: "2.5", "1, 2, 3" (one per scale), "linear 1 3", "var 4".

    YAML as in configs is understood too: `{kind: power, start: 1, end: 3, power: 2}`.

    Args:
        name: the setting's name in error messages.

    Raises:
        ValueError: none of these.
    """
    text = text.strip()
    kind, *numbers = text.split() or [""]
    if kind in RAMPS:
        keys = RAMPS[kind]
        if not len(keys) - (kind == "power") <= len(numbers) <= len(keys):
            form = " ".join([kind, *(key.upper() for key in keys)])
            raise ValueError(f"{name}: a {kind} ramp is '{form}', got {_shown(text)}")
        values = [_read_value(number, name) for number in numbers]
        return {"kind": kind, **dict(zip(keys, values, strict=False))}
    value = _read_value(f"[{text}]" if "," in text and text[0] not in "[{" else text, name)
    entries = value if isinstance(value, list) else [value]
    if not isinstance(value, dict) and not all(map(_is_finite, entries)):
        raise ValueError(
            f"{name} must be a number, one number per scale (1, 2, 3) or a ramp (linear 1 3), "
            f"got {_shown(text)}"
        )
    return value


def schedule_text(schedule: GuidanceSchedule | None) -> str:
    """The inverse of `parse_schedule`; empty for None."""
    if schedule is None:
        return ""
    if isinstance(schedule, (int, float)):
        return _number(schedule)
    if isinstance(schedule, (tuple, list)):
        return ", ".join(map(_number, schedule)) if len(schedule) > 1 else str(list(schedule))
    numbers = [getattr(schedule, name) for name in RAMPS[schedule.kind]]
    return " ".join([schedule.kind, *map(_number, numbers)])


def parse_settings(texts: Mapping[str, str], pipeline: Pipeline) -> SamplingConfig:
    """Settings of a form's fields, checked against the model; an empty field is a setting not used.

    Raises:
        ValueError: text that is no schedule, and whatever `SamplingConfig.resolve` refuses.
    """
    values = {name: parse_schedule(text, name) for name, text in texts.items() if text.strip()}
    config = override(SamplingConfig(), values)
    config.resolve(pipeline.generator.spec)
    return config


def sampling_config(
    default: SamplingConfig, file: str | None, overrides: Sequence[str]
) -> SamplingConfig:
    """The default or the settings of a YAML file, with key=value overrides.

    Raises:
        ValueError: an override without `=`, an unknown key, a value of the wrong type.
    """
    base = default if file is None else load_config(SamplingConfig, file)
    values = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"override {text!r}: expected key=value, e.g. guidance_scale=2.5")
        values[key] = _read_value(value, key)
    return override(base, values)


def _is_finite(value: Any) -> bool:
    """Whether it is a number, and one that a float can hold."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _read_value(text: str, name: str) -> Any:
    """YAML, whose errors say which setting they are of."""
    try:
        return read_yaml_text(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _shown(text: str) -> str:
    """A text in quotes; of a long one the beginning."""
    return repr(text) if len(text) <= LONGEST else f"{text[:LONGEST]!r}..."


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _split_names(text: str, names: Sequence[str]) -> list[str]:
    """The parts between commas, those that make a known name together joined to it.

    At each place the longest name counts; spaces around commas do not.
    """
    known = {tuple(part.strip() for part in name.split(",")): name for name in names if "," in name}
    parts = [part.strip() for part in text.split(",")]
    lengths = sorted({len(key) for key in known}, reverse=True)
    found: list[str] = []
    start = 0
    while start < len(parts):
        keys = (tuple(parts[start : start + length]) for length in lengths)
        key = next((key for key in keys if key in known), None)
        found.append(parts[start] if key is None else known[key])
        start += 1 if key is None else len(key)
    return found


def _repeated(numbers: Sequence[int]) -> list[int]:
    if len(set(numbers)) == len(numbers):  # the usual case, in less memory than a count of each
        return []
    return [number for number, count in Counter(numbers).items() if count > 1]
