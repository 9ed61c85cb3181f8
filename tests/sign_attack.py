"""An attack as a user writes one: no norm, nothing of `harp_jax.attacks`."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sign:
    """Steps along the sign of the gradient of the label's logit, with momentum."""

    epsilon: float
    steps: int = 5
    uses_gradients: bool = True

    def __call__(self, logits_fn, images, labels, key):
        del key

        def loss(x):
            return -jnp.take_along_axis(jax.nn.log_softmax(logits_fn(x)), labels[:, None], 1).sum()

        x, momentum = images, jnp.zeros_like(images)
        for _ in range(self.steps):
            gradient = jax.grad(loss)(x)
            momentum = momentum + gradient / (jnp.abs(gradient).mean() + 1e-12)
            moved = x + 2 * self.epsilon / self.steps * jnp.sign(momentum)
            x = jnp.clip(jnp.clip(moved, images - self.epsilon, images + self.epsilon), 0, 1)
        return x
