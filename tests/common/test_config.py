"""Strictness, errors, overrides and round trips of configs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from lambda24.common.config import (
    Count,
    Depth,
    Size,
    config_class,
    from_dict,
    load_config,
    read_yaml_text,
    save_config,
    to_dict,
)


@config_class
class Square:
    kind: Literal["square"] = "square"
    side: int = 2


@config_class
class Circle:
    kind: Literal["circle"] = "circle"
    radius: float
    colours: tuple[str, ...] = ()


@config_class
class Pen:
    width: Annotated[float, Field(gt=0)] = 1.0
    style: Literal["solid", "dashed"] = "solid"

    def __post_init__(self) -> None:
        if self.style == "dashed" and self.width > 5:
            raise ValueError(f"a dashed pen must be at most 5 wide, got {self.width}")


Shape = Annotated[Square | Circle, Field(discriminator="kind")]


@config_class
class Drawing:
    shape: Shape = Square()
    more: tuple[Shape, ...] = ()
    pen: Pen = Pen()
    size: tuple[int, int] = (3, 4)
    scale: float | list[float] = 1.0
    title: str | None = None
    visible: bool = True


def problems(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ValueError, match=r"^invalid Drawing:") as caught:
        from_dict(Drawing, data)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"pen": {"width": "3"}}, ["pen.width: got '3' (allowed: number)"]),
        ({"pen": {"width": 0}}, ["pen.width: got 0 (allowed: greater than 0)"]),
        ({"pen": {"width": True}}, ["pen.width: got True (allowed: number)"]),
        ({"pen": {"width": float("nan")}}, ["pen.width: got nan (allowed: a finite number)"]),
        ({"pen": {"style": "wavy"}}, ["pen.style: got 'wavy' (allowed: 'solid' or 'dashed')"]),
        ({"size": [1, 2.5]}, ["size.1: got 2.5 (allowed: integer)"]),
        ({"visible": 1}, ["visible: got 1 (allowed: boolean)"]),
        ({"shape": {"kind": "star"}}, ["shape.kind: got 'star' (allowed: 'square', 'circle')"]),
        (
            {"shape": {"side": 3}},
            ["shape.kind: missing, a value is required (allowed: 'square', 'circle')"],
        ),
        ({"shape": {"kind": "circle"}}, ["shape.radius: missing, a value is required"]),
        (
            {"more": [{"kind": "square"}, {"kind": "circle", "radius": 1, "colors": ["a"]}]},
            [
                "more.1.colors: got ['a'], but there is no such key, did you mean 'colours'? "
                "(allowed: colours, kind, radius)"
            ],
        ),
        (
            {"pen": {"width": 7, "style": "dashed"}},
            ["pen: a dashed pen must be at most 5 wide, got 7.0"],
        ),
    ],
)
def test_problem_names_key_value_and_what_is_allowed(
    data: dict[str, Any], expected: list[str]
) -> None:
    assert problems(data) == expected


def test_all_problems_are_listed() -> None:
    found = problems({"pen": {"width": -1, "style": 3}, "titel": "x", "size": [1]})
    assert [line.split(":")[0] for line in found] == ["pen.width", "pen.style", "size.1", "titel"]
    assert "did you mean 'title'?" in found[-1]


def test_round_trip(tmp_path: Path) -> None:
    drawing = Drawing(
        shape=Circle(radius=1e-5, colours=("no", "1e-3", "yes", "12:30", "null", "0x1f", "")),
        more=(Square(side=1), Circle(radius=0.1)),
        scale=[1.0, 0.1 + 0.2],
        title="ünïcode: #1",
    )
    assert from_dict(Drawing, to_dict(drawing)) == drawing
    save_config(drawing, tmp_path / "config.yaml")
    assert load_config(Drawing, tmp_path / "config.yaml") == drawing


def test_integers_and_lists_are_converted() -> None:
    drawing = from_dict(Drawing, {"pen": {"width": 3}, "size": [5, 6]})
    assert isinstance(drawing.pen.width, float)
    assert drawing.size == (5, 6)


def test_configs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Drawing().title = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2E5", -2e5),
        (".5", 0.5),
        ("3.", 3.0),
        ("010", 10),
        ("1_000", 1000),
        ("0x1F", 31),
        ("no", "no"),
        ("on", "on"),
        ("16:9", "16:9"),
        ("2026-01-02", "2026-01-02"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("[1, 1e2]", [1, 100.0]),
    ],
)
def test_yaml_scalars(text: str, value: Any) -> None:
    parsed = read_yaml_text(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_duplicate_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("pen:\n  width: 1\n  width: 2\n")
    with pytest.raises(ValueError, match=r"config\.yaml.*'width' stands twice \(line 3\)"):
        load_config(Drawing, path)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.yaml does not exist"):
        load_config(Drawing, tmp_path / "nothing.yaml")
    for text in ("[1, 2]", "a: b: c"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.yaml"):
            load_config(Drawing, tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(Drawing, tmp_path / "empty.yaml") == Drawing()


def test_problems_come_before_long_command_lines(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("title: old\n")
    with pytest.raises(ValueError, match=r"^invalid .*config\.yaml with overrides:") as caught:
        load_config(Drawing, path, ["size=[7, 8]", "title=new", "pen.width=wide", "visible=true"])
    problem = "pen.width: got 'wide' (allowed: number)"
    assert str(caught.value) == f"invalid {path} with overrides:\n  {problem}"


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("shape: {kind: circle, radius: 2, colours: [red, blue]}\ntitle: old\n")
    drawing = load_config(
        Drawing,
        path,
        ["shape.colours.1=green", "pen.width=1e-1", "size=[7, 8]", "title=", "scale=[1,2]"],
    )
    assert drawing == Drawing(
        shape=Circle(radius=2.0, colours=("red", "green")),
        pen=Pen(width=0.1),
        size=(7, 8),
        scale=[1.0, 2.0],
    )


def test_override_of_kind_replaces_the_variant(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("shape: {kind: circle, radius: 2}\n")
    same = load_config(Drawing, path, ["shape.kind=circle"])
    assert same.shape == Circle(radius=2.0)
    other = load_config(Drawing, path, ["shape.side=5", "shape.kind=square"])
    assert other.shape == Square(side=5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pen.widht=2", r"pen\.widht: got 2, .* did you mean 'width'"),
        ("pen.width=wide", r"pen\.width: got 'wide' \(allowed: number\)"),
        ("pen", "expected key=value"),
        ("=3", "expected key=value"),
        ("title=[1", "override 'title=\\[1'.*not valid YAML"),
        ("title.x=1", "title.*x"),
        ("more.2.side=1", "more is a list of 1, got item '2'"),
        ("more.0.side.x=1", "more.0.side is 2, it has no key 'x'"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("more: [{kind: square, side: 2}]\n")
    with pytest.raises(ValueError, match=message):
        load_config(Drawing, path, [override])


def test_union_at_the_top() -> None:
    assert from_dict(Shape, {"kind": "circle", "radius": 1}) == Circle(radius=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"  kind: got 'star' \(allowed: 'square', 'circle'\)"):
        from_dict(Shape, {"kind": "star"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"  side: got 'x' \(allowed: integer\)"):
        from_dict(Shape, {"kind": "square", "side": "x"})  # type: ignore[arg-type]


def test_aliases_are_bounded() -> None:
    """Ten levels of ten aliases would be 10^10 values; the text is a few lines."""
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(ValueError, match="aliases stand for more than 1,000,000 characters"):
        read_yaml_text("\n".join(["l0: &l0 [1, 2]", *levels]))
    with pytest.raises(ValueError, match="an alias stands for what it is a part of"):
        read_yaml_text("a: &a [1, *a]")
    assert read_yaml_text("a: &a {b: 1}\nc: *a\nd: [*a, *a]")["d"] == [{"b": 1}, {"b": 1}]


def test_what_no_config_has_a_use_for_is_named() -> None:
    for value, problem in (
        (10**30, "got a number of 31 digits"),
        ("x" * 5000, "got a text of 5,000 characters"),
    ):
        with pytest.raises(ValueError, match=rf"parts\.1\.lr: {problem}"):
            from_dict(Parts, {"parts": [{"lr": 1}, {"lr": value}]})
    with pytest.raises(ValueError, match="not valid YAML: Exceeds the limit"):
        read_yaml_text("a: " + "9" * 5000)


@config_class
class Parts:
    parts: tuple[dict[str, float], ...]
    side: Size = 1
    blocks: Depth = 1
    classes: Count = 1


@pytest.mark.parametrize("key", ["side", "blocks", "classes"])
def test_sizes_have_bounds(key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}: got 1000000000 \(allowed: less than or equal"):
        from_dict(Parts, {"parts": [], key: 10**9})
