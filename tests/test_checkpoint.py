"""Checkpoints: what is saved comes back, what is not finished does not count."""

import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
import runs

from harp_jax import checkpoint
from harp_jax.training import state as train_state


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return runs.finished(tmp_path_factory.getbasetemp())


class Network(nn.Module):
    """A dense layer and a BatchNorm."""

    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))


def make_state(seed: int) -> train_state.TrainState:
    variables = dict(Network().init(jax.random.key(seed), jnp.ones((1, 2))))
    stage = networks.stage("pretrain", "pgd", optax.sgd(0.1, momentum=0.9), 10, seed=seed)
    return train_state.create(stage, variables)


def save_last(checkpoints, state, metadata) -> None:
    checkpoints.save_last(int(state.step), state.variables, state.training(), metadata)


def restore_last(checkpoints, state):
    """The state and the metadata that come back into the structure of a state."""
    found = checkpoints.restore_last(state.variables, state.training())
    return found and (state.replace(variables=found[0], **found[1]), found[2])


def assert_same(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(left).dtype == np.asarray(right).dtype
        assert np.array_equal(left, right)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    saved = make_state(1).replace(
        step=np.array(7, np.int32), sums={"loss": np.array(0.1, np.float32)}
    )
    checkpoints = checkpoint.StageCheckpoints(tmp_path)
    save_last(checkpoints, saved, {"progress": {"best_epoch": None}})
    checkpoints.close()
    other = make_state(2).replace(sums={"loss": np.zeros((), np.float32)})
    again = checkpoint.StageCheckpoints(tmp_path)
    restored = restore_last(again, other)
    again.close()
    assert restored is not None
    assert restored[1] == {"progress": {"best_epoch": None}}
    assert_same(restored[0], saved)


def test_nothing_comes_back_from_an_empty_folder(tmp_path):
    checkpoints = checkpoint.StageCheckpoints(tmp_path)
    assert restore_last(checkpoints, make_state(1)) is None
    assert checkpoints.best() is None
    checkpoints.close()


@pytest.mark.parametrize(("keep", "kept"), [(1, ["15"]), (2, ["10", "15"])])
def test_the_newest_are_kept_and_the_best_stays(keep, kept, tmp_path):
    checkpoints = checkpoint.StageCheckpoints(tmp_path, keep)
    for step in (5, 10, 15):
        state = make_state(step).replace(step=np.int32(step))
        save_last(checkpoints, state, {"progress": {}})
        if step == 10:
            checkpoints.save_best(int(state.step), state.variables, {"epoch": 1})
    best = checkpoints.best()
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == kept
    assert best is not None
    assert best.pop("metadata") == {"epoch": 1}
    assert_same(best, make_state(10).variables)


def test_a_half_written_state_does_not_count(tmp_path):
    checkpoints = checkpoint.StageCheckpoints(tmp_path)
    saved = make_state(1).replace(step=np.int32(5))
    save_last(checkpoints, saved, {"progress": {}})
    checkpoints.close()
    # As a kill leaves it: the folder has its temporary name, and part of the files.
    unfinished = tmp_path / "last" / "10.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "last" / "5" / "variables", unfinished / "variables")
    again = checkpoint.StageCheckpoints(tmp_path)
    restored = restore_last(again, make_state(2))
    again.close()
    assert restored is not None
    assert restored[0].step == 5


def test_a_half_written_result_does_not_count(tmp_path):
    checkpoint.save_result(tmp_path / "prune", make_state(1).variables, {"epoch": 0})
    result = tmp_path / "prune" / "result"
    assert checkpoint.is_complete(tmp_path / "prune")
    result.rename(tmp_path / "prune" / "result.orbax-checkpoint-tmp")
    assert not checkpoint.is_complete(tmp_path / "prune")
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        checkpoint.load(tmp_path / "prune")


def test_a_result_is_numpy_without_the_model(tmp_path):
    variables = make_state(3).variables
    checkpoint.save_result(tmp_path, variables, {"epoch": 4, "notes": ["a", "b"]})
    found = checkpoint.load(tmp_path)
    assert found.pop("metadata") == {"epoch": 4, "notes": ["a", "b"]}
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(found))
    assert_same(found, variables)


def test_a_path_may_be_a_workdir_a_stage_or_a_checkpoint(finished):
    result = finished / "finetune" / "result"
    assert str(checkpoint.find(finished)) == str(result)
    assert str(checkpoint.find(finished / "finetune")) == str(result)
    assert str(checkpoint.find(result)) == str(result)
    names = {path.name for path in (finished / "prune" / "checkpoints" / "last").iterdir()}
    assert names == {str(2 * runs.STEPS_PER_EPOCH), str(3 * runs.STEPS_PER_EPOCH)}
    last = finished / "prune" / "checkpoints" / "last" / max(names)
    assert str(checkpoint.find(last)) == str(last)


def test_a_stage_that_is_not_complete_gives_its_best_then_its_last(finished, tmp_path):
    stage = tmp_path / "pretrain"
    shutil.copytree(finished / "pretrain", stage)
    shutil.rmtree(stage / "result")
    for name in ("best", "last"):
        folder = stage / "checkpoints" / name
        newest = max(int(step.name) for step in folder.iterdir())
        assert str(checkpoint.find(stage)) == str(folder / str(newest))
        shutil.rmtree(folder)


def test_a_damaged_checkpoint_is_one_line(finished, tmp_path):
    shutil.copytree(finished / "pretrain" / "result", tmp_path / "result")
    for file in (tmp_path / "result" / "variables").rglob("*"):
        if file.is_file() and file.name not in ("_METADATA", "commit_success.txt"):
            file.write_bytes(b"")
    with pytest.raises(checkpoint.DamagedCheckpointError, match="is damaged") as caught:
        checkpoint.load(tmp_path / "result")
    assert str(tmp_path / "result") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_and_shapes_are_compared():
    found = {"params": {"a": {"kernel": np.zeros((2, 3)), "scale": np.zeros(3)}}}
    fitting = {"params": {"a": {"kernel": np.ones((2, 3)), "scale": np.ones(3)}}, "rates": {}}
    checkpoint.check_fits(found, fitting, ("params",), "x")
    expected = {"params": {"a": {"kernel": np.zeros((2, 4)), "bias": np.zeros(3)}}}
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.check_fits(found, expected, ("params",), "runs/x")
    assert str(caught.value) == (
        "runs/x: is not of this network; missing: params/a/bias; extra: params/a/scale;"
        " other shape: params/a/kernel (2, 3) instead of (2, 4)"
    )
    half = {"params": {"a": {"kernel": np.zeros((2, 3), np.float16), "scale": np.zeros(3)}}}
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.check_fits(half, fitting, ("params",), "x")
    assert str(caught.value).endswith("; other type: params/a/kernel float16 instead of float64")
