"""Data, training and evaluation import only what lies below them, and no module imports itself."""

from __future__ import annotations

import ast
from pathlib import Path

import modelscope_i2v

_ROOT = Path(modelscope_i2v.__file__).parent
_ABOVE = {
    "data": {"engine", "training", "evaluation", "plugin", "cli"},
    "training": {"evaluation", "plugin", "cli"},
    "evaluation": {"training", "plugin", "cli"},
}


def imported(path: Path) -> set[str]:
    """The modules of this package that a module imports, anywhere in it, by their dotted names."""
    package = path.relative_to(_ROOT.parent).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
        name = ".".join(part for part in base if part)
        for alias in node.names:
            inner = _ROOT.parent / Path(*name.split("."), f"{alias.name}.py")
            found.add(f"{name}.{alias.name}" if inner.is_file() else name)
    return found


def test_imports_go_down():
    graph = {}
    for folder, above in _ABOVE.items():
        for path in (_ROOT / folder).glob("*.py"):
            name = ".".join(path.relative_to(_ROOT.parent).with_suffix("").parts)
            graph[name] = imported(path)
            for other in graph[name]:
                assert other.split(".")[1] not in above, f"{name} imports {other}"
    assert "modelscope_i2v.training.result" in graph["modelscope_i2v.training.trainer"]

    def reached(name: str, seen: set[str]) -> set[str]:
        for other in graph.get(name, set()) - seen:
            seen.add(other)
            reached(other, seen)
        return seen

    for name in graph:
        assert name not in reached(name, set()), f"{name} imports itself in a circle"
