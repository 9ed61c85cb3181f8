"""Checkpoints with Orbax: written atomically, checked when read, readable without the model.

A checkpoint is a folder of items: `variables` (params, batch_stats and, if pruned, scores, rates,
minimum_rates), `metadata` (JSON), `record` (JSON: checksums of all arrays and of the metadata, and
the run's config.json) and, if a stage can resume from it, `training` (step, key, optimiser state,
sums, Free-AT's perturbation). A stage's folder holds

    checkpoints/last/STEP   the newest states, to resume from
    checkpoints/best/STEP   the networks with the best validation accuracy at those states
    result                  the network for the next stage; exists once the stage is complete

All arrays are on the host and the same in all processes, and the first process writes them. So
checksums are of whole arrays. `training` and the rooms above it may import this one.
"""

from harp_jax.checkpoint.comparing import check_fits, check_metadata, digest
from harp_jax.checkpoint.reading import (
    CheckpointError,
    DamagedCheckpointError,
    absolute,
    find,
    has_begun,
    is_complete,
    load,
    origins,
    recorded_run,
    saved,
)
from harp_jax.checkpoint.resuming import StageCheckpoints
from harp_jax.checkpoint.writing import save_result

__all__ = [
    "CheckpointError",
    "DamagedCheckpointError",
    "StageCheckpoints",
    "absolute",
    "check_fits",
    "check_metadata",
    "digest",
    "find",
    "has_begun",
    "is_complete",
    "load",
    "origins",
    "recorded_run",
    "save_result",
    "saved",
]
