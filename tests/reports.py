"""Files of a finished run with numbers made up, and what the page shows of them."""

import json
import re

import numpy as np
from etils import epath

from harp_jax import report

STAGES = ("pretrain", "prune", "finetune")
LAYERS = {"conv1": (144, 100), "conv2": (4608, 900), "dense1": (93440, 3910)}


def write_json(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))


def results(stages=STAGES):
    natural = {"pretrain": 0.98, "prune": 0.96, "finetune": 0.971}
    robust = {"pretrain": 0.9, "prune": 0.86, "finetune": 0.882}
    rows = []
    for stage in stages:
        dense = stage == "pretrain"
        layers = [
            {"layer": name, "parameters": size, "kept": size if dense else kept, "rate": None}
            for name, (size, kept) in LAYERS.items()
        ]
        rows.append(
            {
                "stage": stage,
                "sparsity": 0.0 if dense else 1 - 4910 / 98192,
                "parameters": 98192 if dense else 4910,
                "total": 98192,
                "natural": natural[stage],
                "robust": {"fgsm": robust[stage] + 0.02, "pgd20": robust[stage]},
                "images": 1000,
                "seconds": 12.34,
                "checkpoint_epoch": 2,
                "layers": layers,
            }
        )
    pgd = {"type": "PGD", "epsilon": 0.2, "step_size": 0.05, "steps": 20, "restarts": 5}
    return {
        "config": {"model": "cnn", "prune": {"target": 0.05}},
        "seed": 7,
        "versions": {"jax": "0.10.2"},
        "complete": True,
        "dataset": {"name": "mnist5k", "train": 3600, "validation": 400, "test": 1000},
        "attacks": {"fgsm": {"type": "FGSM", "epsilon": 8 / 255}, "pgd20": pgd | {"norm": "linf"}},
        "notes": ["the rates were shifted onto the budget"],
        "rows": rows,
    }


def metrics(stage, epochs=4):
    lines = []
    for epoch in range(epochs):
        line = {
            "stage": stage,
            "epoch": epoch,
            "images_per_second": 300.0 + epoch,
            "train": {"loss": 2 / (epoch + 1), "accuracy": 0.6},
            "validation": {"natural": 0.7 + 0.05 * epoch, "robust": 0.5 + 0.05 * epoch},
            "best": epoch == 2,
        }
        if stage == "prune":
            rate = max(0.1 - 0.02 * epoch, 0.05)
            line["compression"] = {
                "loss": rate / 0.05 - 1,
                "gamma": 0.01 * (epoch + 1),
                "frozen": epoch == 3,
                "rate": rate,
                "target": 0.05,
                "reached": epoch == 3,
            }
            line["rates"] = dict.fromkeys(LAYERS, rate)
        lines.append(json.dumps(line))
    return "\n".join(lines) + "\n"


def write_examples(path, stages=STAGES, channels=1, count=3):
    generator = np.random.default_rng(0)
    images = generator.random((count, 8, 8, channels), dtype=np.float32)
    labels = np.arange(count, dtype=np.int32)
    arrays = {"images": images, "labels": labels, "epsilon": 0.2, "attack": "pgd20"}
    for stage in stages:
        noise = generator.uniform(-0.2, 0.2, images.shape).astype(np.float32)
        arrays[f"{stage}/adversarial"] = np.clip(images + noise, 0, 1)
        arrays[f"{stage}/natural_prediction"] = labels
        arrays[f"{stage}/adversarial_prediction"] = (labels + 1) % count
    np.savez(path, **arrays)


def write_run(workdir, seed=0, stages=STAGES, images="d1", added=0.0, **fields):
    """Files of a run whose accuracies are larger by `added`; `fields` are of its configuration."""
    config = {"model": "cnn", "seed": seed, "data": {"name": "mnist5k"}, "prune": {"target": 0.05}}
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        (config.setdefault(section, {}) if section else config)[field] = value
    write_json(workdir / "config.json", {"config": config, "format": 1})
    tree = results(stages) | {"config": config, "seed": seed}
    tree["dataset"]["name"] = config["data"]["name"]
    for row in tree["rows"]:
        row["images_digest"] = images
        row["natural"] += added
        row["robust"] = {name: each + added for name, each in row["robust"].items()}
    write_json(workdir / "results.json", tree)
    for stage in stages:
        (workdir / stage / "result").mkdir(parents=True)
        (workdir / stage / "metrics.jsonl").write_text(metrics(stage))
    return workdir


def page_of(workdir):
    """The page without the insides of its figures."""
    path = report.write(workdir)
    assert path == epath.Path(workdir) / "report" / "index.html"
    return without_figures(path.read_text(encoding="utf-8"))


def without_figures(page):
    return re.sub(r"(<svg [^>]*>).*?</svg>", r"\1</svg>", page, flags=re.DOTALL)


def text_of(page):
    return " ".join(re.sub(r"<[^>]+>", " ", page.split("</style>")[1]).split())


def figures_of(page):
    svg = r'<svg viewBox="[^"]+" role="img" aria-label="[^"]+">'
    return re.findall(rf'<figure id="(\w+)">\s*<div class="scroll">{svg}', page)
