"""Reading finished runs: their configuration, data, networks and outcomes of AutoAttack."""

import json
import pathlib
import zipfile
from typing import Any

import flax.linen as nn
import numpy as np
from etils import epath

from harp_jax import checkpoint
from harp_jax.config import Config
from harp_jax.config.of_workdir import get_config
from harp_jax.config.sections import load_data
from harp_jax.data import Dataset
from harp_jax.export import trained
from harp_jax.workdir import files, ownership
from harp_jax.workdir.claims import find_claim, read_claim

_SOURCES = ("prune.source", "finetune.source")


def data_of(workdir: pathlib.Path) -> tuple[Config, Dataset]:
    """Loads the configuration of a run, and its data.

    Args:
        workdir: The run.

    Returns:
        The configuration as recorded, and the data that it names.

    Raises:
        ValueError: If the run has no configuration, or its data are missing or others now; in one
            line.
    """
    config = get_config(str(workdir))
    dataset = load_data(config)
    ownership.check_data(epath.Path(workdir), read_claim(epath.Path(workdir)), dataset.identity())
    return config, dataset


def check_same_images(workdir: pathlib.Path) -> None:
    """Checks that the networks that a run started from have seen its own images and no others.

    Args:
        workdir: The run. What it started from is not checked where that has no run beside it.

    Raises:
        ValueError: If one of them was trained or chosen on others; in one line.
    """
    own = read_claim(epath.Path(workdir)) or {}
    sources = [own]
    for run in sources:
        for field in _SOURCES:
            given = ((run.get("sources") or {}).get(field) or {}).get("given")
            other = find_claim(epath.Path(given)) if given else None
            if other is None:
                continue
            if _digests(other) != _digests(own):
                allowed = "allowed are networks of runs with the same seed and images"
                raise ValueError(f"{workdir}: {field}={given!r} has seen other images; {allowed}")
            sources.append(other)


def _digests(run: dict[str, Any]) -> Any:
    return (run.get("data") or {}).get("digests")


def broken_by(workdir: pathlib.Path, stage: str) -> np.ndarray | None:
    """Reads what of AutoAttack broke each test image; None unless the attack is complete.

    Args:
        workdir: A run.
        stage: One of its stages.

    Raises:
        SystemExit: If a file of the outcome is missing or damaged; in one line.
    """
    path = workdir / files.RESULTS
    try:
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        if not any(row["stage"] == stage and "autoattack" in row["robust"] for row in rows):
            return None
        path = workdir / files.ROBUSTNESS / f"{stage}-autoattack.npz"
        with np.load(path) as outcome:
            return outcome["broken_by"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        said = " ".join(str(error).split())
        allowed = "allowed are outcomes of complete runs"
        raise SystemExit(f"error: {path}: cannot be read ({said}); {allowed}") from None


def network(stage: pathlib.Path) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Loads a stage's network: the model, its variables and its metadata."""
    variables = checkpoint.load(stage)
    metadata = variables.pop("metadata")
    return trained.create(metadata), variables, metadata
