"""How far an AutoAttack over a split is, in memory and in a small file."""

import dataclasses
import hashlib
import io
import logging
import zipfile
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Int

from harp_jax.attacks import AutoAttack
from harp_jax.data import Split
from harp_jax.pruning.layers import leaves_by_path
from harp_jax.types import Variables

_LOGGER = logging.getLogger(__name__)

ROBUST = -1  # in `Progress.broken_by`
FORMAT = 1  # of the file

Places = Int[np.ndarray, " n"]


@dataclasses.dataclass
class Progress:
    """What a file of progress holds.

    Attributes:
        broken_by: As in `Outcome`.
        passed: How many rounds each example has been through (see `PackedAutoAttack.rounds`).
        seconds: By name.
        excess: As in `Outcome`, so far.
        zero_gradients: Number of examples.
        deterministic: As in `Outcome`.
        searching: Places of the examples in the middle of a Square search.
        adversarial: Their best points.
        margin: Their margins.
        query: Their numbers of queries.
    """

    broken_by: np.ndarray
    passed: np.ndarray
    seconds: np.ndarray
    excess: Any
    zero_gradients: Any
    deterministic: Any
    searching: np.ndarray
    adversarial: np.ndarray
    margin: np.ndarray
    query: np.ndarray

    @classmethod
    def none(cls, split: Split, names: int) -> "Progress":
        """Before the first batch."""
        return cls(
            broken_by=np.full(len(split), ROBUST, np.int8),
            passed=np.zeros(len(split), np.int32),
            seconds=np.zeros(names),
            excess=np.float32(0.0),
            zero_gradients=np.int64(0),
            deterministic=np.bool_(True),
            searching=np.zeros(0, np.int32),
            adversarial=np.zeros((0, *split.images.shape[1:]), np.float32),
            margin=np.zeros(0, np.float32),
            query=np.zeros(0, np.int32),
        )

    def robust(self) -> float:
        """Share of the examples that nothing has broken so far."""
        return float((self.broken_by == ROBUST).mean())

    def waiting(self, passed: int) -> Places:
        """Robust examples that have been through `passed` rounds."""
        chosen = (self.broken_by == ROBUST) & (self.passed == passed)
        return np.flatnonzero(chosen).astype(np.int32)

    def record(self, places: Places, by: int, found: dict[str, np.ndarray]) -> None:
        """Takes over what was found in a batch."""
        self.broken_by[places[found["broken"]]] = by
        self.excess = np.maximum(self.excess, found["excess"].max(initial=0.0))


def fingerprint(variables: Variables, attack: AutoAttack, seed: int, split: Split) -> str:
    """What a file of progress belongs to."""
    digest = hashlib.sha256(f"{FORMAT} {attack!r} {seed}".encode())
    arrays = {("images",): split.images, ("labels",): split.labels, **leaves_by_path(variables)}
    for path, array in sorted(arrays.items()):
        array = np.asarray(array)
        digest.update(f"{'/'.join(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def read(path: epath.Path, wanted: str) -> Progress | None:
    """What a file holds, if it is there, readable and of the wanted fingerprint."""
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        _LOGGER.warning("%s: cannot be read (%s); its attack begins anew", path, error)
        return None
    if arrays.pop("fingerprint").item() != wanted:
        return None
    return Progress(**arrays)


def write(path: epath.Path, owner: str, progress: Progress) -> None:
    """Replaces the file; a kill leaves the old or the new one. `owner` is the fingerprint."""
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(content, fingerprint=np.array(owner), **vars(progress))
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(content.getvalue())
    unfinished.replace(path)
