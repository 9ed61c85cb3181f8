"""The folder of a run: its files, writing and reading them, and checking whose run it is.

    config.json             configuration, seed, devices; digests of data and sources; versions and
                            git revision, also those of earlier code
    strategy.json           initial rate of each layer in the prune stage
    STAGE/checkpoints/      Orbax: `last` (to resume from) and `best`
    STAGE/result/           the network for the next stage
    STAGE/metrics.jsonl     one line per epoch; STAGE/tensorboard has the same for TensorBoard
    results.json            the final table
    results.previous.json   the table before one of its numbers was dropped or measured anew
    examples.npz            images of the report, clean and attacked
    network.safetensors     the last pruned network as a sparse file
    network.json            its size and its speed, beside the dense network's
    robustness/             progress of AutoAttack on each network
    report/index.html       the report

Only the first process writes. It replaces a file as a whole, so a kill leaves either the old or the
new file. `attacks`, `methods`, `models` and the rooms above them may import this one.
"""

from harp_jax.workdir.claims import WorkdirError
from harp_jax.workdir.files import WriteError, is_first_process, write_atomically, write_json
from harp_jax.workdir.records import (
    ReportError,
    read_examples,
    read_json,
    read_metrics,
    read_results,
)

__all__ = [
    "ReportError",
    "WorkdirError",
    "WriteError",
    "is_first_process",
    "read_examples",
    "read_json",
    "read_metrics",
    "read_results",
    "write_atomically",
    "write_json",
]
