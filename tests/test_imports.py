"""The rooms and the one way that imports run between them."""

import ast
import graphlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "harp_jax"
# From the bottom to the top; a room imports from lower levels only, not from its own.
LEVELS = [
    {"names", "native"},
    {"interrupt", "ops", "peers", "settings", "types"},
    {"data", "parallel", "pruning", "workdir"},
    {"attacks", "methods", "models"},
    {"losses"},
    {"checkpoint", "evaluation"},
    {"training"},
    {"config"},
    {"export", "report"},
    {"interop", "run"},
    {"main"},
]
HEIGHT = {room: height for height, rooms in enumerate(LEVELS) for room in rooms}
# What goes beside or against the levels: each module by name, and why.
ALLOWED: dict[tuple[str, str], str] = {}
PURE = ("ops", "pruning", "models", "attacks", "losses", "types", "methods")
FORBIDDEN_IN_PURE = {"etils", "ml_collections", "orbax", "time", "os", "pathlib", "json"}


def module_name(path, package=PACKAGE):
    """'harp_jax.data.idx' of its file, 'harp_jax.data' of that folder's __init__.py."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, package=PACKAGE):
    """Names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                file = package.parent.joinpath(*node.module.split("."), alias.name)
                is_module = file.with_suffix(".py").exists() or file.is_dir()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def import_order(package):
    """All modules, each after those that it imports; a graphlib.CycleError where there is none."""
    files = {module_name(path, package): path for path in package.rglob("*.py")}
    graph = {name: files.keys() & set(imports(path, package)) for name, path in files.items()}
    return list(graphlib.TopologicalSorter(graph).static_order())


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def test_every_room_has_its_level():
    assert {room(path) for path in FILES} == HEIGHT.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    here = room(path)
    for name in imports(path):
        top, _, below = name.partition(".")
        if top == "harp_jax":
            there = below.split(".")[0]
            assert there in HEIGHT, f"{here} imports {name}, which is in no room"
            lower = HEIGHT[there] < HEIGHT[here]
            assert there == here or lower or (here, name) in ALLOWED, f"{here} imports {name}"
        assert here not in PURE or top not in FORBIDDEN_IN_PURE, f"{here} imports {name}"


def test_every_exception_is_in_use():
    used = {(room(path), name) for path in FILES for name in imports(path)}
    assert ALLOWED.keys() <= used


def test_no_module_imports_itself_through_others():
    order = import_order(PACKAGE)
    assert len(order) == len(FILES) + 1
    assert order.index("harp_jax.types") < order.index("harp_jax.data.augment")


@pytest.mark.parametrize(
    "importing", ["from rooms.a import x", "from rooms import a", "import rooms.a"]
)
def test_a_cycle_is_found(importing, tmp_path):
    package = tmp_path / "rooms"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("import rooms.inner\nx = 1\n")
    (package / "inner" / "__init__.py").write_text("from rooms.inner.b import y\n")
    (package / "inner" / "b.py").write_text("y = 2\n")
    assert import_order(package)[-1] == "rooms.a"
    (package / "inner" / "b.py").write_text(f"def late():\n    {importing}\n")
    with pytest.raises(graphlib.CycleError):
        import_order(package)


def test_only_one_file_names_pmap():
    naming = [path for path in FILES if "pmap(" in path.read_text()]
    assert [path.name for path in naming] == ["parallel.py"]
