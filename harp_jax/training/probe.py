"""Gives a method the model, the training data and its gradients before the prune stage."""

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
    """A `methods.Probe` of the prune stage. It compiles at the first use."""

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
        precision: str | None = None,
    ):
        """Builds functions that compile at their first use.

        Args:
            model: The network.
            loss: The loss of the prune stage.
            attack: The configured attack, from which the loss makes its own.
            split: The training examples.
            batch_size: Examples in a batch, over all devices of all processes.
            seed: The seed of the run.
            devices: Local devices.
            precision: Precision of float32 products, see `parallel.parallel`.
        """
        self._model, self._loss, self._attack = model, loss, loss.attack(attack)
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self._devices, self._precision = devices, precision

    def logits_fn(self, variables: Variables) -> LogitsFn:
        """Returns the network in inference mode, with its masks applied."""
        return models.logits_fn(self._model, jax.jit(bake)(variables))

    def batches(self) -> Iterator[tuple[Images, Labels]]:
        """Yields this process's part of the first epoch's batches, in [0, 1], not augmented."""
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
        """Computes the gradient of the training loss with respect to the masked kernels.

        Args:
            variables: All collections.
            batches: Number of the first epoch's batches to average over, >= 1.

        Returns:
            A tree like `params`, the mean over all devices and processes.
        """
        gradient = parallel.parallel(self._gradient(), self._devices, precision=self._precision)
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
