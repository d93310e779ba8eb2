"""Keys of configs as text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from lambda24.common.config import config_class, from_dict
from lambda24.common.config_keys import config_keys, keys_text
from lambda24.generator.settings import GeneratorTrainingConfig
from lambda24.tokenizer.settings import TokenizerTrainingConfig


@config_class
class Round:
    """A wheel.

    Args:
        radius: half its width, in metres; a line that
            goes on.
    """

    kind: Literal["round"] = "round"
    radius: float = 0.3


@config_class
class Square:
    """Another.

    Args:
        side, corner: lengths.
    """

    kind: Literal["square"] = "square"
    side: int
    corner: tuple[int, ...] = (1, 2)


@config_class
class Cart:
    """Args: are not here."""

    wheel: Annotated[Round | Square, Field(discriminator="kind")] = Round()
    name: str | None = None


def test_keys_of_all_variants() -> None:
    found = {(key.kind, key.name): key for key in config_keys(Cart)}
    assert {name for _, name in found} == {
        *["wheel.kind", "name", "wheel.radius", "wheel.side", "wheel.corner"]
    }
    kind, radius = found["", "wheel.kind"], found["round", "wheel.radius"]
    assert (kind.type, kind.default) == ("'round' | 'square'", "round")
    assert radius.line == "half its width, in metres; a line that goes on."
    assert (radius.type, radius.default) == ("float", "0.3")
    assert (found["", "name"].type, found["", "name"].default) == ("str | none", "none")
    assert found["square", "wheel.side"].default == ""
    assert found["square", "wheel.corner"].type == "list of int"
    assert found["square", "wheel.corner"].line == "lengths."


def test_text() -> None:
    text = keys_text(Cart)
    assert "wheel.kind: 'round' | 'square' = round\n" in text
    assert "\nwheel with kind=square:\nwheel.side: int  (required)  # lengths.\n" in text


@pytest.mark.parametrize("config", [TokenizerTrainingConfig, GeneratorTrainingConfig])
def test_every_key_of_a_run_is_one_that_the_loader_knows(config: type) -> None:
    """Wrong values of listed keys are wrong values; a key beside them is told as unknown."""
    keys = list(config_keys(config))
    assert len(keys) > 40
    assert {"loop.steps", "data.path", "run"} <= {key.name for key in keys}
    for key in keys:
        *parts, last = key.name.split(".")
        for name, is_known in ((last, True), (f"{last}_", False)):
            data: dict[str, Any] = {name: []}
            if key.kind:
                data.setdefault("kind", key.kind)
            for part in reversed(parts):
                data = {part: data}
            with pytest.raises(ValueError, match=r"invalid") as raised:
                from_dict(config, data)
            told = [line for line in str(raised.value).splitlines() if "no such key" in line]
            assert not (is_known and told)
            assert is_known or told or key.name.count(".") > 1 or last == "kind"
