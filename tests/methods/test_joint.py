"""Joint learning: weights train in the prune stage, each as its mask says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from numpy.testing import assert_array_equal

from harp_jax import checkpoint, parallel
from harp_jax.config.sections import method
from harp_jax.interrupt import Interrupt, InterruptedRunError
from harp_jax.methods import Joint, Live
from harp_jax.methods.harp import Harp
from harp_jax.models import create
from harp_jax.pruning import schemes
from harp_jax.pruning.layers import bake, leaves_by_path
from harp_jax.run import experiment, recipe
from harp_jax.training import state as train_state

FIELDS = {
    "stages": ("prune",),
    "loss": "natural",
    "attack.steps": 3,
    "prune.epochs": 2,
    "prune.joint": True,
}


def test_it_trains_what_the_method_trains_and_the_weights():
    joint = Joint(Live(Harp()))
    assert joint.trains == Harp.trains | {"weights"}
    assert joint.stream == Harp.stream
    assert joint.learns_masks


def test_kept_weights_follow_the_loss_and_masked_ones_only_decay():
    config = runs.digits(**FIELDS, **{"prune.learning_rate": 0.5, "batch_size": 16})
    model = create("tiny", 10, axis_name=parallel.AXIS)
    scheme = schemes.scheme(model, (8, 8, 1), "weight")
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    rates = dict.fromkeys(scheme.architecture.pruned, 0.3)
    variables = scheme.make_prunable(variables, rates, 0.02)
    stage = recipe.make_stage(config, "prune", scheme, 10, variables)
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (1, 16, 8, 8, 1), np.uint8),
        "labels": (np.arange(16, dtype=np.int32) % 10)[None],
        "index": np.arange(16)[None],
    }
    device = jax.local_devices()[:1]
    step = parallel.parallel(recipe.make_step(stage, model), device)
    first = parallel.replicate(train_state.create(stage, variables), device)
    after = parallel.to_host(step(first, batch)).variables
    ones = {**variables, "params": jax.tree.map(jnp.ones_like, variables["params"])}
    masks = leaves_by_path(jax.jit(bake)(ones)["params"])
    before, moved = leaves_by_path(variables["params"]), leaves_by_path(after["params"])
    rate = float(stage.learning_rate(0))
    decay = np.float32(1.0 - rate * config.optimizer.weight_decay)
    for path in scheme.architecture.pruned:
        mask, old, new = (np.asarray(tree[path]) for tree in (masks, before, moved))
        np.testing.assert_allclose(new[mask == 0], decay * old[mask == 0], rtol=1e-6)
        followed = np.abs(new - decay * old)[mask == 1] > 1e-6
        assert followed.mean() > 0.5
    for name in ("scores", "rates"):
        some = leaves_by_path(after[name]).items()
        assert any((leaf != leaves_by_path(variables[name])[path]).any() for path, leaf in some)


def test_it_wraps_the_method_only_if_asked():
    assert isinstance(method(runs.digits(**FIELDS)), Joint)
    assert isinstance(method(runs.digits()), Harp)


@pytest.mark.slow
def test_a_joint_run_goes_on_with_the_same_bits(tmp_path, tmp_path_factory, monkeypatch):
    dense = runs.finished(tmp_path_factory.getbasetemp()) / "pretrain"
    config = runs.digits(**FIELDS, **{"prune.source": str(dense)})
    experiment.run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "requested", lambda self, step: step == 27)
        with pytest.raises(InterruptedRunError):
            experiment.run(config, tmp_path / "run")
    experiment.run(config, tmp_path / "run")
    assert set(runs.differences(tmp_path / "whole", tmp_path / "run", ("prune",)).values()) == {0.0}
    assert runs.metrics(tmp_path / "whole", "prune") == runs.metrics(tmp_path / "run", "prune")
    before, after = (
        leaves_by_path(checkpoint.load(each)["params"]) for each in (dense, tmp_path / "run")
    )
    assert all((before[path] != leaf).any() for path, leaf in after.items())
    plain = runs.digits(**{**FIELDS, "prune.joint": False, "prune.source": str(dense)})
    experiment.run(plain, tmp_path / "plain")
    kept = leaves_by_path(checkpoint.load(tmp_path / "plain")["params"])
    kernels = [path for path in kept if path[-1] == "kernel"]
    for path in kernels:
        assert_array_equal(kept[path], before[path])
