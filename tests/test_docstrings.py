"""The form of the package's docstrings: what has one, how it begins, and how its sections look."""

import ast
import pathlib
import re

import pytest
import test_imports

PACKAGE = pathlib.Path(__file__).parents[1] / "harp_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES} - {PACKAGE})
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SECTIONS = {"Args", "Attributes", "Raises", "Reference", "References", "Returns", "Yields"}
WITH_ENTRIES = ("Args", "Attributes", "Raises")
COMPLETE = {"NamedTuple", "Protocol"}  # bases that bring no attributes of their own
PROPERTIES = {"property", "functools.cached_property"}


def definitions(node, name="module", public=True):
    """Yields name, node and whether it is public, for a module and everything defined in it."""
    yield name, node, public
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            visible = public and not child.name.startswith("_") and not isinstance(node, FUNCTIONS)
            yield from definitions(child, f"{name}.{child.name}", visible)


def sections(doc):
    """The lines of each section of a docstring, by the section's title."""
    found, lines = {}, None
    for line in doc.splitlines():
        title = re.fullmatch(r"([A-Z]\w+):", line)
        if title:
            lines = found.setdefault(title[1], [])
        elif line and not line.startswith(" "):
            lines = None
        elif line and lines is not None:
            lines.append(line)
    return found


def entries(lines):
    """Name and text of each entry of a section; an entry without a name has the name ''."""
    texts = []
    for line in lines:
        if line.startswith(" " * 5) and texts:
            texts[-1] += f" {line.strip()}"
        else:
            texts.append(line.strip())
    return [re.fullmatch(r"(?:\**([\w.]+): )?(.*)", text).groups("") for text in texts]


def arguments(function):
    """Names of a function's arguments, without self and cls."""
    args = function.args
    every = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
    return [arg.arg for arg in every if arg is not None and arg.arg not in ("self", "cls")]


def attributes(class_):
    """Names of what a class has: fields, properties, methods, and what methods set on `self`."""
    own = [item.target.id for item in class_.body if isinstance(item, ast.AnnAssign)]
    own += [item.name for item in class_.body if isinstance(item, FUNCTIONS)]
    stored = [node for node in ast.walk(class_) if isinstance(node, ast.Attribute)]
    return own + [node.attr for node in stored if ast.unparse(node.value) == "self"]


def begins_with_a_verb(doc):
    """Whether the first word is a verb in the third person, as far as its last letter tells."""
    return re.match(r"[A-Z][a-z]*s\b(?! of\b)", doc) is not None


def faults(node, doc):
    """Yields a sentence for everything that is wrong with a docstring."""
    if doc.startswith("What "):
        yield "begins with 'What'"
    decorators = {ast.unparse(each) for each in getattr(node, "decorator_list", [])}
    function = isinstance(node, FUNCTIONS) and not PROPERTIES & decorators
    if function and not begins_with_a_verb(doc):
        yield "does not begin with a verb"
    found = sections(doc)
    for title, lines in found.items():
        if title not in SECTIONS:
            yield f"has a section {title!r}"
        named = entries(lines) if title in WITH_ENTRIES else [(title, " ".join(lines).strip())]
        for name, text in named:
            if not name:
                yield f"{title}: {text!r} has no name"
            elif text[0].islower():
                yield f"{title}: {name!r} begins with a small letter"
            elif not text.endswith("."):
                yield f"{title}: {name!r} does not end with a period"
    told = {title: [name for name, _ in entries(found.get(title, []))] for title in WITH_ENTRIES}
    if isinstance(node, FUNCTIONS) and "Args" in found and told["Args"] != arguments(node):
        yield f"Args are {told['Args']}, the signature has {arguments(node)}"
    if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} <= COMPLETE:
        unknown = [name for name in told["Attributes"] if name not in attributes(node)]
        if unknown:
            yield f"Attributes {unknown} are none of the class"


def violations(source):
    """Every fault of a file's docstrings, with line and name."""
    found = []
    for name, node, public in definitions(ast.parse(source)):
        doc, where = ast.get_docstring(node), f"{getattr(node, 'lineno', 1)} {name}"
        if doc is not None:
            found += [f"{where} {fault}" for fault in faults(node, doc)]
        elif public:
            found.append(f"{where} has no docstring")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_have_one_form(path):
    assert violations(path.read_text()) == []


def importers(room):
    """The sentence that says who may import a room, by the levels of `test_imports`."""
    height = test_imports.HEIGHT[room] + 1
    names = [f"`{name}`" for name in sorted(test_imports.LEVELS[height])]
    if test_imports.LEVELS[height + 1 :]:
        names.append(f"the rooms above {'them' if len(names) > 1 else 'it'}")
    listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    return f"{listed} may import this one."


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_folder_says_who_may_import_it(folder):
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert importers(folder.name) in " ".join(doc.split())


def test_importers_are_those_of_the_next_level_and_above():
    assert importers("run") == "`main` may import this one."
    assert importers("models") == "`losses` and the rooms above it may import this one."
    assert importers("data").startswith("`attacks`, `methods`, `models` and the rooms above them")


GOOD = '''"""A module."""

def scale(value, *more):
    """Scales a value.

    Args:
        value: Any number, and this text
            goes on: here.
        *more: Others.

    Returns:
        The product.
    """

class Pair:
    """Two values.

    Attributes:
        first: A number.
    """

    first: float
'''


def test_a_good_file_has_no_violations():
    assert violations(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"""A module."""', "", "1 module has no docstring"),
        ('"""Two values.', '"""What holds two values.', "15 module.Pair begins with 'What'"),
        ('"""Scales a', '"""The scaled', "3 module.scale does not begin with a verb"),
        ('"""Scales a', '"""Images of a', "3 module.scale does not begin with a verb"),
        ("goes on: here.", "goes on: here", "Args: 'value' does not end with a period"),
        ("value: Any", "value: any", "3 module.scale Args: 'value' begins with a small letter"),
        ("The product", "the product", "module.scale Returns: 'Returns' begins with a small"),
        ("*more: Others.", "Others.", "module.scale Args: 'Others.' has no name"),
        ("*more: Others.", "rest: Others.", "Args are ['value', 'rest'], the signature has"),
        ("Returns:", "Gives:", "module.scale has a section 'Gives'"),
        ("first: A number", "second: A number", "Attributes ['second'] are none of the class"),
    ],
)
def test_every_rule_finds_its_violation(old, new, message):
    assert any(message in found for found in violations(GOOD.replace(old, new)))
