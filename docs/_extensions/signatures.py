"""Signatures as the source has them: `images: Images`, not what this name stands for."""

import ast
import inspect
import textwrap
from typing import Any

from sphinx.application import Sphinx

Signature = tuple[str, str | None]


def _parsed(thing: Any) -> ast.stmt:
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def _of_function(function: Any) -> Signature:
    tree = _parsed(function)
    assert isinstance(tree, ast.FunctionDef)
    for arguments in (tree.args.posonlyargs, tree.args.args):
        if arguments and arguments[0].arg in ("self", "cls"):
            del arguments[0]
    returned = None if tree.returns is None else ast.unparse(tree.returns)
    return f"({ast.unparse(tree.args)})", returned


def _of_fields(kind: type) -> Signature:
    """Returns the signature of a dataclass or named tuple, from its own and inherited fields."""
    written: dict[str, ast.AnnAssign] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("harp_jax."):
            tree = _parsed(base)
            assert isinstance(tree, ast.ClassDef)
            fields = [each for each in tree.body if isinstance(each, ast.AnnAssign)]
            written |= {
                each.target.id: each for each in fields if isinstance(each.target, ast.Name)
            }
    names = [name for name in inspect.signature(kind).parameters if name in written]
    return f"({', '.join(ast.unparse(written[name]) for name in names)})", None


def _signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, *sphinx: str | None
) -> Signature | None:
    """Answers `autodoc-process-signature`; None leaves a signature as Sphinx makes it."""
    del app, name, options, sphinx
    if what in ("function", "method") and inspect.isfunction(inspect.unwrap(thing)):
        return _of_function(inspect.unwrap(thing))
    if what != "class":
        return None
    if getattr(thing, "_is_protocol", False):
        return "", None
    if hasattr(thing, "__dataclass_fields__") or hasattr(thing, "_fields"):
        return _of_fields(thing)
    if inspect.isfunction(vars(thing).get("__init__")):
        return _of_function(thing.__init__)
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the handler."""
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
