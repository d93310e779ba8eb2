"""Configs: frozen, strict dataclasses read from one YAML file plus `key=value` overrides.

Every value is checked before anything is built; all problems of a config are reported together,
each with its dotted key, the value found and what is allowed. Knows nothing of what it describes.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails
from typing_extensions import dataclass_transform

from lambda24.common.files import replace_text

T = TypeVar("T")

# Upper bounds are beyond any use: a slip of the keyboard is refused before it costs memory.
MAX_SIZE, MAX_COUNT, MAX_DEPTH = 2**16, 2**24, 2**10
Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]  # a side, width, dimension or number of parts
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]  # of samples, classes or codes
Depth = Annotated[int, Field(le=MAX_DEPTH)]  # blocks on top of one another

MAX_INTEGER = 2**53
MAX_TEXT = 4096  # characters of a value
MAX_REPEATED = 10**6  # characters that the aliases of a YAML file may stand for


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field, Field))
def config_class(cls: type[T]) -> type[T]:
    """Decorator: a frozen, keyword-only pydantic dataclass with strict types and no extra keys.

    Variants of one part are a tagged union: `Annotated[A | B, Field(discriminator="kind")]` with
    `kind: Literal["a"] = "a"` on each. Numbers must be finite.
    """
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return cast(type[T], dataclass(config=strict, frozen=True, kw_only=True)(cls))


def load_config(cls: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Reads a YAML file (None: defaults only) and applies overrides such as `optimizer.lr=1e-3`.

    A `path` that is no file is looked for among the configs of the package; see `find_config`.

    Override values are YAML. An override that changes the `kind` of a part drops what the file says
    about that part; it applies before the other overrides, wherever it stands.

    Raises:
        ValueError: unreadable file, malformed override, or every problem of the resulting config.
    """
    data = {} if path is None else _read_yaml(find_config(path))
    parsed = [_parse_override(text) for text in overrides]
    kinds_first = sorted(parsed, key=lambda item: (item[0][-1] != "kind", len(item[0])))
    for keys, value in kinds_first:
        _apply_override(data, keys, value)
    source = "config" if path is None else str(path)
    return _validate(cls, data, source + (" with overrides" if overrides else ""))


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """Builds a config from plain data (JSON types; lists become tuples); `cls` may be a union.

    Raises:
        ValueError: every problem, one line each.
    """
    return _validate(cls, data, getattr(cls, "__name__", "config"))


def to_dict(config: object) -> dict[str, Any]:
    """Plain JSON-able data; `from_dict(type(config), to_dict(config)) == config`."""
    dumped: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return dumped


def to_yaml(config: object) -> str:
    """The complete config, defaults included, as YAML that `load_config` reads back."""
    return yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def save_config(config: object, path: str | Path) -> None:
    """Writes `to_yaml(config)`."""
    replace_text(path, to_yaml(config))


def read_yaml_text(text: str) -> Any:
    """Parses YAML 1.2 core scalars: `1e-3` is a float, `no` and `12:30` are strings.

    Raises:
        ValueError: syntax error, a key that stands twice or is no scalar, too deep nesting, a
            number too long to read, aliases that stand for very much or for themselves.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not valid YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    def get_single_node(self) -> yaml.Node | None:
        """The document, unless its aliases would make much more of it than its text is."""
        root: yaml.Node | None = super().get_single_node()
        if root is not None:
            sizes: dict[int, int | None] = {}
            written = self.index  # characters read
            if _written_out(root, sizes) > written + MAX_REPEATED:
                raise yaml.YAMLError(f"aliases stand for more than {MAX_REPEATED:,} characters")
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"key {key_node.value!r} stands twice (line {line})")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _written_out(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """Characters of a node with every alias written out; `sizes` has those of nodes seen."""
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise yaml.YAMLError("an alias stands for what it is a part of")
        return known
    sizes[id(node)] = None
    if isinstance(node, yaml.ScalarNode):
        size = len(node.value)
    else:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [*chain(*node.value)]
        size = sum(1 + _written_out(part, sizes) for part in parts)
    sizes[id(node)] = size
    return size


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 16) if "x" in text else int(text)


_Loader.yaml_implicit_resolvers = {}
_Dumper.yaml_implicit_resolvers = {}
# PyYAML implements YAML 1.1, where 1e-3 is a string, 010 is eight and 16:9 is 969.
for _tag, _pattern, _first in (
    ("bool", r"true|True|false|False", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+0123456789.",
    ),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def find_config(path: str | Path) -> Path:
    """A file, or the config of that name which ships with the package: `tokenizer/digits_leech`.

    The ending .yaml and a leading `configs/` may be there or not.

    Raises:
        ValueError: neither; names the closest configs.
    """
    if Path(path).is_file():
        return Path(path)
    shipped = shipped_configs()
    name = Path(path).as_posix().removeprefix("./").removeprefix("configs/")
    for candidate in (name, f"{name}.yaml"):
        if candidate in shipped:
            return shipped[candidate]
    close = difflib.get_close_matches(name, shipped, n=3) or sorted(shipped)
    raise ValueError(
        f"config file {path} does not exist, and no config of the package has that name "
        f"(closest: {', '.join(close[:3])})"
    )


def shipped_configs() -> dict[str, Path]:
    """The configs of the package by name, `tokenizer/digits_leech.yaml` and so on."""
    folder = Path(str(files("lambda24.configs")))
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = read_yaml_text(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected `key: value` lines, got {type(data).__name__}")
    return data


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"override {text!r}: expected key=value, for example optimizer.lr=1e-3")
    try:
        return keys, read_yaml_text(value)
    except ValueError as error:
        raise ValueError(f"override {text!r}: {error}") from error


def _apply_override(data: dict[str, Any], keys: list[str], value: Any) -> None:
    node: Any = data
    for depth, key in enumerate(keys):
        is_last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                where = ".".join(keys[:depth])
                raise ValueError(
                    f"override {'.'.join(keys)}: {where} is a list of {len(node)}, "
                    f"got item {key!r} (allowed: 0 to {len(node) - 1})"
                )
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
            if is_last and key == "kind" and node.get("kind", value) != value:
                node.clear()
            if not is_last and node.get(key) is None:
                node[key] = {}
        else:
            raise ValueError(
                f"override {'.'.join(keys)}: {'.'.join(keys[:depth])} is {node!r}, "
                f"it has no key {key!r}"
            )
        if is_last:
            node[index] = value
        else:
            node = node[index]


def _validate(cls: type[T], data: Mapping[str, Any], source: str) -> T:
    try:
        text = json.dumps(data)
    except TypeError as error:
        raise ValueError(f"{source}: only JSON types are allowed: {error}") from error
    too_large = [f"{key}: {problem}" for key, problem in _too_large(data)]
    if too_large:
        raise ValueError(f"invalid {source}:\n  " + "\n  ".join(too_large[:8]))
    adapter: TypeAdapter[T] = TypeAdapter(cls)
    try:
        # Strict JSON mode: lists become tuples and integers floats, but "3" is not an integer.
        return adapter.validate_json(text)
    except ValidationError as error:
        plain = json.loads(text)
        lines = dict.fromkeys(_problem(cls, plain, item) for item in error.errors())
        raise ValueError(f"invalid {source}:\n  " + "\n  ".join(lines)) from None


def _too_large(data: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Keys and what is wrong with numbers and texts that no config has a use for."""
    if isinstance(data, Mapping):
        for name, value in data.items():
            yield from _too_large(value, f"{key}.{name}" if key else str(name))
    elif isinstance(data, (list, tuple)):
        for number, value in enumerate(data):
            yield from _too_large(value, f"{key}.{number}")
    elif isinstance(data, int) and abs(data) > MAX_INTEGER:
        digits = len(str(abs(data)))
        yield key, f"got a number of {digits} digits (allowed: up to 2^53 = {MAX_INTEGER:,})"
    elif isinstance(data, str) and len(data) > MAX_TEXT:
        yield key, f"got a text of {len(data):,} characters (allowed: {MAX_TEXT:,})"


def _problem(cls: type, data: Any, error: ErrorDetails) -> str:
    """One line: `key.path: got VALUE (allowed: ...)`."""
    kind, context = error["type"], error.get("ctx", {})
    location = list(error["loc"])
    own_key = kind in ("missing", "unexpected_keyword_argument")
    path, owner = _walk(cls, data, location[:-1] if own_key else location)
    if own_key:
        path.append(str(location[-1]))
    key = ".".join(path) or "(top level)"
    if kind == "missing":
        return f"{key}: missing, a value is required"
    if kind == "unexpected_keyword_argument":
        allowed = sorted(_fields(owner))
        close = difflib.get_close_matches(path[-1], allowed, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        value = _short(error["input"])
        return f"{key}: got {value}, but there is no such key{hint} (allowed: {', '.join(allowed)})"
    if kind == "union_tag_not_found":
        tags = ", ".join(repr(tag) for tag in _tags(owner))
        return f"{'.'.join([*path, 'kind'])}: missing, a value is required (allowed: {tags})"
    if kind == "union_tag_invalid":
        tags = context["expected_tags"]
        return f"{'.'.join([*path, 'kind'])}: got {context['tag']!r} (allowed: {tags})"
    if kind in ("value_error", "assertion_error"):
        message = error["msg"].split(", ", 1)[-1]
        got = "" if isinstance(error["input"], dict) else f"got {_short(error['input'])}: "
        return f"{key}: {got}{message}"
    allowed_text = str(context["expected"]) if "expected" in context else _wanted(error["msg"])
    return f"{key}: got {_short(error['input'])} (allowed: {allowed_text})"


def _wanted(message: str) -> str:
    for prefix in ("Input should be ", "Value should be "):
        if message.startswith(prefix):
            return message.removeprefix(prefix).removeprefix("a valid ")
    return message


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _walk(annotation: Any, data: Any, location: Sequence[int | str]) -> tuple[list[str], Any]:
    """Follows an error location through data and types: (keys, annotation there).

    Locations also hold union tags and member names, which are no keys; tags pick the variant.
    """
    path: list[str] = []
    for part in location:
        variant = next((c for c in config_classes(annotation) if part in _tags(c)), None)
        if variant is not None and len(config_classes(annotation)) > 1:
            annotation = variant
        elif isinstance(data, dict) and part in data:
            annotation = _fields(annotation).get(str(part), _item(annotation, part))
            data = data[part]
            path.append(str(part))
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            annotation, data = _item(annotation, part), data[part]
            path.append(str(part))
    return path, annotation


def config_classes(annotation: Any) -> list[type]:
    """The config classes an annotation admits (itself, or members of a union)."""
    if hasattr(annotation, "__pydantic_fields__"):
        return [annotation]
    if get_origin(annotation) in (list, tuple, dict):
        return []
    return [cls for member in get_args(annotation) for cls in config_classes(member)]


def _fields(annotation: Any) -> dict[str, Any]:
    return {
        name: info.annotation
        for cls in config_classes(annotation)
        for name, info in getattr(cls, "__pydantic_fields__", {}).items()
    }


def _tags(annotation: Any) -> list[str]:
    kinds = [_fields(cls).get("kind") for cls in config_classes(annotation)]
    return [tag for kind in kinds if get_origin(kind) is Literal for tag in get_args(kind)]


def _item(annotation: Any, part: int | str) -> Any:
    """Element type of a list, tuple or dict annotation."""
    arguments = [a for a in get_args(annotation) if a is not Ellipsis]
    origin = get_origin(annotation)
    if origin is tuple and isinstance(part, int) and part < len(arguments):
        return arguments[part]
    if origin in (list, tuple, dict) and arguments:
        return arguments[-1]
    containers = [a for a in arguments if get_origin(a) in (list, tuple, dict)]
    return _item(containers[0], part) if containers else None
