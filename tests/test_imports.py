"""The rooms and the one way that imports run between them."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "harp_jax"
LAYERS = [
    {"types", "ops"},
    {"data", "pruning"},
    {"models"},
    {"attacks", "losses"},
    {"training", "checkpoint"},
    {"config"},
    {"evaluate", "inference", "interrupt", "plots", "report", "workdirs"},
    {"experiment"},
    {"main"},
]
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
PURE = ("ops", "pruning", "models", "attacks", "losses", "types")
FORBIDDEN_IN_PURE = {"etils", "ml_collections", "orbax", "time", "os", "pathlib", "json"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "harp_jax" and len(parts) > 1 and parts[1] in HEIGHT and parts[1] != here:
            assert HEIGHT[parts[1]] <= HEIGHT[here], f"{here} imports {name}"
        assert here not in PURE or parts[0] not in FORBIDDEN_IN_PURE, f"{here} imports {name}"


def test_only_one_file_names_pmap():
    naming = [path for path in FILES if "pmap(" in path.read_text()]
    assert [path.name for path in naming] == ["parallel.py"]
