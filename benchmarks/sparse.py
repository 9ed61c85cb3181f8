"""Compares networks that compute with kept weights alone with masked dense ones, side by side.

    python -m benchmarks.sparse --networks cnn vgg16_bn resnet18 --rates 0.01 0.05 0.1

Both run on a device per core, on images of noise, with random masks that keep the same share of
each layer (at least 0.2 of layers with fewer than 1,000 weights). Each round times both, one
directly after the other; times are medians over the rounds, and so is the ratio. 'step' is a PGD-10
training step of the weights without the optimiser. 'inference' compares the function of a sparse
file with ONNX Runtime on the dense network, for one image and for a batch of 128, in a process of
its own: there both sides use all cores for each call, and each has its turn of ten calls. Its
'bytes' are the files' sizes.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnxruntime
import optax

from benchmarks import workload
from benchmarks.jax_step import create, masked
from harp_jax import models, parallel
from harp_jax.attacks import PGD
from harp_jax.attacks.groups import InGroups, pays_in_groups
from harp_jax.evaluation.accuracy import make_measurement
from harp_jax.export import Trained, dense_file, onnx_file, sparse_file
from harp_jax.models.sparse import SparseNetwork, kept_weights
from harp_jax.run.networks import Networks

RESULTS = pathlib.Path(__file__).parent / "results" / "sparse.json"
PAUSE = 0.1  # seconds
ATTACK = PGD(workload.EPSILON, workload.STEP_SIZE, steps=workload.ATTACK_STEPS)


def programs(network: Any, group: int | None) -> dict[str, Callable[..., Any]]:
    """Returns what is timed, as functions of (variables, images, labels)."""
    attack = ATTACK if group is None else InGroups(ATTACK, group)

    def logits(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return network.apply(variables, images, train=False)

    def step(variables: Any, images: jax.Array, labels: jax.Array) -> Any:
        keys = jax.random.split(jax.random.key(0), len(images))
        adversarial = attack(lambda x: logits(variables, x, labels), images, labels, keys)

        def loss(params: Any) -> Any:
            output, changed = network.apply(
                {**variables, "params": params}, adversarial, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(output, labels)
            return losses.mean(), changed

        gradient, changed = jax.grad(loss, has_aux=True)(variables["params"])
        return parallel.mean((gradient, changed))

    return {"forward": logits, "step": step}


def seconds(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """Returns the wall time of one call, in seconds."""
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def seconds_of_calls(function: Callable[[], Any], calls: int = 10) -> float:
    """Returns the median time of a call, of several in a row after a pause and one for nothing.

    In the pause the threads of the other side stop waiting for work on a core.
    """
    time.sleep(PAUSE)
    function()
    return statistics.median(seconds(function, ()) for _ in range(calls))


def compare(network: str, rate: float, rounds: int) -> list[dict[str, Any]]:
    """Measures a network; returns a row for each program."""
    devices, batch = parallel.local_devices(), workload.BATCHES[network]
    model, variables = create(network)
    variables = masked(variables, rate)
    kept = kept_weights(variables["params"])
    forms = model, SparseNetwork(model, kept)
    networks = Networks(
        model, sparse=True, grouped=pays_in_groups(variables["params"]), measure=make_measurement
    )
    sides = [programs(form, networks.group(form)) for form in forms]
    whole = workload.random_batch(network, batch)
    split = {name: each.reshape(len(devices), -1, *each.shape[1:]) for name, each in whole.items()}
    arguments = (
        parallel.replicate(variables, devices),
        np.float32(split["images"]) / 255,
        split["labels"],
    )
    rows = []
    for name in sides[0]:
        both = [parallel.parallel(side[name], devices) for side in sides]
        first = [seconds(function, arguments) for function in both]
        times = [[seconds(function, arguments) for function in both] for _ in range(rounds)]
        dense, sparse = (statistics.median(column) for column in zip(*times, strict=True))
        row = {
            "network": network,
            "rate": rate,
            "program": name,
            "batch": batch,
            "kept": sum(len(each.index) for each in kept.values()),
            "dense_ms": round(1e3 * dense, 2),
            "sparse_ms": round(1e3 * sparse, 2),
            "ratio": round(statistics.median(one / other for one, other in times), 2),
            "first_call_seconds": [round(each, 1) for each in first],
        }
        if name == "forward":
            one, other = (np.asarray(function(*arguments)) for function in both)
            row["logits_differ"] = float(np.abs(one - other).max() / np.abs(one).max())
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def inference(network: str, rate: float, rounds: int) -> list[dict[str, Any]]:
    """Measures a sparse file's function beside ONNX Runtime; returns a row for each batch size."""
    metadata = {
        "model": network,
        "num_classes": workload.CLASSES,
        "image_shape": list(workload.IMAGE_SHAPES[network]),
        "normalization": None,
        "compute_dtype": "float32",
    }
    model = models.create(network, workload.CLASSES)
    variables = masked(create(network)[1], rate)
    trained = Trained(model, jax.device_get(variables), metadata)
    sparse_bytes, dense_bytes = sparse_file.encode(trained, "float32"), dense_file.encode(trained)
    ours: Any = sparse_file.decode(sparse_bytes, network).sparse_logits_fn()
    session = onnxruntime.InferenceSession(
        onnx_file.encode(trained), providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    rows = []
    for batch in (1, 128):
        images = np.random.default_rng(0).random((batch, *trained.image_shape), np.float32)
        both = [
            lambda images=images: session.run(None, {name: images})[0],
            lambda images=images: np.asarray(ours(images)),
        ]
        one, other = (function() for function in both)
        times = [[seconds_of_calls(function) for function in both] for _ in range(3 * rounds)]
        onnx, sparse = (statistics.median(column) for column in zip(*times, strict=True))
        row = {
            "network": network,
            "rate": rate,
            "program": "inference",
            "batch": batch,
            "onnxruntime_ms": round(1e3 * onnx, 3),
            "sparse_ms": round(1e3 * sparse, 3),
            "ratio": round(statistics.median(a / b for a, b in times), 2),
            "logits_differ": float(np.abs(one - other).max() / np.abs(one).max()),
            "bytes": {"dense": len(dense_bytes), "sparse": len(sparse_bytes)},
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Measures, prints each row, and writes benchmarks/results/sparse.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=workload.BATCHES,
        default=["cnn"],
        help="networks to measure",
    )
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[0.01, 0.05, 0.1], help="shares that are kept"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timings of each side")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="file of results, JSON")
    flags = parser.parse_args()
    parallel.one_device_per_core(list(workload.BATCHES.values()))
    rows = []
    for network in flags.networks:
        for rate in flags.rates:
            rows += compare(network, rate, flags.rounds)
            fresh = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, fresh) as process:
                rows += process.submit(inference, network, rate, flags.rounds).result()
    machine = {"jax": jax.__version__, "devices": parallel.names(parallel.local_devices())}
    flags.out.write_text(json.dumps({**machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
