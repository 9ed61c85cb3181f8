"""AutoAttack's versions, and what they become with few classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_battery import IMAGES, KEYS, attacked, perceptron

from harp_jax import attacks
from harp_jax.attacks import APGD, FAB, Square
from harp_jax.attacks.autoattack import PARTS
from harp_jax.attacks.base import Ensemble, Part

PUBLISHED = {
    "standard": {
        "apgd-ce": APGD(0.1, "l2", "ce", 100),
        "apgd-t": APGD(0.1, "l2", "dlr_targeted", 100, targets=9),
        "fab-t": FAB(0.1, "l2", 100, 9),
        "square": Square(0.1, "l2", 5000),
    },
    "plus": {
        "apgd-ce": APGD(0.1, "l2", "ce", 100, restarts=5),
        "apgd-dlr": APGD(0.1, "l2", "dlr", 100, restarts=5),
        "fab": FAB(0.1, "l2", 100, restarts=5, targeted=False),
        "square": Square(0.1, "l2", 5000),
        "apgd-t": APGD(0.1, "l2", "dlr_targeted", 100, targets=9),
        "fab-t": FAB(0.1, "l2", 100, 9),
    },
    "rand": {"apgd-ce": APGD(0.1, "l2", "ce", 100), "apgd-dlr": APGD(0.1, "l2", "dlr", 100)},
}


@pytest.mark.parametrize("version", PUBLISHED)
def test_versions_are_the_published_ones(version):
    parts = attacks.AutoAttack(0.1, "l2", version).parts()
    assert list(parts.items()) == list(PUBLISHED[version].items())
    assert all(isinstance(part, Part) for part in parts.values())


def test_a_version_of_ones_own_is_a_list_of_parts():
    attack = attacks.AutoAttack(0.1, version="square+fab+apgd-ce", steps=7, queries=9)
    assert isinstance(attack, Ensemble)
    assert list(attack.parts().items()) == [
        ("square", Square(0.1, "linf", 9)),
        ("fab", FAB(0.1, "linf", 7, targeted=False)),
        ("apgd-ce", APGD(0.1, "linf", "ce", 7)),
    ]


@pytest.mark.parametrize("version", ["", "best", "apgd-ce+", "square+square", "standard+square"])
def test_other_versions_are_refused(version):
    with pytest.raises(ValueError, match=r"allowed are standard, plus, rand, or different ones of"):
        attacks.AutoAttack(0.1, version=version)


@pytest.mark.parametrize(
    "classes",
    [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.slow)],
)
def test_every_part_lowers_the_accuracy_with_any_number_of_classes(classes):
    network = perceptron(classes)
    labels = network(IMAGES).argmax(-1)
    parts = attacks.AutoAttack(0.1, version="plus", steps=6, queries=30).parts()
    assert parts.keys() == set(PARTS)
    for name, part in parts.items():
        found = attacked(part, network, IMAGES, labels, KEYS)
        assert np.isfinite(found).all(), name
        assert (network(found).argmax(-1) != labels).mean() > 0.2, name
        assert part.rounds(classes) >= 1


@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_few_classes_do_not_weaken_the_targeted_losses(classes):
    """On a linear classifier all of APGD's losses find the same examples."""
    weights = jax.random.normal(jax.random.key(0), (64, classes))
    network = lambda x: (x - 0.5).reshape(len(x), -1) @ weights  # noqa: E731
    labels = network(IMAGES).argmax(-1)
    broken = {
        name: np.asarray(network(found).argmax(-1) != labels)
        for name in ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t")
        for part in [attacks.AutoAttack(0.02, version=name, steps=20)]
        for found in [attacked(part, network, IMAGES, labels, KEYS)]
    }
    assert 0 < broken["apgd-t"].sum() < len(labels)
    for name, found in broken.items():
        assert abs(int(found.sum()) - int(broken["apgd-t"].sum())) <= 1, name


def test_the_first_part_that_breaks_an_example_decides():
    network = perceptron(3)
    labels = network(IMAGES).argmax(-1)
    both = attacks.AutoAttack(0.05, version="square+apgd-ce", steps=6, queries=2)
    alone = attacks.AutoAttack(0.05, version="square", queries=2)
    found, first = (attacked(each, network, IMAGES, labels, KEYS) for each in (both, alone))
    wrong = np.asarray(network(first).argmax(-1) != labels)
    np.testing.assert_array_equal(found[wrong], first[wrong])
    left = jnp.asarray(~wrong)
    assert (network(found).argmax(-1) != labels)[left].any()
