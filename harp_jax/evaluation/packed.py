"""Attacks a whole split with several parts: in packed batches, with progress that survives a kill.

Only examples that are still robust are attacked. They are packed into full batches again before
every round of a part (a target of APGD-T and FAB-T) and every few hundred queries of Square, so no
time goes into broken examples. The result of an example depends on the example alone: the packing,
the batch size and the devices do not change it, up to float rounding.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Bool, Int
from tqdm import tqdm

from harp_jax import parallel
from harp_jax.attacks.base import Part, loss_at_start
from harp_jax.evaluation import programs
from harp_jax.evaluation.checks import check_finite
from harp_jax.evaluation.functions import Network
from harp_jax.evaluation.progress import (
    ROBUST,
    Examples,
    Memory,
    Places,
    Progress,
    fingerprint,
    read,
    write,
)
from harp_jax.interrupt import InterruptedRunError
from harp_jax.types import Device

_SIZES = 4  # batches are whole multiples of this part of the largest one
NATURAL = "natural"


class Outcome(NamedTuple):
    """Result of an attack for every example of a split.

    Attributes:
        names: 'natural', then the parts in their order.
        broken_by: For each example the place in `names` of the part that broke it, or `ROBUST`.
        seconds: Time of each of the names, compilation included, over all resumed runs.
        excess: Largest distance of a perturbation outside its ball or the box; 0 up to rounding,
            nan if a perturbation is not finite.
        zero_gradients: Share of the clean images where the gradient is zero of the loss that the
            first part with gradients ascends.
        deterministic: Whether two forward passes of the same images agree.
        adversarial: The misclassified image of each example, or the clean image if none was found;
            float32 [N, H, W, C] in [0, 1]. None unless images are kept.
    """

    names: tuple[str, ...]
    broken_by: Int[np.ndarray, " examples"]
    seconds: dict[str, float]
    excess: float
    zero_gradients: float
    deterministic: bool
    adversarial: np.ndarray | None = None

    def robust(self, name: str) -> Bool[np.ndarray, " examples"]:
        """Returns which examples are classified correctly after everything up to `name`."""
        return (self.broken_by == ROBUST) | (self.broken_by > self.names.index(name))

    def after(self) -> dict[str, float]:
        """Returns the accuracy after each of the names."""
        return {name: float(self.robust(name).mean()) for name in self.names}


class _Round(NamedTuple):
    """One round of a part; `fields` are the names of what examples in the middle of it hold."""

    name: str
    number: int
    fields: tuple[str, ...]


class _Job(NamedTuple):
    """One call's network, examples and progress."""

    weights: Any
    examples: Examples
    progress: Progress


class PackedAttack:
    """Measures networks of one architecture under one attack; each program compiles once.

    Attributes:
        parts: The parts, by name.
        names: 'natural', then the parts in their order.
    """

    def __init__(
        self,
        network: Network,
        parts: Mapping[str, Part],
        *,
        identity: str,
        seed: int,
        batch_size: int,
        devices: Sequence[Device],
        keep: bool = False,
        precision: str | None = None,
    ):
        """Builds programs that compile at their first use.

        Args:
            network: (weights, images in [0, 1]) -> logits.
            parts: The parts of the attack in their order, by name; none is `NATURAL`.
            identity: Identity of the attack and the network, so that progress of others is not
                used; the weights are compared in addition.
            seed: Seed of the noise, which is keyed by the example's place in the split.
            batch_size: Examples at once over all devices of all processes, at most; a multiple of
                the number of devices.
            devices: Local devices.
            keep: Whether to keep the adversarial images.
            precision: Precision of float32 products, see `parallel.parallel`.
        """
        self.parts, self.names = dict(parts), (NATURAL, *parts)
        self._network, self._identity, self._keep, self._seed = network, identity, keep, seed
        self._batch_size, self._devices = batch_size, devices

        def everywhere(program: Callable[..., Any], settings: Any) -> Callable[..., Any]:
            return parallel.parallel(functools.partial(program, settings), devices, (), precision)

        loss = next(filter(None, map(loss_at_start, self.parts.values())), "ce")
        self._natural = everywhere(programs.natural, programs.Start(network, loss))
        self._programs = {
            name: everywhere(
                programs.piece if part.in_pieces else programs.whole_round,
                programs.Program(network, part, place, seed, keep),
            )
            for place, (name, part) in enumerate(self.parts.items())
        }

    def __call__(
        self,
        weights: Any,
        examples: Examples,
        label: str,
        path: epath.Path | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Attacks every example of a split; continues a stopped or killed call.

        Args:
            weights: The network's weights, replicated (see `parallel.replicate`); a nested dict.
            examples: The examples.
            label: Text in front of the progress bar.
            path: File of the progress, written after every batch; None for no file. A file of
                another network, attack or data set is overwritten.
            stop_requested: Called between batches; True stops the attack.

        Returns:
            The result for every example.

        Raises:
            InterruptedRunError: If a stop was requested.
            ValueError: If logits are not finite, clean or attacked; names how many images' are.
        """
        owner = ""
        if path is not None:
            host = parallel.to_host(weights)
            owner = fingerprint(self._identity, self._seed, examples, host)
        progress = read(path, owner) if path is not None else None
        progress = progress or self._none(weights, examples)
        job = _Job(weights, examples, progress)
        for passed, (name, number) in enumerate(self.rounds(self._classes(weights, examples))):
            # Of those that came to this round, so that a resumed one has batches of the same size.
            done = int((progress.passed > passed).sum())
            total = done + len(progress.waiting(passed))
            size = self._packed_size(total)
            this = _Round(name, number, self._prepare(job, name))
            with _bar(f"{label} {name} {number + 1}", total, done) as bar:
                while len(queue := progress.waiting(passed)):
                    started = time.monotonic()
                    if name == NATURAL:
                        self._look(job, queue[:size], size)
                    elif self.parts[name].in_pieces:
                        self._advance(job, queue, this)
                    else:
                        self._attack(job, queue[:size], size, this)
                    seconds = time.monotonic() - started
                    progress.seconds[self.names.index(name)] += seconds
                    if path is not None:
                        write(path, owner, progress)
                    bar.set_postfix_str(f"robust {progress.robust():.2%}", refresh=False)
                    bar.update(len(queue) - len(progress.waiting(passed)))
                    if stop_requested():
                        raise InterruptedRunError(
                            f"evaluate: stopped in {label}, {name}; what was found so far is saved,"
                            " the same command goes on from here"
                        )
            check_finite(int(progress.not_finite), len(examples.labels), f"{label}, {name}")
        return self._outcome(progress)

    def _outcome(self, progress: Progress) -> Outcome:
        return Outcome(
            names=self.names,
            broken_by=progress.broken_by,
            seconds=dict(zip(self.names, map(float, progress.seconds), strict=True)),
            excess=float(progress.excess),
            zero_gradients=float(progress.zero_gradients / len(progress.broken_by)),
            deterministic=bool(progress.deterministic),
            adversarial=progress.found,
        )

    def rounds(self, classes: int) -> list[tuple[str, int]]:
        """Lists the rounds of an example, as (name, number of the round)."""
        attacks = [
            (name, number)
            for name, part in self.parts.items()
            for number in range(part.rounds(classes))
        ]
        return [(NATURAL, 0), *attacks]

    def _none(self, weights: Any, examples: Examples) -> Progress:
        memory: Memory = {}
        for name in self.parts:
            memory |= self._empty_memory(name, weights, examples)
        found = None
        if self._keep:
            found = np.array(programs.unit_images({"images": jnp.asarray(examples.images)}))
        return Progress.none(len(examples.labels), len(self.names), memory, found)

    def _empty_memory(self, name: str, weights: Any, examples: Examples) -> Memory:
        """Returns the memory, for zero examples, of a part that works in pieces."""
        part = self.parts[name]
        if not part.in_pieces:
            return {}

        def started(weights: Any, batch: programs.Batch) -> dict[str, jax.Array]:
            state = part.start(programs.task(self._network, self._seed, 0, weights, batch, 0))
            return {"adversarial": state.adversarial, **state.memory}

        batch = {
            "images": examples.images[:1],
            "labels": examples.labels[:1],
            "index": np.zeros(1, np.int32),
        }
        shapes = jax.eval_shape(started, _one(weights), batch)
        return {field: np.zeros((0, *of.shape[1:]), of.dtype) for field, of in shapes.items()}

    def _prepare(self, job: _Job, name: str) -> tuple[str, ...]:
        """Makes room for a part's memory if no example is inside a round; returns the names."""
        if name == NATURAL:
            return ()
        empty = self._empty_memory(name, job.weights, job.examples)
        if len(job.progress.searching) == 0:
            job.progress.memory |= empty
        return tuple(empty)

    def _classes(self, weights: Any, examples: Examples) -> int:
        image = jax.ShapeDtypeStruct((1, *examples.images.shape[1:]), np.float32)
        return jax.eval_shape(self._network, _one(weights), image).shape[-1]

    def _packed_size(self, waiting: int) -> int:
        """Chooses a batch size that spreads the waiting examples evenly, out of few sizes.

        Every size is compiled. With sizes in quarters at most a quarter of a batch is padding.
        """
        everywhere = len(self._devices) * jax.process_count()
        part = -(-self._batch_size // _SIZES // everywhere) * everywhere
        batches = max(-(-waiting // self._batch_size), 1)
        parts = -(-waiting // batches // part)
        return min(max(parts, 1) * part, self._batch_size)

    def _spread(self, array: np.ndarray, size: int) -> np.ndarray:
        """Returns this process's part of a batch, by device; padding repeats the last example."""
        slots = np.arange(size).reshape(jax.process_count(), len(self._devices), -1)
        return array[np.minimum(slots[jax.process_index()], len(array) - 1)]

    def _batch(self, examples: Examples, places: Places, size: int) -> dict[str, np.ndarray]:
        index = self._spread(places, size)
        return {"images": examples.images[index], "labels": examples.labels[index], "index": index}

    def _numbers(self, number: int) -> np.ndarray:
        return np.full(len(self._devices), number, np.int32)

    def _look(self, job: _Job, places: Places, size: int) -> None:
        """Classifies one batch of the clean images."""
        progress, batch = job.progress, self._batch(job.examples, places, size)
        found = _flat(self._natural(job.weights, batch), len(places))
        progress.zero_gradients += found["zero_gradient"].sum()
        if places[0] == 0:  # one batch is enough to tell
            again = _flat(self._natural(job.weights, batch), len(places))
            one, other = (np.nan_to_num(each["logits"]) for each in (found, again))
            progress.deterministic &= np.abs(one - other).max() <= 1e-3 * np.abs(one).max()
        progress.record(places, 0, found)
        progress.passed[places] += 1

    def _attack(self, job: _Job, places: Places, size: int, this: _Round) -> None:
        """Runs a whole round of a part on one batch."""
        batch = self._batch(job.examples, places, size)
        found = self._programs[this.name](job.weights, batch, self._numbers(this.number))
        job.progress.record(places, self.names.index(this.name), _flat(found, len(places)))
        job.progress.passed[places] += 1

    def _advance(self, job: _Job, queue: Places, this: _Round) -> None:
        """Runs a piece of a round on one batch: examples inside a round, then new ones if room."""
        progress = job.progress
        held = len(progress.searching)
        size = self._packed_size(len(queue))
        fresh = np.setdiff1d(queue, progress.searching)[: max(size - held, 0)]
        places = np.concatenate([progress.searching, fresh])[:size]
        rest = slice(len(places), None)

        def padded(array: np.ndarray) -> np.ndarray:
            more = np.zeros((len(fresh), *array.shape[1:]), array.dtype)
            return self._spread(np.concatenate([array, more])[:size], size)

        found = self._programs[this.name](
            job.weights,
            self._batch(job.examples, places, size),
            self._numbers(this.number),
            {field: padded(progress.memory[field]) for field in this.fields},
            self._spread(np.arange(len(places)) >= held, size),
        )
        found = _flat(found, len(places))
        progress.record(places, self.names.index(this.name), found)
        going_on = ~(found["done"] | found["broken"])
        progress.passed[places[~going_on]] += 1
        for field, array in found["held"].items():
            kept = array[going_on], progress.memory[field][rest]
            progress.memory[field] = np.concatenate(kept)
        progress.searching = np.concatenate([places[going_on], progress.searching[rest]])


def _one(weights: Any) -> Any:
    """Returns the shapes of one copy of replicated weights."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), weights)


def _flat(found: Any, count: int) -> dict[str, Any]:
    """Returns the gathered outputs of a program without the padding."""
    return jax.tree.map(
        lambda array: np.asarray(array).reshape(-1, *array.shape[2:])[:count],
        parallel.to_host(found),
    )


def _bar(label: str, total: int, done: int) -> tqdm:
    return tqdm(total=total, initial=done, desc=label, unit="img", leave=False, disable=None)
