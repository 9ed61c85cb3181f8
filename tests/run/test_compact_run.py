"""Runs on accelerators: what is measured computes without the units that do nothing.

The platform is an argument here, so that CPUs compute what accelerators would.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import small_networks

from harp_jax import checkpoint, models, parallel
from harp_jax.config.sections import attacks_to_run, load_data
from harp_jax.evaluation.accuracy import make_measurement
from harp_jax.export import CompactNetwork
from harp_jax.pruning.channels import Architecture
from harp_jax.pruning.costs import trace_layers
from harp_jax.pruning.layers import bake, kernel_paths, make_prunable
from harp_jax.run.examples import write_examples
from harp_jax.run.networks import Networks
from harp_jax.run.rows import Measurer, Subject
from harp_jax.workdir.files import EXAMPLES

CONFIG = runs.digits(**{"evaluate.run": ("fgsm",), "data.test_examples": 100})
MODEL = small_networks.broad(10)


@pytest.fixture(scope="module")
def dataset():
    return load_data(CONFIG)


def pruned(model, rate, seed=0):
    """A network of random weights, a share of them kept; equal masks for all seeds."""
    first, other = (
        jax.jit(model.init)(jax.random.key(each), jnp.zeros((1, 8, 8, 1))) for each in (0, seed)
    )
    rates = dict.fromkeys(kernel_paths(first["params"]), rate)
    return jax.device_get({**make_prunable(first, rates, 0.0, "weight"), **other})


@pytest.fixture(scope="module")
def of_a_run(dataset):
    """Builds the forms of a run's network."""

    def build(model=MODEL, platform="gpu", sparse=True):
        measure = functools.partial(
            make_measurement, seed=0, batch_size=128, devices=parallel.local_devices()[:1]
        )
        return Networks(
            model,
            sparse=sparse,
            platform=platform,
            images=dataset.test,
            grouped=False,
            measure=measure,
        )

    return build


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_measured_network_is_the_compact_one(platform, of_a_run, dataset, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("harp_jax"), "propagate", True)
    networks, variables = of_a_run(platform=platform), pruned(MODEL, 0.1)
    with caplog.at_level(logging.INFO, "harp_jax"):
        form, smaller = networks.measured("prune", variables)
    assert isinstance(form, CompactNetwork)
    assert "prune: computes without units that do nothing" in caplog.text
    plain = jax.jit(bake)(variables)
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(each["params"])) for each in (smaller, plain)
    ]
    assert sizes[0] < 0.9 * sizes[1]
    images = jnp.float32(dataset.test.images) / 255
    both = ((form, smaller), (MODEL, plain))
    logits, expected = (jax.jit(models.logits_fn(*each))(images) for each in both)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * float(np.abs(expected).max()))
    assert len(np.unique(np.argmax(expected, -1))) > 1
    assert networks.of("finetune", variables) is MODEL  # training keeps the whole network


def test_equal_masks_share_their_programs(of_a_run):
    networks = of_a_run()
    forms = [networks.measured("x", pruned(MODEL, 0.1, seed))[0] for seed in (0, 1)]
    assert networks.measurement(forms[0]) is networks.measurement(forms[1])


@pytest.mark.parametrize(
    ("rate", "model", "fields", "said"),
    [
        (None, MODEL, {}, ""),  # nothing is pruned
        (0.9, MODEL, {}, ""),  # too little is
        (0.1, MODEL, {"sparse": False}, ""),
        (0.1, small_networks.Looping(10), {}, "prune: computes densely; "),
    ],
    ids=["dense", "little", "off", "a loop"],
)
def test_otherwise_it_is_the_whole_network(
    rate, model, fields, said, of_a_run, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("harp_jax"), "propagate", True)
    variables = pruned(model, rate or 1.0)
    if rate is None:
        variables = {name: variables[name] for name in ("params", "batch_stats")}
    with caplog.at_level(logging.INFO, "harp_jax"):
        found = of_a_run(model, **fields).measured("prune", variables)
    assert found[0] is model
    assert found[1] is variables
    assert caplog.text.count(said) == 1 if said else not caplog.text


@pytest.mark.slow
def test_rows_and_examples_are_those_of_the_whole_network(of_a_run, dataset, tmp_path):
    variables, rows, examples = pruned(MODEL, 0.1), [], []
    for sparse in (False, True):
        folder = checkpoint.absolute(tmp_path / str(sparse))
        checkpoint.save_result(folder / "prune", variables, {"stage": "prune"})
        subject = Subject(
            CONFIG,
            folder,
            of_a_run(sparse=sparse),
            dataset,
            parallel.local_devices()[:1],
            Architecture(tuple(trace_layers(MODEL, (8, 8, 1)))),
        )
        attacks = attacks_to_run(CONFIG)
        rows.append(Measurer(subject, attacks, lambda: False).row(variables, "prune", None))
        write_examples(subject, ["prune"], *attacks.popitem())
        with np.load(folder / EXAMPLES) as stored:
            examples.append({name: stored[name] for name in stored.files})
    dense, small = rows
    for name in ("sparsity", "parameters", "flops", "layers", "images"):
        assert small[name] == dense[name]
    assert small["natural"] == pytest.approx(dense["natural"], abs=0.011)
    assert small["robust"]["fgsm"] == pytest.approx(dense["robust"]["fgsm"], abs=0.021)
    assert [*examples[0]] == [*examples[1]]
    natural = [each["prune/natural_prediction"] for each in examples]
    np.testing.assert_array_equal(*natural)
