"""Gathers the tables of finished runs into one CSV on standard output.

python -m experiments.collect runs/fashion_0 runs/fashion_1 > table.csv     # results.json
python -m experiments.collect --pruning runs/prune_0 runs/prune_1 > table.csv  # metrics.jsonl
"""

import argparse
import csv
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

Line = dict[str, Any]


def results(workdir: pathlib.Path) -> Iterator[Line]:
    """A line for each stage of a run: accuracies on test data and kept weights."""
    found = json.loads((workdir / "results.json").read_text())
    for row in found["rows"]:
        yield {
            "seed": found["seed"],
            "devices": found["devices"],
            "stage": row["stage"],
            "kept": row["parameters"],
            "total": row["total"],
            "natural": round(row["natural"], 4),
            **{name: round(accuracy, 4) for name, accuracy in row["robust"].items()},
            **{
                f"{name} after {part}": round(accuracy, 4)
                for name, found in row.get("autoattack", {}).items()
                for part, accuracy in found["after"].items()
            },
            "images": row["images"],
            "kept_per_layer": " ".join(str(layer["kept"]) for layer in row["layers"]),
        }


def pruning(workdir: pathlib.Path) -> Iterator[Line]:
    """A line for each epoch of a run's prune stage: losses, rates, validation accuracies."""
    found = json.loads((workdir / "config.json").read_text())
    settings = found["config"]["prune"]
    for text in (workdir / "prune" / "metrics.jsonl").read_text().splitlines():
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
    """Writes the lines of all workdirs under one head."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--pruning", action="store_true", help="epochs of pruning, not results")
    arguments = parser.parse_args()
    lines_of = pruning if arguments.pruning else results
    lines = [line for workdir in arguments.workdirs for line in lines_of(workdir)]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


if __name__ == "__main__":
    main()
