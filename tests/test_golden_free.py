"""Two batches of Free-AT against the authors', by the production step itself."""

import jax
import networks
import numpy as np
import pytest
import torch_layout
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax import parallel
from harp_jax.attacks import PGD
from harp_jax.losses import Free
from harp_jax.models.convnet import ConvNet
from harp_jax.pruning.compression import add_compression_gradient
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import tree_of_leaves
from harp_jax.training import optim, state
from harp_jax.training.free_step import make_free_step

START = torch_layout.below(torch_layout.golden("net_losses"), "init")
SGD = torch_layout.golden("sgd_steps")
ARRAYS = torch_layout.golden("free_steps")
IMAGES = torch_layout.images(SGD["x"])
LABELS = SGD["y"].astype(np.int32)
BATCHES = (slice(0, 8), slice(8, 14))  # the second one is smaller, as the last one of an epoch
REPLAYS, EPSILON = 4, 0.0156
TARGET, MINIMUM, GAMMA = 0.1, 0.01, 0.1
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4
PER_EPOCH = 100
MEAN = np.array([[[[0.485, 0.456, 0.406]]]], np.float32)
STD = np.array([[[[0.229, 0.224, 0.225]]]], np.float32)


PASSES = []  # (input, logits) of every forward pass, in order


class Normalising(ConvNet):
    """The network behind the normalisation of its images."""

    def __call__(self, images, train=False):
        normalised = (images - MEAN) / STD
        logits = super().__call__(normalised, train=train)
        jax.debug.callback(lambda *arrays: PASSES.append(arrays), normalised, logits)
        return logits


def variables():
    tree = torch_layout.convnet(START)
    return {**tree, "minimum_rates": jax.tree.map(lambda _: np.float32(MINIMUM), tree["rates"])}


def optimizer():
    costs = tree_of_leaves(parameter_costs(variables()["params"]))
    compression = add_compression_gradient(costs, TARGET, MINIMUM, GAMMA, REPLAYS * PER_EPOCH)
    return optim.optimizer(lambda _: LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, compression)


@pytest.fixture(scope="module")
def states():
    """The state at the start and after each batch."""
    sgd, devices = optimizer(), parallel.local_devices(1)
    model = Normalising(num_classes=10, widths=(16, 32), hidden=64, axis_name=parallel.AXIS)
    stage = networks.stage(
        "harp",
        Free(REPLAYS),
        sgd,
        PER_EPOCH,
        PGD(EPSILON, EPSILON),
        augment=lambda images, keys: images,
        batch_size=8,
    )
    step = parallel.parallel(
        make_free_step(stage, model),
        devices,
    )
    found = [state.create(stage, variables(), (16, 16, 3))]
    for place in BATCHES:
        batch = {"images": IMAGES[place], "labels": LABELS[place]}
        batch["index"] = np.arange(len(batch["labels"]))
        batch = jax.tree.map(lambda x: x[None], batch)
        found.append(parallel.to_host(step(parallel.replicate(found[-1], devices), batch)))
    jax.effects_barrier()
    return found


def with_unbiased_variances(states):
    """Our last batch_stats as they were if they followed unbiased variances, as PyTorch's do.

    The batches differ in size, and so in the factor: each batch's part is scaled by its own.
    """
    stats = [flatten_dict(each.variables["batch_stats"]) for each in states]
    found = dict(stats[-1])
    for path in found:
        if path[-1] != "var":
            continue
        theirs = stats[0][path]
        for batch, before, after in zip(BATCHES, stats, stats[1:], strict=False):
            examples = batch.stop - batch.start
            averaged = torch_layout.CONVNET_AVERAGED[path[0]] * examples // 8
            added = after[path] - 0.9**REPLAYS * before[path]
            theirs = 0.9**REPLAYS * theirs + added * averaged / (averaged - 1)
        found[path] = theirs
    return {("batch_stats", *path): value for path, value in found.items()}


def test_all_that_changes_is_theirs(states):
    ours = flatten_dict(states[-1].variables) | with_unbiased_variances(states)
    start = flatten_dict(variables())
    theirs = flatten_dict(torch_layout.convnet(torch_layout.below(ARRAYS, "after")))
    assert {path[0] for path in theirs} == {"params", "batch_stats", "scores", "rates"}
    for path, value in ours.items():
        if path not in theirs:
            assert_array_equal(value, start[path], err_msg=str(path))
            continue
        value = torch_layout.stored_outputs(path, value)
        assert_allclose(value, theirs[path], rtol=1e-6, atol=1e-6, err_msg=str(path))


def test_every_pixel_of_the_last_input_is_theirs(states):
    """All the signs before it, that is: one that came out otherwise leaves 0.06 or more."""
    expected = torch_layout.images(ARRAYS["last_input"])
    assert_allclose(PASSES[-1][0], expected, rtol=0, atol=1e-6)


def test_a_smaller_batch_changes_the_first_perturbations_only(states):
    _, first, second = (each.perturbation for each in states)
    assert_array_equal(second[6:], first[6:])
    assert np.mean(second[:6] != first[:6]) > 0.1
    assert np.abs(second).max() <= np.float32(EPSILON)


def test_loss_and_accuracy_are_means_over_the_replays(states):
    """And there are no other passes than the replays."""
    assert [len(logits) for _, logits in PASSES] == REPLAYS * [8] + REPLAYS * [6]
    loss = correct = 0.0
    for number, (_, logits) in enumerate(PASSES):
        labels = LABELS[BATCHES[number // REPLAYS]]
        logarithms = np.asarray(jax.nn.log_softmax(logits))
        loss -= logarithms[np.arange(len(labels)), labels].sum() / REPLAYS
        correct += np.sum(np.argmax(logits, -1) == labels) / REPLAYS
    assert states[-1].sums["examples"] == 14
    assert states[-1].sums["correct"] == correct
    assert states[-1].sums["loss"] == pytest.approx(loss, rel=1e-6)
