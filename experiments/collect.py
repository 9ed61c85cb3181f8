"""Writes the epochs of finished prune stages as one CSV table to standard output.

python -m experiments.collect runs/prune_0 runs/prune_1 > table.csv
"""

import argparse
import csv
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from harp_jax.workdir import files

Line = dict[str, Any]


def epochs(workdir: pathlib.Path) -> Iterator[Line]:
    """Yields one row per epoch of a prune stage: losses, rates, validation accuracies."""
    found = json.loads((workdir / files.CONFIG).read_text())
    settings = found["config"]["prune"]
    for text in (workdir / "prune" / files.METRICS).read_text().splitlines():
        row = json.loads(text)
        yield {
            "seed": found["config"]["seed"],
            "devices": found["devices"],
            "clip_norm": settings["clip_norm"],
            "epoch": row["epoch"],
            "train_loss": round(row["train"]["loss"], 4),
            "compression_loss": round(row["compression"]["loss"], 4),
            "kept": row["compression"]["kept"],
            **{
                f"validation_{name}": round(row["validation"][name], 4)
                for name in ("natural", "robust")
            },
            **{f"rate_{layer}": round(rate, 5) for layer, rate in row["rates"].items()},
        }


def main() -> None:
    """Writes the rows of all workdirs under one header."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path, help="folder of a run")
    workdirs = parser.parse_args().workdirs
    for workdir in workdirs:
        for needed in (workdir / "prune" / files.METRICS, workdir / files.CONFIG):
            if not needed.exists():
                allowed = "allowed are workdirs whose prune stage has epochs"
                parser.error(f"{workdir}: {allowed}; there is no {needed}")
    lines = [line for workdir in workdirs for line in epochs(workdir)]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


if __name__ == "__main__":
    main()
