"""AutoAttack over a split: what packing, batches, devices and kills leave unchanged."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from harp_jax import models, parallel
from harp_jax.attacks import AutoAttack, square
from harp_jax.data import Split, to_unit
from harp_jax.evaluation import PackedAttack, packed
from harp_jax.evaluation.progress import ROBUST, fingerprint
from harp_jax.interrupt import InterruptedRunError

SEED = 3
ATTACK = AutoAttack(0.03, steps=6, targets=2, queries=30)


class Perceptron(nn.Module):
    """A network whose many programs compile quickly."""

    @nn.compact
    def __call__(self, images, train):
        hidden = nn.relu(nn.Dense(32)(images.reshape(len(images), -1) - 0.5))
        return nn.Dense(10)(hidden)


MODEL = Perceptron()


def apply(variables, images):
    return MODEL.apply(variables, images, train=False)


@functools.cache
def network(seed=0):
    return MODEL.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)), train=False)


@pytest.fixture(autouse=True, scope="module")
def short_searches():
    """Several packings of the Square Attack, though its searches are short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(square, "QUERIES", 12)
        yield


@pytest.fixture(scope="module")
def split():
    images = np.random.default_rng(0).integers(0, 256, (45, 8, 8, 1), dtype=np.uint8)
    logits_fn = jax.jit(models.logits_fn(MODEL, network()))
    labels = np.array(logits_fn(to_unit(jnp.asarray(images))).argmax(-1), np.int32)
    labels[[4, 30]] = (labels[[4, 30]] + 1) % 10
    return Split(images, labels)


@functools.cache
def packer(batch_size, devices):
    parts = jax.local_devices()[:devices]
    return PackedAttack(
        apply,
        ATTACK.parts(),
        identity=repr(ATTACK),
        seed=SEED,
        batch_size=batch_size,
        devices=parts,
    )


def attacked(split, path, batch_size=16, devices=1, stop=lambda: False, variables=None):
    parts = jax.local_devices()[:devices]
    plain = parallel.replicate(network() if variables is None else variables, parts)
    return packer(batch_size, devices)(plain, split, "test", path, stop)


@pytest.fixture(scope="module")
def whole(split, tmp_path_factory):
    """The file of one uninterrupted call, and what it found."""
    path = epath.Path(tmp_path_factory.mktemp("whole")) / "progress.npz"
    return path, attacked(split, path)


def contents(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != "seconds"}


@pytest.mark.slow
def test_finds_what_the_attack_finds_on_one_batch(split, whole):
    logits_fn = models.logits_fn(MODEL, network())
    images, labels = to_unit(jnp.asarray(split.images)), jnp.asarray(split.labels)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(SEED)))(np.arange(45))
    found = jax.jit(functools.partial(ATTACK, logits_fn))(images, labels, keys)
    robust = np.asarray(logits_fn(found).argmax(-1) == labels)
    _, outcome = whole
    np.testing.assert_array_equal(outcome.robust("square"), robust)
    np.testing.assert_array_equal(np.flatnonzero(outcome.broken_by == 0), [4, 30])
    counts = [outcome.robust(name).sum() for name in outcome.names]
    assert counts == sorted(counts, reverse=True)
    assert 0 < counts[-1] < counts[0] == 43


def test_all_is_in_order(whole):
    _, outcome = whole
    assert 0 <= outcome.excess < 1e-6
    assert outcome.deterministic
    assert outcome.zero_gradients == 0.0
    assert outcome.names == ("natural", "apgd-ce", "apgd-t", "fab-t", "square")
    assert all(seconds > 0 for seconds in outcome.seconds.values())


def test_batch_size_and_devices_change_nothing(split, whole, tmp_path):
    found = attacked(split, epath.Path(tmp_path) / "progress.npz", batch_size=64, devices=4)
    np.testing.assert_array_equal(found.broken_by, whole[1].broken_by)


def test_a_stopped_attack_goes_on_to_the_same_file(split, whole, tmp_path):
    path = epath.Path(tmp_path) / "progress.npz"
    batches = [0]

    def every_second_time():
        batches[0] += 1
        return batches[0] % 2 == 0

    for _ in range(6):
        with pytest.raises(InterruptedRunError, match="goes on from here"):
            attacked(split, path, stop=every_second_time)
    outcome = attacked(split, path)
    assert contents(path).keys() == contents(whole[0]).keys()
    for name, array in contents(path).items():
        np.testing.assert_array_equal(array, contents(whole[0])[name], err_msg=name)
    np.testing.assert_array_equal(outcome.broken_by, whole[1].broken_by)


def test_a_finished_attack_is_not_made_again(split, whole):
    def never():
        raise AssertionError("a batch was attacked")

    path, outcome = whole
    again = attacked(split, path, stop=never)
    np.testing.assert_array_equal(again.broken_by, outcome.broken_by)
    assert again.seconds == outcome.seconds


def test_progress_of_another_network_is_not_used(split, whole, tmp_path):
    path = epath.Path(tmp_path) / "progress.npz"
    path.write_bytes(whole[0].read_bytes())
    other = attacked(split, path, variables=network(1))
    assert not np.array_equal(other.broken_by, whole[1].broken_by)
    path.write_bytes(b"not an archive")
    np.testing.assert_array_equal(attacked(split, path).broken_by, whole[1].broken_by)


@pytest.mark.parametrize("changed", ["a pixel", "a label", "the seed", "the attack", "a weight"])
def test_progress_belongs_to_what_it_was_made_with(changed, split):
    images, labels, weights = split.images.copy(), split.labels.copy(), {"a": np.zeros(3)}
    before = fingerprint("attack", 0, split, weights)
    assert before == fingerprint("attack", 0, Split(images, labels), weights)
    images[-1, -1, -1, -1] ^= changed == "a pixel"
    labels[-1] += changed == "a label"
    weights["a"] = weights["a"] + float(changed == "a weight")
    attack, seed = changed if changed == "the attack" else "attack", int(changed == "the seed")
    assert before != fingerprint(attack, seed, Split(images, labels), weights)


@pytest.mark.parametrize(
    ("waiting", "size"),
    [(0, 128), (1, 128), (128, 128), (129, 256), (512, 512), (513, 384), (600, 384), (5000, 512)],
)
def test_batches_are_packed_evenly(waiting, size):
    assert packer(512, 1)._packed_size(waiting) == size


def test_every_name_counts_what_came_before():
    outcome = packed.Outcome(
        ("natural", "a", "b"), np.array([0, 1, 2, ROBUST, ROBUST]), {}, 0.0, 0.0, True
    )
    assert [outcome.robust(name).sum() for name in outcome.names] == [4, 3, 2]
