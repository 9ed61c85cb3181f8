"""Words attacks, stages and numbers for the page."""

import json
import math
from collections.abc import Mapping
from typing import Any

from harp_jax.workdir.records import STAGES

Record = Mapping[str, Any]
NORMS = {"linf": "L∞", "l2": "L2"}
MEASURED_FINELY = 10_000  # images from which on a hundredth of a percent point means something


def attack(settings: Record) -> str:
    """Words an attack's settings: known ones in a fixed order, then the others by name."""
    rest = dict(settings)
    words = [str(rest.pop("type"))] if "type" in rest else []
    if "norm" in rest:
        norm = str(rest.pop("norm"))
        words.append(NORMS.get(norm.lower(), norm))
    if "epsilon" in rest:
        words.append(f"ε = {pixels(rest.pop('epsilon'))}")
    if rest.get("step_size") is not None:
        words.append(f"step size {pixels(rest.pop('step_size'))}")
    for field in ("steps", "restarts"):
        if isinstance(count := rest.get(field), int):
            words.append(f"{count:,} {field if rest.pop(field) != 1 else field[:-1]}")
    for field, value in rest.items():
        if value is not None:
            shown = value if isinstance(value, str) else json.dumps(value)
            words.append(f"{field.replace('_', ' ')} {shown}")
    return ", ".join(words)


def pixels(value: float) -> str:
    """Words a length on the [0, 1] scale, as a fraction of 255 if that is shorter."""
    levels = value * 255
    if abs(value * 1000 - round(value * 1000)) > 1e-6 and abs(levels - round(levels)) < 1e-3:
        return f"{round(levels)}/255"
    return f"{value:.4g}"


def stage(stage: str) -> str:
    """Names a stage's network."""
    return STAGES.get(stage, stage)


def score(row: Record, accuracy: float | None) -> str:
    """Words an accuracy in percent, no finer than the number of images allows; '' for None."""
    digits = 2 if row["images"] >= MEASURED_FINELY else 1
    return "" if accuracy is None else f"{100 * accuracy:.{digits}f} %"


def sparsity(share: float) -> str:
    """Words a sparsity with as many digits as the kept share needs: 95.0 %, 99.95 %, 99.996 %."""
    return f"{100 * share:.{max(_digits(1 - share), 2 if share > 0.99 else 1)}f} %"


def kept(share: float) -> str:
    """Words a share that is kept, with a digit other than zero: 4.2 %, 0.04 %."""
    return f"{100 * share:.{max(_digits(share), 1)}f} %"


def _digits(share: float) -> int:
    """Returns the digits after the point of percents up to the first that is not zero."""
    return math.ceil(-math.log10(100 * share)) if share > 0 else 0
