"""The forms of a workdir's JSON files, and the first place where a value has another one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

# A type, or a `Between`; [form] for a list; for an object a form by name: 'name?' may be missing or
# null, '*' stands for all names that are not listed.
Form: TypeAlias = Any

LARGEST = 1e300  # of all numbers; sums of some stay finite


@dataclasses.dataclass(frozen=True)
class Between:
    """The form of a number in a range.

    Attributes:
        words: What is allowed.
        low: Its smallest value.
        high: Its largest value.
        whole: Whether it is a whole number.
    """

    words: str
    low: int | float = -LARGEST
    high: int | float = LARGEST
    whole: bool = False


NUMBER = Between("numbers")
AMOUNT = Between("numbers >= 0", low=0)
SHARE = Between("numbers in [0, 1]", low=0, high=1)
COUNT = Between("whole numbers >= 0", low=0, high=2**53, whole=True)
SIZE = Between("whole numbers >= 1", low=1, high=2**53, whole=True)
OBJECT = {"*": object}

DIGESTS = {"train": str, "validation": str, "*": str}
SETTINGS = {  # the configuration of a run
    "width?": NUMBER,
    "data?": OBJECT,
    "prune?": {"target?": NUMBER, "*": object},
    "finetune?": OBJECT,
    "*": object,
}
CONFIG = {
    "config": SETTINGS,
    "format?": COUNT,
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
    "natural": SHARE,
    "robust": {"*": SHARE},
    "sparsity": SHARE,
    "parameters": COUNT,
    "total": SIZE,
    "images": SIZE,
    "seconds?": AMOUNT,
    "checkpoint_epoch?": COUNT,
    "matmul_precision?": str,
    "layers?": [{"layer": str, "kept": COUNT, "parameters": SIZE}],
    "balanced?": {"*": SHARE},
    "correct?": {"*": [COUNT]},
    "class_images?": [COUNT],
    "autoattack?": {
        "*": {"after": {"*": SHARE}, "balanced": {"*": SHARE}, "seconds": {"*": AMOUNT}}
    },
    "curve?": [{"epsilon": AMOUNT, "robust": SHARE}],
    "checks?": {"excess?": {"*?": NUMBER}, "zero_gradients?": {"*": SHARE}},
    "warnings?": [str],
}
RESULTS = {
    "rows": [ROW],
    "attacks?": {"*": {"epsilon?": NUMBER, "step_size?": NUMBER, "*": object}},
    "dataset?": {"name?": str, "train?": COUNT, "validation?": COUNT, "test?": COUNT},
    "config?": SETTINGS,
    "versions?": {"*": str},
    "notes?": [str],
}
SIZES = {
    "stage": str,
    "model": str,
    "device": str,
    "dense_bytes": SIZE,
    "bytes": {"*": COUNT},
    "digests": {"*?": str},
    "milliseconds": [{"images": SIZE, "dense": AMOUNT, "pruned": AMOUNT}],
}
METRICS = {
    "epoch": COUNT,
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
    elif isinstance(form, Between):
        return None if _lies_in(value, form) else _wrong(place, value, form.words)
    else:
        words = "strings" if form is str else "single values"
        return None if isinstance(value, form) else _wrong(place, value, words)
    return next((found for at, each, of in members if (found := problem(each, of, at))), None)


def _lies_in(value: Any, form: Between) -> bool:
    kinds = int if form.whole else int | float
    is_number = isinstance(value, kinds) and not isinstance(value, bool)  # bool is a kind of int
    return is_number and form.low <= value <= form.high


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
