"""An attack of several parts over a whole split: packed batches, progress that outlives a kill.

Only examples that are still robust are attacked. They are packed into full batches anew before
every round of a part (a target of APGD-T and FAB-T) and every few hundred queries of Square, so a
batch costs what its robust examples cost. What is found for an example depends on the example
alone: neither the packing, the batch size nor the devices change it, up to float rounding.
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
from harp_jax.attacks.base import Part
from harp_jax.evaluation import programs
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
    """What was found for every example of a split.

    Attributes:
        names: 'natural', then the parts in their order.
        broken_by: For each example the place in `names` of what misclassified it, or `ROBUST`.
        seconds: What each of the names took, compilation included, over all resumed runs.
        excess: By how much a perturbation left its ball or the box, at most; 0 but for rounding,
            nan if one is not a number.
        zero_gradients: Share of the clean images where the cross-entropy has a zero gradient.
        deterministic: Whether two forward passes of the same images agree.
        adversarial: The misclassified images that were found, the clean ones where there is none;
            float32 [N, H, W, C] in [0, 1]. None unless they are kept.
    """

    names: tuple[str, ...]
    broken_by: Int[np.ndarray, " examples"]
    seconds: dict[str, float]
    excess: float
    zero_gradients: float
    deterministic: bool
    adversarial: np.ndarray | None = None

    def robust(self, name: str) -> Bool[np.ndarray, " examples"]:
        """Which examples are classified rightly after everything up to `name`."""
        return (self.broken_by == ROBUST) | (self.broken_by > self.names.index(name))

    def after(self) -> dict[str, float]:
        """The share of the examples that is classified rightly after each of the names."""
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
        names: As in `Outcome`.
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
    ):
        """Builds what compiles later, at its first use.

        Args:
            network: (weights, images in [0, 1]) -> logits.
            parts: The parts of the attack in their order, by name.
            identity: Says which attack and network it is, so that progress of others is not used;
                the weights are compared anyway.
            seed: Seed of the noise, which is keyed by the example's place in the split.
            batch_size: Examples at once over all devices of all processes, at most; a multiple of
                the number of devices.
            devices: Local devices.
            keep: Keep the adversarial images.
        """
        self.parts, self.names = dict(parts), (NATURAL, *parts)
        self._network, self._identity, self._keep = network, identity, keep
        self._seed, self._batch_size, self._devices = seed, batch_size, devices

        def everywhere(program: Callable[..., Any], settings: Any) -> Callable[..., Any]:
            return parallel.parallel(functools.partial(program, settings), devices)

        self._natural = everywhere(programs.natural, network)
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
        """Attacks every example of a split; goes on where a stopped or killed call was.

        Args:
            weights: The network's, replicated (see `parallel.replicate`); a nested dict.
            examples: The examples.
            label: In front of the progress bar.
            path: File of the progress, written after every batch; None: there is none. It says of
                what network, attack and data it is; one of others is overwritten.
            stop_requested: Asked between batches.

        Returns:
            What was found.

        Raises:
            InterruptedRunError: If a stop was requested.
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
        """What an example goes through, as (name, number of the round)."""
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
        """What a part that works in pieces remembers, of no example."""
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
        """Makes room for a part's memory if no example is in the middle of a round; its names."""
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
        """Batch size that spreads the waiting examples evenly, of few different ones.

        A size is compiled for each; with quarters at most a quarter of a batch is padding.
        """
        everywhere = len(self._devices) * jax.process_count()
        part = -(-self._batch_size // _SIZES // everywhere) * everywhere
        batches = max(-(-waiting // self._batch_size), 1)
        parts = -(-waiting // batches // part)
        return min(max(parts, 1) * part, self._batch_size)

    def _spread(self, array: np.ndarray, size: int) -> np.ndarray:
        """This process's part of a batch, by device; padding repeats the last example."""
        slots = np.arange(size).reshape(jax.process_count(), len(self._devices), -1)
        return array[np.minimum(slots[jax.process_index()], len(array) - 1)]

    def _batch(self, examples: Examples, places: Places, size: int) -> dict[str, np.ndarray]:
        index = self._spread(places, size)
        return {"images": examples.images[index], "labels": examples.labels[index], "index": index}

    def _numbers(self, number: int) -> np.ndarray:
        return np.full(len(self._devices), number, np.int32)

    def _look(self, job: _Job, places: Places, size: int) -> None:
        """One batch of the clean images."""
        progress, batch = job.progress, self._batch(job.examples, places, size)
        found = _flat(self._natural(job.weights, batch), len(places))
        progress.zero_gradients += found["zero_gradient"].sum()
        if places[0] == 0:  # one batch is enough to tell
            again = _flat(self._natural(job.weights, batch), len(places))
            difference = np.abs(again["logits"] - found["logits"]).max()
            progress.deterministic &= difference <= 1e-3 * np.abs(found["logits"]).max()
        progress.record(places, 0, found)
        progress.passed[places] += 1

    def _attack(self, job: _Job, places: Places, size: int, this: _Round) -> None:
        """One batch of a whole round of a part."""
        batch = self._batch(job.examples, places, size)
        found = self._programs[this.name](job.weights, batch, self._numbers(this.number))
        job.progress.record(places, self.names.index(this.name), _flat(found, len(places)))
        job.progress.passed[places] += 1

    def _advance(self, job: _Job, queue: Places, this: _Round) -> None:
        """A piece of a round for one batch: examples under way, then new ones if there is room."""
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
    """Shapes of one copy of replicated weights."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), weights)


def _flat(found: Any, count: int) -> dict[str, Any]:
    """What a program gathered, without the padding."""
    return jax.tree.map(
        lambda array: np.asarray(array).reshape(-1, *array.shape[2:])[:count],
        parallel.to_host(found),
    )


def _bar(label: str, total: int, done: int) -> tqdm:
    return tqdm(total=total, initial=done, desc=label, unit="img", leave=False, disable=None)
