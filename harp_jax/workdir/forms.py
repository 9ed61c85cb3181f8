"""The forms of a workdir's JSON files, and the first place where a value has another one."""

from collections.abc import Mapping
from typing import Any, TypeAlias

# A type, or types; [form] for a list; for an object a form by name: 'name?' may be missing or null,
# '*' stands for all names that are not listed.
Form: TypeAlias = Any

NUMBER = (int, float)
OBJECT = {"*": object}
_WORDS = {str: "strings", int: "whole numbers", NUMBER: "numbers"}

DIGESTS = {"train": str, "validation": str, "*": str}
SETTINGS = {  # the configuration of a run
    "data?": OBJECT,
    "prune?": {"target?": NUMBER, "*": object},
    "finetune?": OBJECT,
    "*": object,
}
CONFIG = {
    "config": SETTINGS,
    "format?": int,
    "created?": str,
    "since?": str,
    "revision?": str,
    "versions?": {"*": str},
    "data?": {"name": str, "version?": str, "digests": DIGESTS},
    "sources?": {"*": {"given": str, "digest?": str}},
    "history?": [OBJECT],
}
ROW = {
    "stage": str,
    "natural": NUMBER,
    "robust": {"*": NUMBER},
    "sparsity": NUMBER,
    "parameters": int,
    "total": int,
    "images": int,
    "seconds?": NUMBER,
    "checkpoint_epoch?": int,
    "layers?": [{"layer": str, "kept": int, "parameters": int}],
    "balanced?": {"*": NUMBER},
    "correct?": {"*": [int]},
    "class_images?": [int],
    "autoattack?": {
        "*": {"after": {"*": NUMBER}, "balanced": {"*": NUMBER}, "seconds": {"*": NUMBER}}
    },
    "curve?": [{"epsilon": NUMBER, "robust": NUMBER}],
    "checks?": {"excess?": {"*?": NUMBER}, "zero_gradients?": {"*": NUMBER}},
    "warnings?": [str],
}
RESULTS = {
    "rows": [ROW],
    "attacks?": {"*": {"epsilon?": NUMBER, "step_size?": NUMBER, "*": object}},
    "dataset?": {"name?": str, "train?": int, "validation?": int, "test?": int},
    "config?": SETTINGS,
    "versions?": {"*": str},
    "notes?": [str],
}
SIZES = {
    "stage": str,
    "model": str,
    "device": str,
    "dense_bytes": int,
    "bytes": {"*": int},
    "digests": {"*?": str},
    "milliseconds": [{"images": int, "dense": NUMBER, "pruned": NUMBER}],
}
METRICS = {
    "epoch": int,
    "images_per_second?": NUMBER,
    "train?": {"*?": NUMBER},
    "validation?": {"*?": NUMBER},
    "compression?": {"target": NUMBER, "loss?": NUMBER, "gamma?": NUMBER, "rate?": NUMBER},
    "rates?": {"*?": NUMBER},
}


def problem(value: Any, form: Form, place: str = "") -> str | None:
    """Compares a JSON value with a form.

    Args:
        value: What was read.
        form: Its form.
        place: Where it stands, such as 'rows[0].natural'; '' for the whole file.

    Returns:
        What is wrong at the first place with another form, in one line; None if nothing is.
    """
    if isinstance(form, list):
        if not isinstance(value, list):
            return _wrong(place, value, "lists")
        members = ((f"{place}[{i}]", each, form[0]) for i, each in enumerate(value))
    elif isinstance(form, Mapping):
        if not isinstance(value, Mapping):
            return _wrong(place, value, "objects")
        for name in form:
            if name not in value and name != "*" and not name.endswith("?"):
                return f"{place or 'it'} has no {name!r}"
        dot = f"{place}." if place else ""
        members = ((f"{dot}{name}", each, _of(form, name, each)) for name, each in value.items())
    else:
        is_flag = isinstance(value, bool) and form in (int, NUMBER)  # bool is a kind of int
        fits = isinstance(value, form) and not is_flag
        return None if fits else _wrong(place, value, _WORDS.get(form, "single values"))
    return next((found for at, each, of in members if (found := problem(each, of, at))), None)


def _of(form: Mapping[str, Form], name: str, value: Any) -> Form:
    """Returns the form of an object's member; any form if it is null and may be missing."""
    if name in form:
        return form[name]
    if value is None and (f"{name}?" in form or "*?" in form):
        return object
    return form.get(f"{name}?", form.get("*", form.get("*?", object)))


def _wrong(place: str, value: Any, allowed: str) -> str:
    text = repr(value)
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    return f"{place or 'the value'}={shown}: allowed are {allowed}"
