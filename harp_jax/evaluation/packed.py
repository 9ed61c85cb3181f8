"""AutoAttack over a whole split: on packed batches, with progress that outlives a kill.

Only examples that are still robust are attacked. They are packed into full batches anew before
every run of a sub-attack (a target of APGD-T and FAB-T) and every few hundred queries of Square,
so a batch costs what its robust examples cost. What is found for an example depends on the example
alone: neither the packing, the batch size nor the devices change it, up to float rounding.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jaxtyping import Bool, Int
from tqdm import tqdm

from harp_jax import models, parallel
from harp_jax.attacks import AutoAttack
from harp_jax.data import Split
from harp_jax.evaluation import programs
from harp_jax.evaluation.progress import ROBUST, Places, Progress, fingerprint, read, write
from harp_jax.interrupt import InterruptedRunError
from harp_jax.types import Device, Variables

_SIZES = 4  # batches are whole multiples of this part of the largest one


class Outcome(NamedTuple):
    """What was found for every example of a split.

    Attributes:
        names: 'natural', then the sub-attacks in their order.
        broken_by: For each example the place in `names` of what misclassified it, or `ROBUST`.
        seconds: What each of the names took, compilation included, over all resumed parts.
        excess: By how much a perturbation left its ball or the box, at most; 0 but for rounding,
            nan if one is not a number.
        zero_gradients: Share of the clean images where the cross-entropy has a zero gradient.
        deterministic: Whether two forward passes of the same images agree.
    """

    names: tuple[str, ...]
    broken_by: Int[np.ndarray, " examples"]
    seconds: dict[str, float]
    excess: float
    zero_gradients: float
    deterministic: bool

    def robust(self, name: str) -> Bool[np.ndarray, " examples"]:
        """Which examples are classified rightly after everything up to `name`."""
        return (self.broken_by == ROBUST) | (self.broken_by > self.names.index(name))


class PackedAutoAttack:
    """Measures networks of one architecture under one AutoAttack; each program compiles once.

    Attributes:
        attack: The attack.
        names: As in `Outcome`.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: AutoAttack,
        *,
        seed: int,
        batch_size: int,
        devices: Sequence[Device],
    ):
        """Builds what compiles later, at its first use.

        Args:
            model: The network.
            attack: The attack.
            seed: Seed of the noise, which is keyed by the example's place in the split.
            batch_size: Examples at once over all devices of all processes, at most.
            devices: Local devices.
        """
        self.attack, self.names = attack, ("natural", *attack.attacks())
        self._seed, self._batch_size, self._devices = seed, batch_size, devices
        self._model = model

        def everywhere(program: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
            return parallel.parallel(functools.partial(program, model, *settings), devices)

        self._natural = everywhere(programs.natural, seed)
        self._runs = {
            name: everywhere(programs.run, attack, seed, name) for name in self.names[1:-1]
        }
        self._search = everywhere(programs.search, attack, seed)

    def __call__(
        self,
        variables: Any,
        split: Split,
        label: str,
        path: epath.Path,
        stop_requested: Callable[[], bool],
    ) -> Outcome:
        """Attacks every example of a split; goes on where a stopped or killed call was.

        Args:
            variables: Replicated plain variables, see `Measurement.bake`.
            split: The examples.
            label: In front of the progress bar.
            path: File of the progress, written after every batch. It says of what network, attack
                and data it is; one of others is overwritten.
            stop_requested: Asked between batches.

        Returns:
            What was found.

        Raises:
            InterruptedRunError: if a stop was requested.
        """
        network = parallel.to_host(variables)
        owner = fingerprint(network, self.attack, self._seed, split)
        progress = read(path, owner) or Progress.none(split, len(self.names))
        rounds = list(self.rounds(_classes(self._model, network, split)))
        for passed, (name, number) in enumerate([*rounds, (self.names[-1], 0)]):
            # Of those that came to this round, so that a resumed one has batches of the same size.
            done = int((progress.passed > passed).sum())
            total = done + len(progress.waiting(passed))
            size = self._packed_size(total)
            with _bar(f"{label} {name} {number + 1}", total, done) as bar:
                while len(queue := progress.waiting(passed)):
                    started = time.monotonic()
                    if passed == len(rounds):
                        self._advance(variables, split, progress, queue)
                    else:
                        self._attack(variables, split, progress, queue[:size], size, name, number)
                    seconds = time.monotonic() - started
                    progress.seconds[self.names.index(name)] += seconds
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
        )

    def rounds(self, classes: int) -> Iterator[tuple[str, int]]:
        """What an example goes through before Square, as (name, number of the run)."""
        yield "natural", 0
        attacks: dict[str, Any] = self.attack.attacks()
        for name, attack in list(attacks.items())[:-1]:
            yield from ((name, number) for number in range(attack.runs(classes)))

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

    def _batch(self, split: Split, places: Places, size: int) -> dict[str, np.ndarray]:
        index = self._spread(places, size)
        return {"images": split.images[index], "labels": split.labels[index], "index": index}

    def _attack(
        self,
        variables: Any,
        split: Split,
        progress: Progress,
        places: Places,
        size: int,
        name: str,
        number: int,
    ) -> None:
        """One batch of one run of a sub-attack, or of the clean images."""
        batch = self._batch(split, places, size)
        if name == "natural":
            found = _flat(self._natural(variables, batch), len(places))
            progress.zero_gradients += found["zero_gradient"].sum()
            if places[0] == 0:  # one batch is enough to tell
                again = _flat(self._natural(variables, batch), len(places))
                difference = np.abs(again["logits"] - found["logits"]).max()
                progress.deterministic &= difference <= 1e-3 * np.abs(found["logits"]).max()
        else:
            numbers = np.full(len(self._devices), number, np.int32)
            found = _flat(self._runs[name](variables, batch, numbers), len(places))
        progress.record(places, self.names.index(name), found)
        progress.passed[places] += 1

    def _advance(self, variables: Any, split: Split, progress: Progress, queue: Places) -> None:
        """Some queries for one batch: searches under way, then new ones where there is room."""
        held = len(progress.searching)
        size = self._packed_size(len(queue))
        fresh = np.setdiff1d(queue, progress.searching)[: max(size - held, 0)]
        places = np.concatenate([progress.searching, fresh])[:size]
        rest = slice(len(places), None)

        def padded(array: np.ndarray) -> np.ndarray:
            more = np.zeros((len(fresh), *array.shape[1:]), array.dtype)
            return self._spread(np.concatenate([array, more])[:size], size)

        found = self._search(
            variables,
            self._batch(split, places, size),
            padded(progress.adversarial),
            padded(progress.margin),
            padded(progress.query),
            self._spread(np.arange(len(places)) >= held, size),
        )
        found = _flat(found, len(places))
        progress.record(places, len(self.names) - 1, found)
        going_on = ~found["fooled"] & (found["query"] < self.attack.queries)
        progress.passed[places[~going_on]] += 1
        for field in ("adversarial", "margin", "query"):
            kept = found[field][going_on], getattr(progress, field)[rest]
            setattr(progress, field, np.concatenate(kept))
        progress.searching = np.concatenate([places[going_on], progress.searching[rest]])


def _flat(found: Any, count: int) -> dict[str, np.ndarray]:
    """What a program gathered, without the padding."""
    return {
        name: np.asarray(array).reshape(-1, *array.shape[2:])[:count]
        for name, array in parallel.to_host(found).items()
    }


def _classes(model: nn.Module, variables: Variables, split: Split) -> int:
    image = jax.ShapeDtypeStruct((1, *split.images.shape[1:]), np.float32)
    return jax.eval_shape(models.logits_fn(model, variables), image).shape[-1]


def _bar(label: str, total: int, done: int) -> tqdm:
    return tqdm(total=total, initial=done, desc=label, unit="img", leave=False, disable=None)
