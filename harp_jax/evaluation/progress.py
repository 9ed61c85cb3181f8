"""Progress of an attack over a split, in memory and in a small file."""

import dataclasses
import hashlib
import io
import logging
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Int

from harp_jax.pruning.layers import leaves_by_path
from harp_jax.workdir import records, write_atomically

_LOGGER = logging.getLogger(__name__)

ROBUST = -1  # in `Progress.broken_by`
FORMAT = 2  # of the file

Places = Int[np.ndarray, " n"]
Memory = dict[str, np.ndarray]


@runtime_checkable
class Examples(Protocol):
    """Images and labels in memory, e.g. a `data.Split`."""

    @property
    def images(self) -> np.ndarray:
        """Images [N, H, W, C], uint8 or float32 in [0, 1]."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """Labels, int32 [N], in [0, classes)."""
        ...


@dataclasses.dataclass
class Progress:
    """The content of a file of progress.

    Attributes:
        broken_by: See `Outcome`.
        passed: Number of rounds that each example has finished (see `PackedAttack.rounds`).
        seconds: Time by name.
        excess: See `Outcome`; so far.
        zero_gradients: Number of examples whose gradient is zero, see `Outcome`.
        not_finite: Number of examples whose logits are not finite, clean or attacked.
        deterministic: See `Outcome`.
        searching: Places of the examples that are inside a round.
        memory: Memory of their round (see `attacks.base.State`) by name, in the order of
            `searching`. The file holds each of these arrays separately.
        found: Float32 [N, H, W, C], the adversarial images so far, else the clean ones; None if
            images are not kept.
    """

    broken_by: np.ndarray
    passed: np.ndarray
    seconds: np.ndarray
    excess: Any
    zero_gradients: Any
    not_finite: Any
    deterministic: Any
    searching: np.ndarray
    memory: Memory
    found: np.ndarray | None = None

    @classmethod
    def none(
        cls, examples: int, names: int, memory: Memory, found: np.ndarray | None = None
    ) -> "Progress":
        """Returns the progress before the first batch; `memory` has zero examples."""
        return cls(
            broken_by=np.full(examples, ROBUST, np.int8),
            passed=np.zeros(examples, np.int32),
            seconds=np.zeros(names),
            excess=np.float32(0.0),
            zero_gradients=np.int64(0),
            not_finite=np.int64(0),
            deterministic=np.bool_(True),
            searching=np.zeros(0, np.int32),
            memory=memory,
            found=found,
        )

    def robust(self) -> float:
        """Computes the share of the examples that are not broken so far."""
        return float((self.broken_by == ROBUST).mean())

    def waiting(self, passed: int) -> Places:
        """Finds the robust examples that have finished `passed` rounds."""
        chosen = (self.broken_by == ROBUST) & (self.passed == passed)
        return np.flatnonzero(chosen).astype(np.int32)

    def record(self, places: Places, by: int, found: Mapping[str, Any]) -> None:
        """Adds the results of a batch."""
        broken = found["broken"]
        self.broken_by[places[broken]] = by
        self.not_finite += found["not_finite"].sum()
        self.excess = np.maximum(self.excess, found["excess"].max(initial=0.0))
        if self.found is not None and "adversarial" in found:
            self.found[places[broken]] = found["adversarial"][broken]


def fingerprint(identity: str, seed: int, examples: Examples, weights: Any) -> str:
    """Computes a digest of the attack, network and data that a file of progress belongs to.

    Args:
        identity: Identity of the attack and, if the weights do not say it all, of the network.
        seed: Seed of the noise.
        examples: The images and labels.
        weights: The network's arrays, a nested dict.

    Returns:
        The digest.
    """
    digest = hashlib.sha256(f"{FORMAT} {identity} {seed}".encode())
    arrays = {("images",): examples.images, ("labels",): examples.labels, **leaves_by_path(weights)}
    for path, array in sorted(arrays.items()):
        array = np.asarray(array)
        digest.update(f"{'/'.join(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def read(path: epath.Path, wanted: str) -> Progress | None:
    """Reads a file; returns None unless it is there, readable and has the wanted fingerprint."""
    if not path.exists():
        return None
    try:
        arrays = records.read_arrays(path)
    except records.ReportError as error:
        _LOGGER.warning("%s; its attack begins anew", error)
        return None
    if "fingerprint" not in arrays or arrays.pop("fingerprint").item() != wanted:
        _LOGGER.info("%s: is of another network, attack or images; the attack begins anew", path)
        return None
    fields = {field.name for field in dataclasses.fields(Progress)} & arrays.keys()
    memory = {name: arrays[name] for name in arrays.keys() - fields}
    return Progress(**{name: arrays[name] for name in fields}, memory=memory)


def write(path: epath.Path, owner: str, progress: Progress) -> None:
    """Replaces the file; a kill leaves the old or the new one. `owner` is the fingerprint."""
    arrays = {name: value for name, value in vars(progress).items() if value is not None}
    content = io.BytesIO()
    np.savez(content, fingerprint=np.array(owner), **arrays.pop("memory"), **arrays)
    write_atomically(path, content.getvalue())
