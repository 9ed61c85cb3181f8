"""Builds the tables and sentences of a run's page."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from harp_jax.report import words
from harp_jax.report.recorded import Log, Record


def headline(run: Record, results: Record) -> dict[str, Any]:
    """Builds the title and the facts at the head of the page."""
    config, rows = run.get("config", {}), results["rows"]
    model = str(config.get("model", ""))
    data = results.get("dataset", {}).get("name") or config.get("data", {}).get("name", "")
    pruned = [row for row in rows if row["sparsity"] > 0]
    prune = config.get("prune", {}) if pruned else {}
    target, by_channel = prune.get("target"), prune.get("granularity") == "channel"
    facts = [
        ("dataset", data),
        ("model", model),
        ("width", f"{width:g}" if (width := config.get("width") or 1) != 1 else ""),
        ("target sparsity", words.sparsity(1 - target) if target and not by_channel else ""),
        ("target channels", f"{100 * target:g} %" if target and by_channel else ""),
        ("seed", str(results.get("seed", ""))),
        ("date", str(run.get("created") or "")[:10]),
    ]
    return {
        "title": " on ".join(name for name in (model, data) if name) or "A run",
        "subtitle": f"pruned to {words.sparsity(pruned[-1]['sparsity'])} sparsity"
        if pruned
        else "",
        "facts": [(label, fact) for label, fact in facts if fact],
    }


def summary(rows: Sequence[Record]) -> dict[str, Any] | None:
    """Summarises the last network and the dense one, under the attack worst for the last."""
    dense, last = rows[0], rows[-1]
    if last is dense or dense["stage"] != "pretrain":
        return None
    shared = [name for name in last["robust"] if name in dense["robust"]]
    worst = min(shared, key=lambda name: last["robust"][name]) if shared else None
    return {"dense": dense, "last": last, "attack": worst}


def flops(rows: Sequence[Record]) -> list[float]:
    """Computes the kept share of the FLOPs of every row; nothing if a row has no count."""
    if any("flops" not in row for row in rows):
        return []
    return [row["flops"] / row["total_flops"] for row in rows]


def precision(rows: Sequence[Record]) -> dict[str, str]:
    """Tells the number of test images and the largest standard error that follows."""
    counts = sorted({row["images"] for row in rows})
    errors = [
        math.sqrt(score * (1 - score) / row["images"])
        for row in rows
        for score in (row["natural"], *row["robust"].values())
    ]
    images = " or ".join(f"{count:,}" for count in counts)
    return {"images": images, "error": f"{100 * max(errors):.2g}"}


def autoattacks(rows: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """Builds a table per AutoAttack: the accuracy of each network after each of its parts."""
    for name in dict.fromkeys(name for row in rows for name in row.get("autoattack", {})):
        found = [
            (row, row["autoattack"][name]) for row in rows if name in row.get("autoattack", {})
        ]
        parts = list(found[0][1]["after"])
        yield {
            "name": name,
            "parts": parts,
            "rows": [
                {
                    "stage": row["stage"],
                    "scores": [words.score(row, each["after"][part]) for part in parts],
                    "balanced": words.score(row, each["balanced"][parts[-1]]),
                    "seconds": f"{sum(each['seconds'].values()):,.0f} s",
                }
                for row, each in found
            ],
        }


def shown_attack(examples: Mapping[str, np.ndarray]) -> str:
    """Names the attack of the shown images, with its radius; '' without images."""
    if not examples:
        return ""
    return f"{examples['attack'].item()}, ε = {words.pixels(examples['epsilon'].item())}"


def training(rows: Sequence[Record], logs: Mapping[str, Log]) -> list[dict[str, str]]:
    """Lists how each stage was trained: its epochs, the chosen one, its speed."""
    evaluated = {row["stage"]: row for row in rows}
    table = []
    for stage in dict.fromkeys([*logs, *evaluated]):
        lines, row = logs.get(stage, []), evaluated.get(stage, {})
        speed = [line["images_per_second"] for line in lines if line.get("images_per_second")]
        chosen, seconds = row.get("checkpoint_epoch"), row.get("seconds")
        table.append(
            {
                "stage": words.stage(stage),
                "epochs": str(len(lines)) if lines else "",
                "chosen": "" if chosen is None else str(chosen),
                "speed": f"{np.median(speed):,.0f}" if speed else "",
                "evaluation": "" if seconds is None else f"{seconds:,.1f} s",
            }
        )
    return table


def environment(run: Record, results: Record) -> list[tuple[str, str]]:
    """Lists when and with which code the run was made."""
    versions = run.get("versions") or results.get("versions") or {}
    known = [("created", run.get("created")), ("revision", run.get("revision"))]
    facts = [(label, str(value)) for label, value in known if value]
    return facts + [(name, str(version)) for name, version in versions.items()]


def flat(tree: Record, prefix: str = "") -> list[tuple[str, str]]:
    """Returns the config's fields by dotted name, as flags spell them."""
    fields = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            fields.extend(flat(value, f"{prefix}{name}."))
        else:
            fields.append((f"{prefix}{name}", json.dumps(value, ensure_ascii=False)))
    return fields
