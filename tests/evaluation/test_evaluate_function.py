"""Robust accuracy of any function from images to logits, in one call."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sign_attack import Sign

from harp_jax.attacks import CW, FGSM, PGD, AutoAttack
from harp_jax.data import to_unit
from harp_jax.evaluation import evaluate, packed

EPSILON, SIDE, COUNT = 0.05, 6, 48


def network(classes, seed=0):
    """A function with captured weights, as somebody without this package's modules has it."""
    first, second = jax.random.split(jax.random.key(seed))
    hidden = jax.random.normal(first, (SIDE * SIDE, 24)) / SIDE
    out = jax.random.normal(second, (24, classes))

    def logits_fn(images):
        flat = images.reshape(len(images), -1) - 0.5
        return jnp.maximum(flat @ hidden, 0.0) @ out

    return logits_fn


def examples(logits_fn, seed=0):
    """Images with the network's own classes as labels, two of them wrong."""
    images = np.random.default_rng(seed).integers(0, 256, (COUNT, SIDE, SIDE, 1), dtype=np.uint8)
    logits = np.asarray(logits_fn(to_unit(jnp.asarray(images))))
    labels = logits.argmax(-1)
    labels[[3, 9]] = logits[[3, 9]].argmin(-1)
    return images, labels


def test_an_attack_cannot_have_the_name_of_the_clean_images():
    images, labels = examples(network(3))
    with pytest.raises(ValueError, match=r"attacks\['natural'\]: allowed are other names"):
        evaluate(network(3), images, labels, {"natural": PGD(EPSILON, 0.01, 2)})


SHORT = AutoAttack(EPSILON, steps=8, targets=3, queries=60)
TWO_PARTS = dataclasses.replace(SHORT, version="apgd-ce+square")


@pytest.mark.parametrize(
    ("classes", "version"),
    [
        (3, "apgd-t+square"),
        pytest.param(2, "standard", marks=pytest.mark.slow),
        pytest.param(10, "standard", marks=pytest.mark.slow),
    ],
)
def test_autoattack_of_a_function_is_that_of_one_batch(classes, version):
    attack, logits_fn = dataclasses.replace(SHORT, version=version), network(classes)
    images, labels = examples(logits_fn)
    found = evaluate(logits_fn, images, labels, attack, batch_size=16, seed=5, keep_images=True)
    keys = jax.vmap(lambda place: jax.random.fold_in(jax.random.key(5), place))(jnp.arange(COUNT))
    clean = to_unit(jnp.asarray(images))
    points = jax.jit(lambda x, y: attack(logits_fn, x, y, keys))(clean, jnp.asarray(labels))
    robust = np.asarray(logits_fn(points).argmax(-1)) == labels
    np.testing.assert_array_equal(found.broken_by == "", robust)
    assert set(np.flatnonzero(found.broken_by == "natural")) == {3, 9}
    assert found.natural == (COUNT - 2) / COUNT
    assert found.robust == robust.mean()
    assert list(found.after) == ["natural", *attack.parts()]
    assert list(found.after.values()) == sorted(found.after.values(), reverse=True)
    assert 0 < found.robust < found.natural
    # The images that are given back are misclassified, in the ball and in the box.
    assert found.adversarial is not None
    wrong = np.asarray(logits_fn(jnp.asarray(found.adversarial)).argmax(-1)) != labels
    np.testing.assert_array_equal(wrong, ~robust)
    assert np.abs(found.adversarial - clean).max() <= EPSILON + 1e-6
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1
    few = [sentence for sentence in found.warnings if "too few for the loss" in sentence]
    assert len(few) == (classes < 4)


def test_uint8_and_float_images_and_compiled_functions_are_the_same():
    logits_fn = network(4)
    images, labels = examples(logits_fn)
    settings = {"attacks": PGD(EPSILON, 0.02, steps=5), "seed": 1}
    one = evaluate(logits_fn, images, labels, **settings)
    other = evaluate(jax.jit(logits_fn), images / np.float32(255), labels, **settings)
    np.testing.assert_array_equal(one.broken_by, other.broken_by)
    assert one.after.keys() == {"natural", "PGD"}


def test_several_attacks_in_a_row_by_name_and_one_of_ones_own():
    logits_fn = network(4)
    images, labels = examples(logits_fn)
    chosen = {"step": FGSM(EPSILON), "own": Sign(EPSILON), "auto": TWO_PARTS}
    found = evaluate(logits_fn, images, labels, chosen, batch_size=16)
    assert list(found.after)[:3] == ["natural", "step", "own"]
    assert list(found.after)[3:] == [f"auto/{part}" for part in TWO_PARTS.parts()]
    assert list(found.after.values()) == sorted(found.after.values(), reverse=True)
    assert not any("too few for the loss" in sentence for sentence in found.warnings)
    alone = evaluate(logits_fn, images, labels, FGSM(EPSILON), batch_size=16)
    assert alone.robust == found.after["step"]


@pytest.mark.parametrize(
    ("version", "parts"),
    [
        ("rand", ["apgd-ce", "apgd-dlr"]),
        ("apgd-t+square", ["apgd-t", "square"]),
        ("plus", ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]),
    ],
)
def test_versions_have_their_parts(version, parts):
    attack = dataclasses.replace(SHORT, version=version, steps=2, queries=10)
    assert list(attack.parts()) == parts
    if version == "rand":
        logits_fn = network(4)
        found = evaluate(logits_fn, *examples(logits_fn), attack)
        assert list(found.after) == ["natural", *parts]


@pytest.mark.slow
def test_a_killed_call_goes_on_and_ends_in_the_same_result(tmp_path, monkeypatch):
    logits_fn = network(4)
    images, labels = examples(logits_fn)
    whole = evaluate(logits_fn, images, labels, TWO_PARTS, batch_size=16)
    assert list(whole.after) == ["natural", "apgd-ce", "square"]
    path, written = tmp_path / "progress.npz", packed.write
    count = [0]

    def killed(*arguments):
        written(*arguments)
        count[0] += 1
        if count[0] in (2, 5):
            raise KeyboardInterrupt

    monkeypatch.setattr(packed, "write", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(logits_fn, images, labels, TWO_PARTS, batch_size=16, progress=path)
    found = evaluate(logits_fn, images, labels, TWO_PARTS, batch_size=16, progress=path)
    np.testing.assert_array_equal(found.broken_by, whole.broken_by)
    # What is there already is not of another function with the same program but other weights.
    other = network(4, seed=1)
    fresh = evaluate(other, images, labels, TWO_PARTS, batch_size=16)
    again = evaluate(other, images, labels, TWO_PARTS, batch_size=16, progress=path)
    np.testing.assert_array_equal(again.broken_by, fresh.broken_by)


@dataclasses.dataclass
class Changing:
    """An attack whose settings could change between two batches."""

    epsilon: float = 0.1

    def __call__(self, logits_fn, images, labels, key):
        return images


BAD = [
    ({"images": np.zeros((4, 6, 6), np.uint8)}, "images: of shape (4, 6, 6)"),
    ({"images": np.full((4, 6, 6, 1), 2.0)}, "images: from 2 to 2; allowed are"),
    ({"images": np.zeros((4, 6, 6, 1), np.int64)}, "images: of type int64"),
    ({"labels": np.zeros(3, np.int32)}, "labels: of shape (3,)"),
    ({"labels": np.full(4, 4)}, "labels: from 4 to 4; allowed are 0 to 3"),
    (
        {"attacks": "pgd", "epsilon": 0.1},
        "attacks='pgd': allowed are autoattack, standard, plus, rand",
    ),
    ({"attacks": "autoattack"}, "epsilon=None: allowed are numbers >= 0"),
    ({"attacks": "autoattack", "epsilon": 8.0}, "epsilon=8.0: in units of [0, 1]; did you mean 8"),
    ({"attacks": "autoattack", "epsilon": 300.0}, "of [0, 1]; allowed are numbers in [0, 1]"),
    ({"attacks": Changing()}, "allowed are frozen dataclasses"),
    ({"attacks": []}, "attacks: none"),
    ({"logits_fn": lambda x: x.sum()}, "logits_fn: gives float32[]"),
    ({"logits_fn": lambda x: x @ jnp.zeros((3, 2))}, "logits_fn: fails for images"),
    (
        {"logits_fn": lambda x: x.reshape(1, -1)[:, :4]},
        "logits_fn: gives float32[1,4] for images (3, 6, 6, 1)",
    ),
    ({"progress": "."}, "progress='.': allowed are files"),
    ({"batch_size": 0}, "batch_size=0"),
]


@pytest.mark.parametrize(("changed", "text"), BAD, ids=[text for _, text in BAD])
def test_bad_arguments_are_one_line(changed, text):
    images, labels = np.zeros((4, 6, 6, 1), np.uint8), np.zeros(4, np.int32)
    arguments = {"logits_fn": network(4), "images": images, "labels": labels, "attacks": FGSM(0.1)}
    with pytest.raises(ValueError, match="allowed") as caught:
        evaluate(**arguments | changed)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(value, tmp_path):
    logits_fn = network(3)
    images, labels = examples(logits_fn)
    bright = images[:, 0, 0, 0] > 127

    def broken(images):
        return jnp.where(images[:, :1, 0, 0] > 0.5, value, logits_fn(images))

    labels[bright] = 0  # the class that argmax finds in NaN
    said = f"^evaluate, natural: the logits of {bright.sum()} of {COUNT} images are not finite"
    for _ in range(2):  # the second call goes on from the file of the first
        with pytest.raises(ValueError, match=said):
            evaluate(broken, images, labels, FGSM(0.0), batch_size=16, progress=tmp_path / "a.npz")


def test_logits_that_an_attack_makes_not_finite_are_refused():
    logits_fn = network(3)
    images, labels = examples(logits_fn)
    clean = to_unit(jnp.asarray(images))

    def fragile(images):  # NaN anywhere but at the clean images
        same = jnp.abs(images[:, None] - clean[None]).max((2, 3, 4)).min(1) < 1e-6
        return jnp.where(same[:, None], logits_fn(images), jnp.nan)

    # Two images are misclassified before the attack.
    said = f"^evaluate, FGSM: the logits of {COUNT - 2} of {COUNT} images are not finite"
    with pytest.raises(ValueError, match=said):
        evaluate(fragile, images, labels, FGSM(EPSILON), batch_size=16)


@pytest.mark.parametrize(
    ("attack", "loss"),
    [
        (PGD(EPSILON, EPSILON / 2, steps=2), "ce"),
        (PGD(EPSILON, EPSILON / 2, steps=2, objective="dlr"), None),
        pytest.param(CW(EPSILON, EPSILON / 2, steps=2), None, marks=pytest.mark.slow),
        (dataclasses.replace(TWO_PARTS, version="apgd-ce"), "ce"),
        pytest.param(
            dataclasses.replace(TWO_PARTS, version="apgd-dlr"), None, marks=pytest.mark.slow
        ),
    ],
    ids=repr,
)
def test_large_logits_are_said_where_the_loss_does_not_see_them(attack, loss):
    logits_fn = network(3)
    images, labels = examples(logits_fn)
    assert not evaluate(logits_fn, images, labels, attack).warnings
    found = evaluate(lambda x: 1e5 * logits_fn(x), images, labels, attack)
    said = [text for text in found.warnings if f"the gradient of the loss {loss!r} is zero" in text]
    assert (len(said) == 1) == (loss is not None)
    assert len(found.warnings) == len(said)


def test_labels_beyond_32_bits_are_refused():
    logits_fn = network(3)
    images, labels = examples(logits_fn)
    with pytest.raises(ValueError, match="labels: from"):
        evaluate(logits_fn, images, labels.astype(np.int64) + 2**32, FGSM(EPSILON))
