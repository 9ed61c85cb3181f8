"""The folder of a run: its files, how they are written and read, and whose it is.

    config.json             configuration, seed, versions, data, sources, devices, git revision
    strategy.json           rates per layer that pruning started from
    STAGE/checkpoints/      Orbax: `last` (to resume from) and `best`
    STAGE/result/           the network that the stage hands on
    STAGE/metrics.jsonl     a line an epoch; TensorBoard's files beside it
    results.json            the final table
    results.previous.json   that of an evaluation with other attacks before
    examples.npz            images of the report, clean and attacked
    robustness/             how far AutoAttack is with each network
    report/index.html       the page

Files that a run writes are replaced as a whole, by the first process alone, so a kill leaves the
old or the new one. Everything above the pure rooms may import this one.
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
