"""FAB on linear classifiers, whose distances are known, and on digits, beside another FAB."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets

from harp_jax.attacks import FAB, norms
from harp_jax.attacks.base import Task

both_norms = pytest.mark.parametrize("norm", norms.NORMS)
DUAL = {"linf": 1, "l2": 2}
# Robust accuracy of the digits' network is about a half at these radii.
EPSILON = {"linf": 0.08, "l2": 0.4}
DIGITS = 300
KEY = jax.random.key(0)


def size(differences, norm):
    flat = np.asarray(differences, np.float64).reshape(len(differences), -1)
    return np.linalg.norm(flat, np.inf if norm == "linf" else 2, axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def closest(attack, network, images, labels, key):
    return attack.closest(network, images, labels, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def attacked(attack, network, images, labels, key):
    return attack(network, images, labels, key)


def linear(classes, seed=0):
    weights = jax.random.normal(jax.random.key(seed), (64, classes))
    return weights, jax.jit(lambda x: x.reshape(len(x), -1) @ weights)


def mlp(layers, images):
    hidden = images.reshape(len(images), -1)
    for weights, bias in layers[:-1]:
        hidden = jax.nn.relu(hidden @ weights + bias[None])
    return hidden @ layers[-1][0] + layers[-1][1][None]


@pytest.fixture(scope="module")
def digits():
    """A network of two layers, trained on scikit-learn's digits, and digits that it has not seen.

    Returns:
        Its layers, itself as a function, images and labels.
    """
    data = datasets.load_digits()
    images, labels = jnp.float32(data.images[..., None] / 16), jnp.array(data.target)
    keys = jax.random.split(jax.random.key(0))
    layers = [
        (jax.random.normal(key, shape) / 8, jnp.zeros(shape[1]))
        for key, shape in zip(keys, [(64, 64), (64, 10)], strict=True)
    ]
    optimiser = optax.adam(3e-3)

    def loss(layers):
        logits = mlp(layers, images[DIGITS:])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[DIGITS:]).mean()

    def step(_, state):
        updates, moments = optimiser.update(jax.grad(loss)(state[0]), state[1])
        return optax.apply_updates(state[0], updates), moments

    train = jax.jit(
        lambda layers: jax.lax.fori_loop(0, 150, step, (layers, optimiser.init(layers)))
    )
    layers = jax.block_until_ready(train(layers)[0])
    network = jax.jit(functools.partial(mlp, layers))
    assert (network(images[:DIGITS]).argmax(-1) == labels[:DIGITS]).mean() > 0.85
    return layers, network, images[:DIGITS], labels[:DIGITS]


@both_norms
def test_finds_the_distance_to_a_linear_boundary(norm):
    weights, network = linear(2)
    images = jax.random.uniform(jax.random.key(1), (16, 8, 8, 1), minval=0.3, maxval=0.7)
    logits = network(images)
    margins = np.abs(logits[:, 0] - logits[:, 1])
    exact = margins / np.linalg.norm(weights[:, 0] - weights[:, 1], DUAL[norm])
    assert exact.max() < 0.3  # so that the box plays no part
    # Past the plane by a ten thousandth: on the plane itself, rounding says which class it is.
    attack = FAB(0.3, norm, steps=20, eta=1.0001)
    found, _, distances = closest(attack, network, images, logits.argmax(-1), KEY)
    assert (network(found).argmax(-1) != logits.argmax(-1)).all()
    # Logits of float32 say which side a point is on to about 1e-6 of the [0, 1] scale only.
    np.testing.assert_allclose(distances, exact, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(distances, size(found - images, norm), rtol=1e-5)
    # With the published overshoot the last step of a tenth is too long by a twentieth of it.
    attack = dataclasses.replace(attack, eta=1.05)
    distances = closest(attack, network, images, logits.argmax(-1), KEY).distance
    assert (distances > exact).all()
    assert (distances < 1.01 * exact).all()


@both_norms
def test_with_two_classes_the_nearest_boundary_is_the_only_target(norm):
    _, network = linear(2)
    images = jax.random.uniform(jax.random.key(1), (16, 8, 8, 1))
    arguments = network, images, network(images).argmax(-1), KEY
    distances = [
        closest(FAB(0.3, norm, steps=5, targeted=targeted), *arguments).distance
        for targeted in (True, False)
    ]
    np.testing.assert_allclose(distances[1], distances[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("norm", "targeted"),
    [
        ("linf", True),
        pytest.param("l2", False, marks=pytest.mark.slow),
        pytest.param("linf", False, marks=pytest.mark.slow),
        pytest.param("l2", True, marks=pytest.mark.slow),
    ],
)
def test_finds_the_nearest_of_several_boundaries_within_the_box(norm, targeted):
    """Three classes; the oracle projects onto both boundaries with a box, by bisection in numpy."""
    weights, network = linear(3)
    images = jnp.round(jax.random.uniform(jax.random.key(1), (16, 8, 8, 1)), 0)
    images = jnp.where(jnp.arange(8)[None, :, None, None] < 4, images, 0.5)
    logits = np.asarray(network(images))
    labels = logits.argmax(-1)

    def reached(example, other, level):
        normal = np.asarray(weights[:, other] - weights[:, labels[example]], np.float64)
        step = level * (np.sign(normal) if norm == "linf" else normal)
        start = np.asarray(images[example], np.float64).ravel()
        change = np.clip(start + step, 0, 1) - start
        return logits[example, other] - logits[example, labels[example]] + normal @ change, change

    def distance(example, other):
        low, high = 0.0, 10.0
        if reached(example, other, high)[0] < 0:
            return np.inf
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if reached(example, other, middle)[0] < 0 else (low, middle)
        return size(reached(example, other, high)[1][None], norm)[0]

    exact = [
        min(distance(example, other) for other in range(3) if other != labels[example])
        for example in range(16)
    ]
    attack = FAB(0.3, norm, steps=40, eta=1.0001, targeted=targeted)
    distances = closest(attack, network, images, jnp.array(labels), KEY).distance
    np.testing.assert_allclose(distances, exact, rtol=5e-4)


def test_accepts_what_lies_within_epsilon_only(digits):
    norm = "linf"
    _, network, images, labels = digits
    attack = FAB(EPSILON[norm], norm, steps=5)
    found, _, distances = closest(attack, network, images, labels, KEY)
    accepted = attacked(attack, network, images, labels, KEY)
    wrong = np.asarray(network(images).argmax(-1) != labels)
    near = np.asarray(distances <= EPSILON[norm])
    assert near.any()
    assert not near.all()
    np.testing.assert_array_equal(accepted[~near], images[~near])
    np.testing.assert_allclose(accepted[near], found[near], atol=1e-6)
    np.testing.assert_array_equal(np.asarray(distances)[wrong], 0.0)
    np.testing.assert_array_equal(found[wrong], images[wrong])
    assert (network(accepted)[near].argmax(-1) != labels[near]).all()
    assert accepted.min() >= 0
    assert accepted.max() <= 1
    assert size(accepted - images, norm).max() <= EPSILON[norm] + 1e-6


@pytest.mark.slow
def test_restarts_and_targets_only_bring_it_closer(digits):
    _, network, images, labels = digits
    arguments = (network, images[:100], labels[:100], KEY)
    attack = FAB(EPSILON["l2"], "l2", steps=20, targets=2)
    distances = closest(attack, *arguments).distance
    for more in ({"restarts": 3}, {"targets": 9}):
        nearer = closest(dataclasses.replace(attack, **more), *arguments).distance
        assert (nearer <= distances).all()
        assert (nearer < distances - 1e-6).any()


def test_runs_on_what_is_left_break_what_a_call_breaks(digits):
    norm = "l2"
    _, network, images, labels = digits
    attack = FAB(EPSILON[norm], norm, steps=3, restarts=2, targets=3)
    assert attack.rounds(10) == 6
    assert attack.rounds(2) == 2
    assert dataclasses.replace(attack, targeted=False).rounds(10) == 2
    keys = jax.random.split(KEY, DIGITS)

    @jax.jit
    def run(*batch):
        task = Task(network, *batch)
        return attack.advance(task, attack.start(task))

    left = np.ones(DIGITS, bool)
    broken = []
    for number in range(attack.rounds(10)):
        found = run(images, labels, keys, jnp.int32(number))
        wrong = np.asarray(network(found.adversarial).argmax(-1) != labels)
        assert size(found.adversarial - images, norm).max() <= EPSILON[norm] + 1e-6
        left &= ~wrong
        broken.append(DIGITS - left.sum())
    assert broken[0] < broken[2] <= broken[-1]
    together = network(attacked(attack, network, images, labels, keys)).argmax(-1) != labels
    # A rounding apart: the two are different programs.
    assert np.sum(together == left) <= 1


def test_a_network_without_a_gradient_leaves_images_alone():
    network = lambda x: jnp.ones((len(x), 3)).at[:, 0].set(2.0) + 0 * x.sum()  # noqa: E731
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    found, _, distances = closest(FAB(0.3, steps=3), network, images, jnp.zeros(4, int), KEY)
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(distances, np.inf)


@pytest.mark.parametrize("targeted", [True, False])
@both_norms
def test_is_as_strong_as_another_implementation(norm, targeted, digits):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchattacks = pytest.importorskip("torchattacks")
    layers, network, images, labels = digits
    modules = [torch.nn.Flatten()]
    for weights, bias in layers:
        module = torch.nn.Linear(*weights.shape)
        module.weight.data = torch.tensor(np.asarray(weights).T.copy())
        module.bias.data = torch.tensor(np.asarray(bias))
        modules += [module, torch.nn.ReLU()]
    model = torch.nn.Sequential(*modules[:-1]).eval()
    theirs = torchattacks.FAB(
        model,
        norm={"linf": "Linf", "l2": "L2"}[norm],
        eps=EPSILON[norm],
        steps=20,
        multi_targeted=targeted,
    )
    # One channel of 8x8: NCHW and NHWC are the same sequence.
    batch = torch.tensor(np.asarray(images)).reshape(-1, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = theirs(batch, torch.tensor(np.asarray(labels), dtype=torch.long))
    theirs = np.asarray(network(jnp.array(theirs.numpy()).reshape(images.shape)).argmax(-1))
    attack = FAB(EPSILON[norm], norm, steps=20, targeted=targeted)
    ours = attacked(attack, network, images, labels, KEY)
    ours = np.asarray(network(ours).argmax(-1))
    robust = {"theirs": np.mean(theirs == labels), "ours": np.mean(ours == labels)}
    assert 0.2 < robust["theirs"] < 0.8
    assert robust["ours"] <= robust["theirs"] + 0.002


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", -0.1),
        ("norm", "l7"),
        ("steps", 0),
        ("targets", 0),
        ("restarts", 0),
        ("alpha_max", 1.5),
        ("eta", 0.9),
        ("beta", 1.0),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}: allowed are"):
        FAB(**{"epsilon": 0.1, field: value})
