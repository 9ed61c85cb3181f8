"""A network with NaN is no result of a stage, and no device's NaN is lost."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from harp_jax import models, parallel
from harp_jax.attacks.base import WholeAttack
from harp_jax.data import load, to_unit
from harp_jax.evaluation.accuracy import make_measurement
from harp_jax.run import experiment
from harp_jax.training import loop
from harp_jax.training.state import not_finite


def test_what_is_not_finite_is_named():
    tree = {"params": {"a": np.ones(3), "b": np.array(2)}, "step": np.int32(1)}
    assert not_finite(tree) is None
    tree["params"]["b"] = np.array([1.0, -np.inf])
    assert not_finite(tree) == "params/b is not finite"
    tree["step"] = np.float32("nan")
    assert not_finite(tree) == "params/b and 1 more arrays are not finite"


def test_it_is_no_result(tmp_path):
    run = types.SimpleNamespace(workdir=tmp_path)
    outcome = loop.Outcome({"params": {"w": np.array([1.0, np.nan])}}, epoch=0, reached=True)
    with pytest.raises(loop.TrainingDivergedError, match=r"^pretrain: params/w is not finite;"):
        experiment._Experiment._hand_on(run, "pretrain", outcome)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", range(4))
def test_the_maximum_over_devices_keeps_nan(place):
    largest = parallel.parallel(parallel.maximum, jax.devices())
    values = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(largest(values), np.full(4, 3.0))
    values[place] = np.nan
    assert np.isnan(largest(values)).all()


class Nowhere:
    """Points of NaN for the images of label 3, and for the others the images."""

    epsilon = 0.1

    def __call__(self, logits_fn, images, labels, key):
        return jnp.where((labels == 3)[:, None, None, None], jnp.nan, images)


def test_points_and_logits_that_are_not_finite_are_counted():
    """Networks give NaN for NaN; their images count once each, those of padding not at all."""
    split = load("digits", seed=0, validation_examples=10).test.take(slice(90))
    devices = parallel.local_devices(2)
    measurement = make_measurement(
        models.create("tiny", 10), seed=0, batch_size=64, devices=devices
    )
    plain = parallel.replicate(networks.tiny(), devices)
    whole = measurement.under(None)(plain, split, "natural")
    assert whole.not_finite == whole.excess == 0
    found = measurement.under(WholeAttack(Nowhere()))(plain, split, "attacked")
    assert np.isnan(found.excess)
    assert found.not_finite == (split.labels == 3).sum() > 0
    wanted = np.array(whole.correct)
    wanted[3] = 0
    np.testing.assert_array_equal(found.correct, wanted)


@pytest.mark.parametrize(("loss", "share"), [("ce", 1.0), ("margin", 0.0), ("dlr", 0.0)])
def test_zero_gradients_of_a_split(loss, share):
    split = load("digits", seed=0, validation_examples=10).test.take(slice(90))
    devices = parallel.local_devices(2)
    measurement = make_measurement(
        models.create("tiny", 10), seed=0, batch_size=64, devices=devices
    )
    variables = networks.tiny()
    logits = models.logits_fn(models.create("tiny", 10), variables)(
        to_unit(jnp.asarray(split.images))
    )
    last = variables["params"]["dense2"]
    large = {name: 1e6 * value for name, value in last.items()}
    variables = {**variables, "params": {**variables["params"], "dense2": large}}
    right = dataclasses.replace(split, labels=np.asarray(logits.argmax(-1), np.int32))
    measure = measurement.zero_gradients(loss)
    found = measure(parallel.replicate(variables, devices), right, "gradients")
    assert found == pytest.approx(share, abs=0.05)
