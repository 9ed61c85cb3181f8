"""What runs on the devices: one function for each kind of batch of an attack over a split.

Each takes the network's weights and a batch ('images' uint8 or in [0, 1], 'labels' and 'index', the
places in the split) and gives, for every example of the batch and on every device, 'broken' and
'excess' (see `Outcome`), and more.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from harp_jax import parallel
from harp_jax.attacks import norms, objectives
from harp_jax.attacks.base import Part, State, Task, misclassified, norm_of
from harp_jax.data import to_unit
from harp_jax.evaluation.functions import Network
from harp_jax.types import Images

Batch = dict[str, jax.Array]


class Program(NamedTuple):
    """What a part's programs are made of.

    Attributes:
        network: (weights, images) -> logits.
        part: The part.
        place: Its place among all parts, which its noise is keyed by.
        seed: Of the noise.
        keep: Whether adversarial images are given back.
    """

    network: Network
    part: Part
    place: int
    seed: int
    keep: bool


def unit_images(batch: Batch) -> Images:
    """The images of a batch on the [0, 1] scale."""
    images = batch["images"]
    return to_unit(images) if images.dtype == jnp.uint8 else images


def task(network: Network, seed: int, place: int, weights: Any, batch: Batch, number: Any) -> Task:
    """The batch, with the keys that the part at `place` has in a call of the whole attack."""
    key = jax.random.key(seed)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
    return Task(
        lambda images: network(weights, images),
        unit_images(batch),
        batch["labels"],
        norms.fold_keys(keys, place),
        number,
    )


def natural(network: Network, weights: Any, batch: Batch) -> Any:
    """The clean images; also 'logits' and whether the cross-entropy has a 'zero_gradient'."""
    images, labels = unit_images(batch), batch["labels"]

    def loss(images: Images) -> tuple[jax.Array, jax.Array]:
        logits = network(weights, images)
        return objectives.cross_entropy(logits, labels).sum(), logits

    gradient, logits = jax.grad(loss, has_aux=True)(images)
    found = {
        "logits": logits,
        "zero_gradient": norms.length(gradient, "linf") == 0,
        "broken": logits.argmax(-1) != labels,
        "excess": norms.excess(images, images, 0.0),
    }
    return parallel.gather(found)


def whole_round(program: Program, weights: Any, batch: Batch, number: jax.Array) -> Any:
    """A round of a part; `number` is traced, one program serves all rounds."""
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
    """One `advance` of a part for examples at any place of their round, or `fresh` ones.

    `held` is the memory of the others, with their best points as 'adversarial'; what is given back
    as 'held' is that of all.
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
    """Per example, the one state or the other."""
    return jax.tree.map(
        lambda a, b: jnp.where(take.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old
    )


def _verdict(program: Program, work: Task, state: State) -> dict[str, Any]:
    """Whether examples are broken, by a forward pass of its own, and whether all is in order."""
    part, adversarial = program.part, state.adversarial
    found = {
        "broken": misclassified(work.logits_fn, adversarial, work.labels),
        "excess": norms.excess(adversarial, work.images, part.epsilon, norm_of(part)),
    }
    return {**found, "adversarial": adversarial} if program.keep else found
