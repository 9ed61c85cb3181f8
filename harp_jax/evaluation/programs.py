"""Programs on the devices: one function for each kind of batch of an attack over a split.

Each takes the network's weights and a batch: 'images' (uint8 or in [0, 1]), 'labels' and 'index',
the places in the split. Each returns 'broken', 'excess' (see `Outcome`), 'not_finite' (whether the
logits are not) and more for every example of the batch, the same on every device.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from harp_jax import parallel
from harp_jax.attacks import norms, objectives
from harp_jax.attacks.base import Part, State, Task, norm_of, zero_gradients
from harp_jax.data import to_unit
from harp_jax.evaluation.functions import Network
from harp_jax.types import Images

Batch = dict[str, jax.Array]


class Program(NamedTuple):
    """The settings of a part's programs.

    Attributes:
        network: (weights, images) -> logits.
        part: The part.
        place: Place of the part among all parts; the key of its noise depends on it.
        seed: Seed of the noise.
        keep: Whether adversarial images are returned.
    """

    network: Network
    part: Part
    place: int
    seed: int
    keep: bool


def unit_images(batch: Batch) -> Images:
    """Converts the images of a batch to the [0, 1] scale."""
    images = batch["images"]
    return to_unit(images) if images.dtype == jnp.uint8 else images


def task(network: Network, seed: int, place: int, weights: Any, batch: Batch, number: Any) -> Task:
    """Returns the batch as a task, with the keys that the part at `place` has in the attack."""
    key = jax.random.key(seed)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
    return Task(
        lambda images: network(weights, images),
        unit_images(batch),
        batch["labels"],
        norms.fold_keys(keys, place),
        number,
    )


class Start(NamedTuple):
    """The settings of the program that looks at the clean images.

    Attributes:
        network: (weights, images) -> logits.
        loss: The loss whose zero gradients are counted, see `attacks.base.zero_gradients`.
    """

    network: Network
    loss: str


def natural(start: Start, weights: Any, batch: Batch) -> Any:
    """Classifies the clean images; also returns 'logits' and the flags 'zero_gradient'."""
    images, labels = unit_images(batch), batch["labels"]
    logits_fn = functools.partial(start.network, weights)
    zero, logits = zero_gradients(start.loss, logits_fn, images, labels)
    found = {
        "logits": logits,
        "zero_gradient": zero,
        "broken": objectives.is_wrong(logits, labels),
        "not_finite": ~objectives.finite(logits),
        "excess": norms.excess(images, images, 0.0),
    }
    return parallel.gather(found)


def whole_round(program: Program, weights: Any, batch: Batch, number: jax.Array) -> Any:
    """Runs a round of a part; `number` is traced, so that one program serves all rounds."""
    work = task(program.network, program.seed, program.place, weights, batch, number)
    state = program.part.advance(work, program.part.start(work))
    return parallel.gather(_verdict(program, work, state))


def piece(
    program: Program,
    weights: Any,
    batch: Batch,
    number: jax.Array,
    held: dict[str, jax.Array],
    fresh: jax.Array,
) -> Any:
    """Calls `advance` once for examples at any point of their round, or `fresh` ones.

    `held` is the memory of the examples that are not fresh, with their best points as
    'adversarial'. The returned 'held' is the memory of all examples.
    """
    work = task(program.network, program.seed, program.place, weights, batch, number)
    memory = {name: array for name, array in held.items() if name != "adversarial"}
    under_way = State(held["adversarial"], jnp.zeros(len(fresh), bool), memory)
    state = choose(fresh, program.part.start(work), under_way)
    state = program.part.advance(work, state)
    found = _verdict(program, work, state)
    found |= {"done": state.done, "held": {"adversarial": state.adversarial, **state.memory}}
    return parallel.gather(found)


def choose(take: jax.Array, new: State, old: State) -> State:
    """Chooses per example one of two states."""
    return jax.tree.map(
        lambda a, b: jnp.where(take.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old
    )


def _verdict(program: Program, work: Task, state: State) -> dict[str, Any]:
    """Finds which examples are broken, by a separate forward pass, and checks their points."""
    part, adversarial = program.part, state.adversarial
    logits = work.logits_fn(adversarial)
    found = {
        "broken": objectives.is_wrong(logits, work.labels),
        "not_finite": ~objectives.finite(logits),
        "excess": norms.excess(adversarial, work.images, part.epsilon, norm_of(part)),
    }
    return {**found, "adversarial": adversarial} if program.keep else found
