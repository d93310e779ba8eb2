"""What can be set: every key of a config with its type, its default and a line of explanation.

The lines are those of the `Args:` sections of the config classes' docstrings.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from lambda24.common.config import config_classes, to_dict


@dataclass(frozen=True)
class Key:
    """One dotted key; `kind` says of which variant of its part it is."""

    name: str
    type: str
    default: str
    line: str
    kind: str = ""


class PrintKeys(argparse.Action):
    """`--keys`: prints the keys of a config class and ends the program, as `--help` does.

    Args:
        config_class: whose keys.
    """

    def __init__(self, option_strings: list[str], dest: str, config_class: type) -> None:
        super().__init__(option_strings, dest, nargs=0, help="list all keys of the config")
        self.config_class = config_class

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        print(keys_text(self.config_class))
        parser.exit()


def keys_text(config_class: type) -> str:
    """One line a key: `name: type = default  line`; variants below their `kind`."""
    lines, shown = [], ""
    for key in config_keys(config_class):
        part = key.name.rpartition(".")[0]
        heading = f"{part} with kind={key.kind}:" if key.kind else ""
        if heading and heading != shown:
            lines.append(f"\n{heading}")
        shown = heading or shown
        default = f" = {key.default}" if key.default else "  (required)"
        line = f"  # {key.line}" if key.line else ""
        lines.append(f"{key.name}: {key.type}{default}{line}")
    return "\n".join(lines)


def config_keys(config_class: type, prefix: str = "", kind: str = "") -> Iterator[Key]:
    """Keys of a class and of all that it holds, depth first."""
    explained = argument_lines(config_class)
    nested: list[tuple[type, str, str]] = []
    for name, info in config_class.__pydantic_fields__.items():  # type: ignore[attr-defined]
        classes = config_classes(info.annotation)
        default = _default(info)
        if classes:
            kinds = [variant_kind(cls) for cls in classes]
            nested += [
                (cls, f"{prefix}{name}.", own if len(classes) > 1 else kind)
                for cls, own in zip(classes, kinds, strict=True)
            ]
            if len(classes) > 1:
                text = " | ".join(repr(own) for own in kinds if own)
                yield Key(f"{prefix}{name}.kind", text, _kind(info), explained.get(name, ""), kind)
        elif name != "kind":
            line = explained.get(name, "")
            yield Key(prefix + name, type_text(info.annotation), default, line, kind)
    for cls, inner, own in nested:
        yield from config_keys(cls, inner, own)


def variant_kind(config_class: type) -> str:
    """The tag of a variant; empty if it has none."""
    info = config_class.__pydantic_fields__.get("kind")  # type: ignore[attr-defined]
    tags = get_args(info.annotation) if info and get_origin(info.annotation) is Literal else ()
    return str(tags[0]) if tags else ""


def argument_lines(config_class: type) -> dict[str, str]:
    """What the `Args:` section of a docstring says of each name."""
    text = inspect.getdoc(config_class) or ""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)*)", text, re.MULTILINE)
    found: dict[str, str] = {}
    if section is None:
        return found
    for entry in re.finditer(r"^ {4}(\w[\w, ]*): ((?:.*)(?:\n {8}.*)*)", section[1], re.MULTILINE):
        line = " ".join(entry[2].split())
        found |= {name.strip(): line for name in entry[1].split(",")}
    return found


def type_text(annotation: Any) -> str:
    """An annotation as one reads it: `int | None`, `'a' | 'b'`, `list of float`."""
    if annotation is None or annotation is type(None):
        return "none"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(repr(value) for value in arguments)
    if origin in (tuple, list):
        inner = [type_text(a) for a in arguments if a is not Ellipsis]
        return "list of " + " or ".join(dict.fromkeys(inner))
    if origin is dict:
        return f"mapping to {type_text(arguments[1])}"
    if hasattr(annotation, "__metadata__"):
        return type_text(arguments[0])
    if arguments:
        return " | ".join(dict.fromkeys(type_text(a) for a in arguments))
    return str(getattr(annotation, "__name__", annotation))


def _default(info: Any) -> str:
    if info.default_factory is not None and info.default_factory is not MISSING:
        return "..."
    if info.default is PydanticUndefined:
        return ""
    return "none" if info.default is None else _shown(info.default)


def _shown(value: Any) -> str:
    return "{}" if hasattr(value, "__pydantic_fields__") else str(value)


def _kind(info: Any) -> str:
    default = _default(info)
    if default == "{}":
        return str(to_dict(info.default).get("kind", ""))
    return default
