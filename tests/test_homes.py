"""One home a name: what a module imports is imported by others from where it is defined."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "generator", "models", "sampling", "scripts", "tokenizer")


def other_doors(sources: dict[str, str]) -> list[str]:
    """Names taken from a module of ours that only imports them itself.

    Args:
        sources: text of each file by its path from the root. A package's `__init__` may hand on.
    """
    trees = {path: ast.parse(text) for path, text in sources.items()}
    bound = {
        "lambda24." + path.removesuffix(".py").replace("/", "."): _imported_from_ours(tree)
        for path, tree in trees.items()
        if path.split("/")[0] in PACKAGES and not path.endswith("__init__.py")
    }
    return [
        f"{path}:{node.lineno} takes {alias.name} from {node.module}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in bound.get(node.module or "", ())
    ]


def _imported_from_ours(tree: ast.Module) -> set[str]:
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lambda24")
        for alias in node.names
    }


def test_every_name_is_imported_from_its_home() -> None:
    files = [file for top in (*PACKAGES, "tests") for file in (ROOT / top).rglob("*.py")]
    sources = {str(file.relative_to(ROOT).as_posix()): file.read_text("utf-8") for file in files}
    assert len(sources) > 200
    assert other_doors(sources) == []


def test_a_second_door_is_found() -> None:
    sources = {
        "common/home.py": "Thing = int",
        "common/__init__.py": "from lambda24.common.home import Thing",
        "common/user.py": "from lambda24.common.home import Thing",
        "scripts/good.py": "from lambda24.common.home import Thing",
        "scripts/also_good.py": "from lambda24.common import Thing",
        "scripts/bad.py": "from lambda24.common.user import Thing",
    }
    assert other_doors(sources) == ["scripts/bad.py:1 takes Thing from lambda24.common.user"]
