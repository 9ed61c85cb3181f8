"""What the losses ask of the training step: their attacks and their passes."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import runs

from harp_jax import losses, models, parallel
from harp_jax.attacks import PGD
from harp_jax.config.sections import loss, validation_attack
from harp_jax.losses import LOSSES
from harp_jax.losses.nearby import START, NearbyAscent
from harp_jax.models.convnet import ConvNet
from harp_jax.training.step import TrainingForward

CONFIGURED = PGD(0.1, 0.025, steps=8)
KEYS = jax.random.split(jax.random.key(2), 16)
ASCENTS = ["pgd", "fgsm", "trades", "mart"]


@pytest.fixture(scope="module")
def setting():
    images = jax.random.uniform(jax.random.key(1), (16, 8, 8, 1))
    untrained = models.logits_fn(models.create("tiny", 10), networks.tiny())
    network = jax.jit(lambda images: 30 * untrained(images))  # untrained logits are all alike
    return network, images, network(images).argmax(-1)


def attacked(attack, setting, keys=KEYS):
    network, images, labels = setting
    return jax.jit(lambda images, labels: attack(network, images, labels, keys))(images, labels)


@pytest.fixture(scope="module")
def found(setting):
    """The images that each loss trains on."""
    return {name: attacked(LOSSES[name]().attack(CONFIGURED), setting) for name in ASCENTS}


@pytest.mark.parametrize("name", ASCENTS)
def test_attacks_stay_in_ball_and_box_and_raise_the_loss(name, setting, found):
    network, images, labels = setting
    assert np.abs(found[name] - images).max() <= CONFIGURED.epsilon + 1e-6
    assert found[name].min() >= 0
    assert found[name].max() <= 1
    natural = losses.natural(network(images), labels)
    assert losses.pgd(network(found[name]), labels) > natural + 0.1


def test_noise_of_an_example_comes_from_its_own_key(setting, found):
    network, images, labels = setting
    attack = LOSSES["trades"]().attack(CONFIGURED)
    half = attacked(attack, (network, images[8:], labels[8:]), KEYS[8:])
    assert np.mean(np.abs(found["trades"][8:] - half) > 1e-5) < 0.01


def test_trades_ascends_the_divergence_and_mart_the_cross_entropy(setting, found):
    network, images, labels = setting
    logits = {name: network(found[name]) for name in ASCENTS}
    clean = network(images)
    divergence = {name: losses.kl_divergence(clean, logits[name]).mean() for name in ASCENTS}
    assert max(divergence, key=divergence.__getitem__) == "trades"
    assert losses.pgd(logits["mart"], labels) > losses.pgd(logits["trades"], labels)


def test_trades_and_mart_start_beside_the_image(setting):
    flat = NearbyAscent(0.1, 0.025, 1, lambda clean, adversarial, labels: 0.0 * adversarial.sum())
    network, images, labels = setting
    images = jnp.full_like(images, 0.5)
    away = attacked(flat, (network, images, labels)) - images
    assert np.std(away) == pytest.approx(START, rel=0.1)
    assert abs(np.mean(away)) < START / 5


def test_fgsm_takes_one_step_of_a_length_beyond_the_radius():
    attack = LOSSES["fgsm"]().attack(CONFIGURED)
    assert attack == dataclasses.replace(CONFIGURED, steps=1, step_size=0.125)
    assert attack.random_start


def test_every_stage_may_have_its_loss_and_the_weight_is_the_configured_one():
    config = runs.digits(**{"loss": "trades", "finetune.loss": "mart", "trades.beta": 2.0})
    assert loss(config, "pretrain") == losses.Trades(beta=2.0)
    assert loss(config, "finetune") == losses.Mart(beta=5.0)
    assert validation_attack(config) == PGD(0.1, 0.025, steps=10)


@pytest.mark.slow
def test_the_third_pass_of_trades_costs_nothing():
    """It moves BatchNorm's statistics a third time, and computes no convolution again."""
    device_count = 2  # on one device the statistics pass through no collective
    network = ConvNet(10, widths=(8,), hidden=8, axis_name=parallel.AXIS)
    images = jnp.ones((device_count, 4, 8, 8, 1))
    variables = jax.jit(network.init)(jax.random.key(0), images[0])

    class TwoPasses(losses.Trades):
        def __call__(self, forward, clean, adversarial, labels):
            clean_logits, logits = forward(clean), forward(adversarial)
            return losses.trades(clean_logits, logits, labels, self.beta), logits

    def flops(training_loss):
        def value(params, images):
            forward = TrainingForward(network, params, variables["batch_stats"])
            labels = jnp.zeros(len(images), jnp.int32)
            found, _ = training_loss(forward, images, 0.5 * images, labels)
            return found, forward.batch_stats

        both = jax.value_and_grad(value, has_aux=True)
        devices = parallel.local_devices(device_count)
        program = parallel.parallel(both, devices)
        params = parallel.replicate(variables["params"], devices)
        return program.lower(params, images).compile().cost_analysis()["flops"]

    two, all_three = flops(TwoPasses()), flops(losses.Trades())
    print(f"{two:.0f} flops with two passes, {all_three:.0f} with three")
    assert two <= all_three < 1.01 * two
