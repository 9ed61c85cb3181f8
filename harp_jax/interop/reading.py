"""Reads a network from a checkpoint in one of PyTorch's formats."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from harp_jax import checkpoint
from harp_jax.export import torch_names
from harp_jax.export.errors import FileError
from harp_jax.export.trained import tree
from harp_jax.interop import normalizing, pruned
from harp_jax.interop.comparing import PRUNED, Comparison
from harp_jax.interop.containers import opened
from harp_jax.interop.layouts import RATE, SCORES
from harp_jax.interop.options import Options, checked
from harp_jax.interop.pruned import Rule
from harp_jax.interop.report import Report, printable, shown
from harp_jax.interop.rules import rule

_FLOATS = ("float16", "bfloat16", "float32", "float64")


class Imported(NamedTuple):
    """A network from a checkpoint.

    Attributes:
        variables: 'params' and 'batch_stats'; of a pruned network also 'scores', 'rates' and
            'minimum_rates'. NumPy float32, as `harp_jax.checkpoint.load` gives them.
        metadata: 'stage' ('pretrain' of a dense network, 'prune' of a pruned one), 'model',
            'num_classes', 'image_shape', 'normalization', 'compute_dtype', 'width', 'notes' and
            'imported' (the file's name, and where in it the arrays are).
        report: What was taken and what was left out.
    """

    variables: dict[str, Any]
    metadata: dict[str, Any]
    report: Report


def read(
    path: epath.PathLike,
    model: str,
    *,
    target: float | None = None,
    alpha: float | None = None,
    rate: float | None = None,
    normalization: str | Sequence[Sequence[float]] | None = None,
    num_classes: int | None = None,
    width: float = 1.0,
    image_shape: Sequence[int] | None = None,
    key: str | None = None,
    ignore: Sequence[str] = (),
) -> Imported:
    """Reads a network from a checkpoint of PyTorch's, or from safetensors with its names.

    PyTorch is not needed, and nothing in the file is executed.

    Args:
        path: A file that `torch.save` wrote, in the format since 1.6 or the one before, or
            safetensors. The arrays may be at any level and behind any prefix of their keys.
        model: One of `harp_jax.models.MODELS`.
        target: The target rate k of HARP's pruned checkpoints, in (0, 1). Rates are
            sigmoid(k_score) * (1 - target * alpha) + target * alpha.
        alpha: HARP's alpha, in [0, 1]; None means 0.1.
        rate: The rate k of HYDRA's pruned checkpoints, in (0, 1]. 1 leaves out the scores, and
            lets weights train that are 0 in a file without scores. Such a file is that of a pruned
            network if half of its weights are 0, or any, and `harp_jax.export` wrote it.
        normalization: 'none', 'cifar10', 'svhn', 'imagenet', or mean and deviation of every
            channel. None means that of the file's buffers or metadata, or none.
        num_classes: Number of logits; None means that of the file.
        width: Factor of the network's channels, in (0, 100]; see `harp_jax.models.create`.
        image_shape: Height, width and channels; None means the usual ones of the network.
        key: Where the arrays are, if there are several networks in the file: 'state_dict_ema', or
            'state_dict:ema.' with a prefix.
        ignore: Beginnings of keys, without the prefix, that may be in the file and are left out.

    Returns:
        The network. Masks of a pruned one are those of the authors' code, weight for weight.

    Raises:
        FileError: If the file cannot be read, holds anything but data, lacks arrays of the network,
            has others or some of other shapes, or does not go with the options; names the file.
    """
    given = {
        "target": target,
        "alpha": alpha,
        "rate": rate,
        "normalization": normalization,
        "num_classes": num_classes,
        "width": width,
        "image_shape": image_shape,
        "key": key,
        "ignore": ignore,
    }
    options, where = checked(model, given), checkpoint.absolute(path)
    with _compared(where, options) as found:
        found.check()
        return _imported(found, options, where.name)


def inspect(
    path: epath.PathLike,
    model: str,
    *,
    num_classes: int | None = None,
    width: float = 1.0,
    image_shape: Sequence[int] | None = None,
    key: str | None = None,
    ignore: Sequence[str] = (),
) -> Report:
    """Compares a checkpoint with a network, and reads no numbers.

    Args:
        path: See `read`.
        model: See `read`.
        num_classes: See `read`.
        width: See `read`.
        image_shape: See `read`.
        key: See `read`.
        ignore: See `read`.

    Returns:
        The report; `Report.problem` says what forbids the import.

    Raises:
        FileError: If the file cannot be read, or has several networks; names the file.
    """
    given = {
        "num_classes": num_classes,
        "width": width,
        "image_shape": image_shape,
        "key": key,
        "ignore": ignore,
    }
    with _compared(checkpoint.absolute(path), checked(model, given)) as found:
        return found.report


@contextlib.contextmanager
def _compared(path: epath.Path, options: Options) -> Iterator[Comparison]:
    """Opens a checkpoint; errors name the file."""
    try:
        with opened(path) as content:
            yield Comparison(content, options)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error


def _imported(found: Comparison, options: Options, name: str) -> Imported:
    how, notes = rule(found, options)
    normalization, note = normalizing.choose(
        options.normalization, found.buffers, options.image_shape[-1], found.own
    )
    notes += [note] if note else []
    variables = _arrays(found, notes)
    report = found.report
    if how is not None:
        variables |= _scores(found, how, notes)
        taken = {key for key, why in report.ignored.items() if why == PRUNED}
        ignored = {key: why for key, why in report.ignored.items() if key not in taken}
        report = report._replace(
            taken=report.taken | {key: _place(found, key) for key in taken}, ignored=ignored
        )
    layout = found.choice.layout
    metadata = {
        "stage": "pretrain" if how is None else "prune",
        "epoch": None,
        "model": options.model,
        "num_classes": int(layout.arrays[layout.last][1][0]),
        "image_shape": list(options.image_shape),
        "normalization": normalization,
        "compute_dtype": "float32",
        "width": float(options.width),
        "notes": notes,
        "imported": {"file": name, "key": found.choice.name},
    }
    return Imported(variables, metadata, report._replace(notes=notes))


def _place(found: Comparison, key: str) -> str:
    """Returns the path of a layer's scores or rate."""
    layer, _, leaf = key.removeprefix(found.choice.prefix).rpartition(".")
    path = found.choice.layout.layers()[layer][0].removeprefix("params/")
    return f"{'scores' if leaf == SCORES else 'rates'}/{path}"


def _arrays(found: Comparison, notes: list[str]) -> dict[str, Any]:
    """Reads the parameters and BatchNorm's statistics."""
    leaves, rounded, choice = {}, [], found.choice
    for name, (path, _) in choice.layout.arrays.items():
        key = f"{choice.prefix}{name}"
        array = _numbers(found, key)
        if not np.can_cast(array.dtype, np.float32):
            rounded.append(key)
        turned = torch_names.turned_back(choice.layout.trained, path, array.astype(np.float32))
        leaves[path] = np.ascontiguousarray(turned)
    if rounded:
        notes.append(f"rounded to float32: {shown(rounded)}")
    return tree(leaves)


def _numbers(found: Comparison, key: str) -> np.ndarray:
    entry, shown_key = found.choice.entries[key], printable(key)
    if entry.dtype.name not in _FLOATS:
        raise FileError(
            f"{shown_key}: has numbers of {entry.dtype.name}; allowed are {', '.join(_FLOATS)}"
        )
    array = entry.array()
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32)).all()
    if not finite:
        raise FileError(
            f"{shown_key}: has numbers that are not finite; allowed are those of float32"
        )
    if key.endswith(".running_var") and (array < 0).any():
        raise FileError(f"{shown_key}: has numbers < 0; allowed are variances")
    return array


def _scores(found: Comparison, how: Rule, notes: list[str]) -> dict[str, Any]:
    """Reads scores and rates, and compares the masks with the authors'."""
    collections: dict[str, dict[str, Any]] = {"scores": {}, "rates": {}, "minimum_rates": {}}
    moved, trained = [], found.choice.layout.trained
    for name, (path, shape) in found.choice.layout.layers().items():
        key = f"{found.choice.prefix}{name}"
        of_scores = f"{key}.weight" if how.zeros else f"{key}.{SCORES}"
        scores = _numbers(found, of_scores).astype(np.float32)
        without = how.zeros or how.rate is not None
        k_score = None if without else _numbers(found, f"{key}.{RATE}")
        layer = pruned.layer(trained, path, shape, scores, k_score, how)
        place = path.removeprefix("params/")
        collections["scores"][place] = layer.scores
        collections["rates"][place] = layer.logit
        collections["minimum_rates"][place] = np.asarray(how.minimum, np.float32)
        moved += [name] if layer.moved else []
    if moved:
        notes.append(f"rates moved by rounding, so that masks are the authors': {shown(moved)}")
    return {name: tree(leaves) for name, leaves in collections.items()}
