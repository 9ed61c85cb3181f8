"""What runs on the devices: one function for each kind of batch of an AutoAttack over a split.

Each takes plain variables and a batch ('images' uint8, 'labels' and 'index', the places in the
split) and gives, for every example of the batch and on every device, 'broken' and 'excess' (see
`Outcome`), and more.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from harp_jax import models, parallel
from harp_jax.attacks import AutoAttack, norms, objectives
from harp_jax.attacks.autoattack import broken
from harp_jax.attacks.square import SquareState, choose
from harp_jax.data import to_unit
from harp_jax.types import Images, Labels, LogitsFn, Variables

QUERIES = 250  # of the Square Attack, from one packing to the next

Batch = dict[str, jax.Array]


class _Examples(NamedTuple):
    """A device's part of a batch, as attacks take it."""

    logits_fn: LogitsFn
    images: Images
    labels: Labels
    keys: Key[Array, " batch"]


def _examples(
    model: nn.Module, seed: int, variables: Variables, batch: Batch, place: int
) -> _Examples:
    """The batch, with the keys that the sub-attack at `place` has in an `AutoAttack` call."""
    key = jax.random.key(seed)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
    return _Examples(
        models.logits_fn(model, variables),
        to_unit(batch["images"]),
        batch["labels"],
        norms.fold_keys(keys, place),
    )


def natural(model: nn.Module, seed: int, variables: Variables, batch: Batch) -> Any:
    """The clean images; also 'logits' and whether the cross-entropy has a 'zero_gradient'."""
    logits_fn, images, labels, _ = _examples(model, seed, variables, batch, 0)

    def loss(images: Images) -> tuple[jax.Array, jax.Array]:
        logits = logits_fn(images)
        return objectives.cross_entropy(logits, labels).sum(), logits

    gradient, logits = jax.grad(loss, has_aux=True)(images)
    found = {
        "logits": logits,
        "zero_gradient": norms.length(gradient, "linf") == 0,
        "broken": logits.argmax(-1) != labels,
        "excess": norms.excess(images, images, 0.0),
    }
    return parallel.gather(found)


def run(
    model: nn.Module,
    attack: AutoAttack,
    seed: int,
    name: str,
    variables: Variables,
    batch: Batch,
    number: jax.Array,
) -> Any:
    """A run of the sub-attack `name`; `number` is traced, one program serves all runs."""
    place = list(attack.attacks()).index(name)
    examples = _examples(model, seed, variables, batch, place)
    one: Any = attack.attacks()[name]
    adversarial = one.run(*examples, number).adversarial
    return parallel.gather(_verdict(attack, examples, adversarial))


def search(
    model: nn.Module,
    attack: AutoAttack,
    seed: int,
    variables: Variables,
    batch: Batch,
    adversarial: jax.Array,
    margin: jax.Array,
    query: jax.Array,
    fresh: jax.Array,
) -> Any:
    """`QUERIES` queries of Square for examples at any place of their search, or `fresh` ones.

    `adversarial`, `margin` and `query` are those of `SquareState`; so is what is given back beside.
    """
    square: Any = attack.attacks()["square"]
    examples = _examples(model, seed, variables, batch, len(attack.attacks()) - 1)
    examples = examples._replace(keys=norms.fold_keys(examples.keys, 0))  # of the first restart
    state = SquareState(adversarial, margin, jnp.zeros(len(fresh), bool), query)
    state = choose(fresh, square.start(*examples), state)
    state = square.advance(state, *examples, QUERIES)
    return parallel.gather({**state._asdict(), **_verdict(attack, examples, state.adversarial)})


def _verdict(attack: AutoAttack, examples: _Examples, adversarial: Images) -> dict[str, jax.Array]:
    """Whether examples are broken, by a forward pass of its own, and whether all is in order."""
    logits_fn, images, labels, _ = examples
    return {
        "broken": broken(logits_fn, adversarial, labels),
        "excess": norms.excess(adversarial, images, attack.epsilon, attack.norm),
    }
