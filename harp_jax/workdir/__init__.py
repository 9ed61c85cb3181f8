"""The folder of a run: its files, writing and reading them, and checking whose run it is.

    config.json             configuration, seed, versions, data, sources, devices, git revision
    strategy.json           initial rate of each layer in the prune stage
    STAGE/checkpoints/      Orbax: `last` (to resume from) and `best`
    STAGE/result/           the network for the next stage
    STAGE/metrics.jsonl     one line per epoch; TensorBoard's files are next to it
    results.json            the final table
    results.previous.json   the table of an earlier evaluation with other attacks
    examples.npz            images of the report, clean and attacked
    robustness/             progress of AutoAttack on each network
    report/index.html       the report

Only the first process writes. It replaces a file as a whole, so a kill leaves either the old or the
new file. `attacks`, `methods`, `models` and the rooms above them may import this one.
"""

from harp_jax.workdir.files import is_first_process, write_atomically, write_json
from harp_jax.workdir.ownership import WorkdirError
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
    "is_first_process",
    "read_examples",
    "read_json",
    "read_metrics",
    "read_results",
    "write_atomically",
    "write_json",
]
