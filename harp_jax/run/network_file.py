"""Writes the pruned network of a run as a sparse file, and measures what pruning gave."""

import itertools
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from harp_jax import export
from harp_jax.data import Split, to_unit
from harp_jax.export import Trained, container, dense_file, sparse_file
from harp_jax.export.errors import FileError
from harp_jax.types import Device, LogitsFn
from harp_jax.workdir import ReportError, files, forms, is_first_process, records, write_json
from harp_jax.workdir.checksums import signed

_LOGGER = logging.getLogger(__name__)

BATCHES = (1, 128)  # images of a call that is timed
FEWEST, MOST, SECONDS = 3, 50, 0.2  # calls, and time after which there are no more


def write_network(workdir: epath.Path, model: str, test: Split, device: Device) -> None:
    """Writes network.safetensors and network.json: the last pruned network, its size and speed.

    What was written of the same networks stays. Without a pruned network nothing is written. A
    network that cannot be written is no error: the log says why, and older files are removed. All
    processes have to call this; the first one writes.

    Args:
        workdir: Folder of the run, with results.json.
        model: Name of the run's network.
        test: Test split; its first images are those of the comparison and the timing.
        device: A local device, to time on.

    Raises:
        ReportError: If results.json is missing, has no rows or cannot be read.
    """
    rows = [row for row in records.read_results(workdir)["rows"] if row["sparsity"] > 0]
    digests = {row["stage"]: row.get("network_digest") for row in rows}
    if not rows or _is_written(workdir, digests):
        return
    networks, found = {}, None
    try:
        for stage in digests:  # in all processes: they read together
            networks[stage] = export.read(workdir / stage, model=model)
        if is_first_process():
            images = to_unit(jnp.asarray(test.take(slice(max(BATCHES))).images))
            with jax.default_device(device):
                found = _write(workdir / files.NETWORK, networks, np.asarray(images))
    except Exception as error:  # a user's network may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        _LOGGER.warning("%s: not written: %s", files.NETWORK, reason)
        _remove(workdir)
    if found is not None:
        facts = {"model": model, "device": device.device_kind, "digests": digests}
        write_json(workdir / files.SIZES, signed({**found, **facts}))
        _LOGGER.info("%s", _sentence(found))


def _is_written(workdir: epath.Path, digests: Mapping[str, str | None]) -> bool:
    """Returns whether the file is there, whole, and of these networks."""
    path = workdir / files.SIZES
    if None in digests.values() or not path.exists():
        return False
    try:
        container.decode((workdir / files.NETWORK).read_bytes())
        return records.read_json(path, forms.SIZES)["digests"] == digests
    except (FileError, OSError, ReportError):
        return False


def _remove(workdir: epath.Path) -> None:
    if is_first_process():
        for name in (files.SIZES, files.NETWORK):
            (workdir / name).unlink(missing_ok=True)


def _write(path: epath.Path, networks: Mapping[str, Trained], images: np.ndarray) -> dict[str, Any]:
    """Writes the last network; returns the sizes of all, and the speed of the last one."""
    (*others, last) = networks
    sizes = {stage: len(sparse_file.encode(networks[stage])) for stage in others}
    written = export.write(networks[last], path, "sparse", images=images)
    return {
        "stage": last,
        "dense_bytes": len(dense_file.encode(networks[last])),
        "bytes": {**sizes, last: written.bytes},
        "milliseconds": _speed(networks[last], images),
    }


def _speed(network: Trained, images: np.ndarray) -> list[dict[str, Any]]:
    """Times the dense and the pruned function, one directly after the other: ms an image."""
    functions, rows = (network.logits_fn(), network.sparse_logits_fn()), []
    for count in BATCHES:
        batch = images[:count]
        dense, pruned = (1e3 * each / len(batch) for each in _seconds(functions, batch))
        rows.append({"images": len(batch), "dense": dense, "pruned": pruned})
    return rows


def _seconds(functions: Sequence[LogitsFn], images: Any) -> list[float]:
    """Returns the median time of a call of each function."""
    for function in functions:
        jax.block_until_ready(function(images))  # compiles it
    times: list[list[float]] = []
    end = time.perf_counter() + SECONDS
    while len(times) < FEWEST or (len(times) < MOST and time.perf_counter() < end):
        marks = [time.perf_counter()]
        for function in functions:
            jax.block_until_ready(function(images))
            marks.append(time.perf_counter())
        times.append([after - before for before, after in itertools.pairwise(marks)])
    return [statistics.median(column) for column in zip(*times, strict=True)]


def _sentence(found: Mapping[str, Any]) -> str:
    """Words the size and the speed of the pruned network, in one line."""
    size, dense = found["bytes"][found["stage"]], found["dense_bytes"]
    speeds = [
        f"{each['pruned']:.3g} ms an image ({each['dense']:.3g} dense) in calls with"
        f" {each['images']}"
        for each in found["milliseconds"]
    ]
    return (
        f"{files.NETWORK}: {size:,} bytes, {size / dense:.2%} of the dense file's {dense:,};"
        f" {', '.join(speeds)}"
    )
