"""HARP in a training loop of one's own: any linen module, any optimiser, no configuration.

    python docs/examples/own_loop.py

trains a small network on scikit-learn's digits, prunes it to 10 % under PGD, and says what is left.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from harp_jax import attacks, losses, pruning

TARGET, MINIMUM, BATCH = 0.1, 0.01, 128


class Net(nn.Module):
    """A convolution and two dense layers, as anybody would write them."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(16, (3, 3))(x)).reshape(len(x), -1)
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


def make_step(tx, params_of):
    """A step that trains the collections of `trainable` under attack."""
    attack = attacks.PGD(epsilon=0.1, step_size=0.025, steps=5)

    @jax.jit
    def step(variables, trainable, opt_state, images, labels, key):
        # The masks are computed once; gradients go back through them, straight through.
        seen = lambda trainable: params_of({**variables, **trainable})  # noqa: E731
        params, pull_back = jax.vjp(seen, trainable)
        logits = lambda params, x: Net().apply({"params": params}, x)  # noqa: E731
        adversarial = attack(lambda x: logits(params, x), images, labels, key)
        loss, gradient = jax.value_and_grad(lambda p: losses.pgd(logits(p, adversarial), labels))(
            params
        )
        updates, opt_state = tx.update(pull_back(gradient)[0], opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state, loss

    return step


def train(step, tx, variables, trainable, images, labels, epochs):
    """The collections after some epochs."""
    opt_state, per_epoch = tx.init(trainable), len(images) // BATCH
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.key(epoch), len(images))
        for number in range(per_epoch):
            place = order[number * BATCH : (number + 1) * BATCH]
            key = jax.random.key(epoch * per_epoch + number)
            trainable, opt_state, loss = step(
                variables, trainable, opt_state, images[place], labels[place], key
            )
        print(f"epoch {epoch}: loss {loss:.3f}")
    return trainable


def run(dense_epochs=10, prune_epochs=15):
    """The pruned variables and the test accuracy."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.float32(images.reshape(-1, 8, 8, 1) / 16), jnp.int32(labels)
    split = (images[:1400], labels[:1400])
    sgd = optax.sgd(0.1, momentum=0.9)
    params = jax.jit(Net().init)(jax.random.key(0), images[:1])["params"]
    dense = train(
        make_step(sgd, lambda v: v["params"]), sgd, {}, {"params": params}, *split, dense_epochs
    )

    scheme = pruning.scheme(Net(), (8, 8, 1), "weight")
    rates = dict.fromkeys(scheme.architecture.pruned, 0.3)  # to start from
    variables = scheme.make_prunable(dense, rates, MINIMUM)
    compression = pruning.add_compression_gradient(scheme.cost, TARGET, MINIMUM, 0.1, 1400 // BATCH)
    tx = optax.partition(
        {"scores": sgd, "rates": optax.chain(compression, sgd)}, lambda tree: {k: k for k in tree}
    )
    step = make_step(tx, lambda v: pruning.bake(v)["params"])
    masks = {name: variables[name] for name in ("scores", "rates")}
    variables |= train(step, tx, variables, masks, *split, prune_epochs)

    # Onto the budget, if the compression loss has not brought the rates there.
    logits = pruning.leaves_by_path(variables["rates"])
    logits, _ = pruning.shift_to_budget(logits, MINIMUM, scheme.cost, TARGET)
    variables["rates"] = pruning.tree_of_leaves(logits)
    predictions = Net().apply(pruning.bake(variables), images[1400:]).argmax(-1)
    return variables, float((predictions == labels[1400:]).mean())


if __name__ == "__main__":
    pruned, accuracy = run()
    for row in pruning.layer_sparsity(pruned):
        print(f"{row.layer}: {row.kept} of {row.parameters} weights")
    print(f"accuracy on 397 images: {accuracy:.1%}")
