"""The model, the training data and its gradients, for a method to look at before it starts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from harp_jax import models, parallel
from harp_jax.attacks import PGD
from harp_jax.data import Split, to_unit, train_batches
from harp_jax.losses import Loss
from harp_jax.pruning.layers import bake
from harp_jax.training.step import loss_of
from harp_jax.types import Device, Images, Labels, LogitsFn, Variables


class Probe:
    """Looks at what the prune stage will train on; see `methods.Probe`. Compiles when asked."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        attack: PGD,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        devices: Sequence[Device],
    ):
        """Builds what compiles later.

        Args:
            model: The network.
            loss: Of the prune stage.
            attack: As configured; the loss makes its own of it.
            split: The training examples.
            batch_size: Examples in a batch, over all devices of all processes.
            seed: Of the run.
            devices: Local devices.
        """
        self._model, self._loss, self._attack = model, loss, loss.attack(attack)
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self._devices = devices

    def logits_fn(self, variables: Variables) -> LogitsFn:
        """The network in inference mode, with its masks applied."""
        return models.logits_fn(self._model, jax.jit(bake)(variables))

    def batches(self) -> Iterator[tuple[Images, Labels]]:
        """This process's part of the batches of the first epoch, in [0, 1], not augmented."""
        for batch in self._raw():
            images = batch["images"].reshape(-1, *batch["images"].shape[2:])
            yield to_unit(jnp.asarray(images)), jnp.asarray(batch["labels"].ravel())

    def _raw(self) -> Iterator[dict[str, Any]]:
        return train_batches(
            self._split,
            seed=self._seed,
            epoch=0,
            batch_size=self._batch_size,
            devices=len(self._devices),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def gradient(self, variables: Variables, batches: int = 1) -> Any:
        """The gradient of the training loss at the kernels that the masks let through.

        Args:
            variables: All collections.
            batches: Over how many of the first epoch's batches to take the mean, >= 1.

        Returns:
            A tree like `params`, the mean over all devices and processes.
        """
        gradient = parallel.parallel(self._gradient(), self._devices)
        replicated = parallel.replicate(variables, self._devices)
        parts = [
            parallel.to_host(gradient(replicated, batch))
            for batch, _ in zip(self._raw(), range(batches), strict=False)
        ]
        return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts)

    def _gradient(self) -> Callable[[Variables, dict[str, jax.Array]], Any]:
        def gradient(variables: Variables, batch: dict[str, jax.Array]) -> Any:
            plain, statistics = bake(variables), variables.get("batch_stats")
            images, labels = to_unit(batch["images"]), batch["labels"]
            adversarial = images
            if self._attack is not None:
                key = jax.random.key(self._seed)
                keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(batch["index"])
                logits_fn = models.logits_fn(self._model, plain)
                adversarial = self._attack(logits_fn, images, labels, keys)
            loss_fn = loss_of(self._model, self._loss, statistics, images, adversarial, labels)
            return parallel.mean(jax.grad(loss_fn, has_aux=True)(plain["params"])[0])

        return gradient
