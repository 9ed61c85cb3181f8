"""What GPUs and TPUs would run: the programs, lowered for them without such a device."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import runs
from lowered import calls, lowered, products

from harp_jax import models, parallel
from harp_jax.attacks import PGD, AutoAttack
from harp_jax.config import default
from harp_jax.evaluation import PackedAttack, programs
from harp_jax.evaluation.accuracy import make_measurement
from harp_jax.run import experiment, recipe
from harp_jax.training import optim
from harp_jax.training import state as train_state

PLATFORMS = ("cuda", "tpu")
ATTACK = PGD(0.1, 0.025, steps=3)
BATCH = {
    "images": jnp.zeros((4, 8, 8, 1), jnp.uint8),
    "labels": jnp.zeros(4, jnp.int32),
    "index": jnp.arange(4, dtype=jnp.int32),
    "valid": jnp.ones(4, bool),
}
MODEL = models.create("tiny", 10, axis_name=parallel.AXIS)


@pytest.fixture
def mapped(monkeypatch):
    """The functions that `parallel.parallel` maps, in order; they are not compiled."""
    functions = []

    def record(function, **_):
        functions.append(function)
        return function

    monkeypatch.setattr(jax, "pmap", record)
    return functions


def step_and_state(loss="pgd", attack=ATTACK):
    variables = networks.tiny("weight")
    optimizer = optim.optimizer(lambda _: 0.1, 0.9, 5e-4)
    stage = networks.stage("harp", loss, optimizer, 20, attack, batch_size=4)
    state = train_state.create(stage, variables, (8, 8, 1))
    return recipe.make_step(stage, MODEL), state


def check_products(text, precision):
    found = products(text)
    assert {name for name, _ in found} == {"convolution", "dot_general"}
    assert {each for _, each in found} == {(precision.upper(),) * 2}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("precision", ["default", "highest"])
def test_a_training_step_has_the_precision_asked_for(mapped, platform, precision):
    """The strict precision of the tests, JAX' default here, is overruled."""
    step, state = step_and_state()
    parallel.parallel(step, jax.devices(), (0,), precision)
    check_products(lowered(mapped[0], platform, state, BATCH), precision)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_training_step_stays_on_the_device(platform):
    """Attack and masks are loops of the program, and the state's memory is used again."""
    step, state = step_and_state()
    text = lowered(step, platform, state, BATCH, donate=(0,))
    assert calls(text) == set()
    longer, _ = step_and_state(attack=PGD(0.1, 0.025, steps=9))
    more = lowered(longer, platform, state, BATCH, donate=(0,))
    assert text.count("stablehlo.convolution") == more.count("stablehlo.convolution") > 0
    donated = text.count("tf.aliasing_output") + text.count("jax.buffer_donor")
    assert donated == len(jax.tree.leaves(state))


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("attack", [None, ATTACK], ids=["clean", "pgd"])
def test_accuracy_has_the_precision_asked_for(mapped, platform, attack):
    measurement = make_measurement(
        MODEL, seed=0, batch_size=4, devices=jax.devices(), precision="highest"
    )
    measurement.under(attack)
    text = lowered(mapped[-1], platform, networks.tiny(None), BATCH)
    check_products(text, "highest")
    assert calls(text) == set()


@pytest.mark.parametrize("platform", PLATFORMS)
def test_autoattack_has_the_precision_asked_for(mapped, platform):
    attack, variables = AutoAttack(0.1, steps=2, targets=2, queries=4), networks.tiny(None)

    def network(variables, images):
        return models.logits_fn(MODEL, variables)(images)

    PackedAttack(
        network,
        attack.parts(),
        identity="",
        seed=0,
        batch_size=4,
        devices=jax.devices(),
        precision="highest",
    )
    natural, *parts = mapped
    texts = [lowered(natural, platform, variables, BATCH)]
    number = jnp.zeros((), jnp.int32)
    for program, part in zip(parts, attack.parts().values(), strict=True):
        more = ()
        if part.in_pieces:
            state = jax.eval_shape(
                lambda part=part: part.start(programs.task(network, 0, 0, variables, BATCH, number))
            )
            held = {"adversarial": state.adversarial, **state.memory}
            more = held, jax.ShapeDtypeStruct((4,), bool)
        texts.append(lowered(program, platform, variables, BATCH, number, *more))
    assert len(texts) == 5
    for text in texts:
        check_products(text, "highest")
        assert calls(text) == set()


def test_cpus_are_asked_for_nothing():
    """Their products are float32, and the highest precision would change their bits."""
    assert [parallel.precision_on(jax.devices(), name) for name in parallel.PRECISIONS] == [
        None
    ] * 3
    with pytest.raises(ValueError, match="matmul_precision='half': allowed are default, high"):
        parallel.precision_on(jax.devices(), "half")


def test_evaluations_are_in_float32_by_default():
    assert default().evaluate.matmul_precision == "highest"


@pytest.mark.slow
def test_every_program_of_a_run_has_the_configured_precision(monkeypatch, tmp_path):
    found, pmap = [], jax.pmap

    def record(function, **options):
        real, known = pmap(function, **options), []

        def call(*arguments):
            if not known:
                known.append(True)
                shapes = [
                    jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x)[1:], x.dtype), tree)
                    for tree in arguments
                ]
                found.append((function, shapes))
            return real(*arguments)

        return call

    monkeypatch.setattr(jax, "pmap", record)
    monkeypatch.setattr(parallel, "precision_on", lambda _, precision: precision)
    config = runs.digits(**runs.FIELDS)
    config.stages = ("pretrain", "prune", "finetune", "evaluate")
    config.matmul_precision = "default"
    config.evaluate.run = ("pgd10", "autoattack")
    config.evaluate.attacks.autoattack.update(steps=2, targets=2, queries=4)
    experiment.run(config, tmp_path)
    names = [{p for _, p in products(lowered(f, "cuda", *args))} for f, args in found]
    training, evaluation = [("DEFAULT",) * 2], [("HIGHEST",) * 2]
    assert all(list(each) in ([], training, evaluation) for each in names)
    # Steps of three stages and two measures of validation; then clean images, PGD, zero gradients,
    # and the five programs of AutoAttack.
    print([len(each) for each in names])
    assert names.count(set(training)) >= 5
    assert names.count(set(evaluation)) >= 7
    rows = runs.results(tmp_path)["rows"]
    assert {row["matmul_precision"] for row in rows} == {"highest"}
