"""Writes pruned networks and their results as AdversarialPruningBenchmark asks for them.

python -m experiments.leaderboard runs/r18_* --method=HARP_Zhao2023Holistic --out=submission

Writes KEY.pth.tar for each network, issue.md (the text of the issue) and taxonomy.json (answers for
the benchmark's form). What a run does not know stays empty. What the benchmark asks for, and where
it says so, is in docs/howto/leaderboard.md.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from harp_jax import checkpoint, export
from harp_jax.attacks import AutoAttack
from harp_jax.config.sections import make_attack
from harp_jax.losses import LOSSES
from harp_jax.workdir import files, forms, records, write_atomically, write_json

ARCHITECTURES = {"resnet18": "R18", "vgg16_bn": "V16"}
SPARSITIES = {"US": (90, 95, 99), "S": (50, 75, 90)}  # in percent
POINTS = 0.5  # by which a network's sparsity may differ from one of them
ATTACK = AutoAttack(0.031)
IMAGES = 10_000
CLASSES, IMAGE_SHAPE = 10, [32, 32, 3]
ENDING = ".pth.tar"
# By data.name, up to its colon. TFDS has SVHN in another order: other first images.
DATASETS = {"cifar10": "CIFAR10", "cifar:": "CIFAR10", "svhn:": "SVHN"}
_SOURCES = "cifar10, cifar:DIR and svhn:DIR"
_TRAINING = {"pgd": "Adversarial Training (AT) PGD", "natural": "Natural Training (NT)"}
_STRUCTURES = {"US": "Unstructured (US)", "S": "Structured (S) channels"}
_GLOBAL, _LOCAL = "Global Pruning (G)", "Local Pruning (L)"
_LOCALITIES = {"uniform": _LOCAL, "erk": _LOCAL, "lamp": _GLOBAL, "global": _GLOBAL}
_CRITERIA = {
    "harp": "Least Importance Score (LIS)",
    "score": "Least Importance Score (LIS)",
    "admm": "Solver Based LWM (SOLWM)",
    "magnitude": "Lowest Weight Magnitude LWM",
}


class LeaderboardError(ValueError):
    """Raised for a run that the benchmark does not take; names the field, value and allowed."""


class Entry(NamedTuple):
    """A network of the leaderboard.

    Attributes:
        key: The benchmark's name of it.
        folder: The run's workdir.
        natural: Accuracy, in [0, 1].
        robust: Accuracy under AutoAttack, in [0, 1].
        notes: Sentences that a reader of the numbers has to know.
        answers: Those of the benchmark's form; '' for what the run does not know.
    """

    key: str
    folder: epath.Path
    natural: float
    robust: float
    notes: list[str]
    answers: dict[str, str]


def entry(workdir: epath.PathLike, method: str, dataset: str | None = None) -> Entry:
    """Reads the network of a run's last complete stage, and what was measured of it.

    Args:
        workdir: Folder of a run with results.json.
        method: The benchmark's name of the method, such as 'HARP_Zhao2023Holistic'.
        dataset: 'CIFAR10' or 'SVHN', where `data.name` does not say so; None if it does.

    Returns:
        The entry.

    Raises:
        LeaderboardError: If the benchmark does not take the network, or something was not measured.
        CheckpointError: If there is no network.
        ReportError: If results.json or config.json are missing or cannot be read.
    """
    folder = epath.Path(workdir)
    if method.count("_") != 1 or not all(part.isalnum() for part in method.split("_")):
        raise LeaderboardError(
            f"method={method!r}: allowed are names of the form METHOD_AuthorYEARTitle"
        )
    variables = checkpoint.load(folder)
    network = variables.pop("metadata")
    results = records.read_results(folder)
    config = records.read_json(folder / files.CONFIG, forms.CONFIG)["config"]
    _require(folder, "model", network.get("model"), ARCHITECTURES)
    _require(folder, "width", network.get("width", 1.0), [1.0])
    _require(folder, "num_classes", network["num_classes"], [CLASSES])
    _require(folder, "image_shape", list(network["image_shape"]), [IMAGE_SHAPE])
    dataset = _dataset(folder, results, dataset)
    row = _row(folder, results, network["stage"])
    if row.get("network_digest") != checkpoint.digest(variables):
        raise LeaderboardError(
            f"{folder}: network_digest={row.get('network_digest')!r}: allowed is that of the"
            f" network of stage {network['stage']!r}; evaluate it again"
        )
    structure, percent, words = _sparsity(folder, row, variables.get("scores"), config)
    name = ARCHITECTURES[network["model"]]
    return Entry(
        "_".join([method, name, dataset, structure, str(percent)]),
        folder,
        row["natural"],
        _robust(folder, results, row),
        [words, *_notes(network, row, config)],
        _answers(method, structure, config),
    )


def _require(folder: epath.Path, field: str, value: Any, allowed: Iterable[Any]) -> None:
    allowed = list(allowed)
    if value not in allowed:
        shown = ", ".join(map(str, allowed))
        raise LeaderboardError(f"{folder}: {field}={value!r}: allowed are {shown}")


def _dataset(folder: epath.Path, results: Mapping[str, Any], given: str | None) -> str:
    name = (results.get("dataset") or {}).get("name") or ""
    found = DATASETS.get("".join(name.partition(":")[:2]))
    if found is None and given is None:
        raise LeaderboardError(
            f"{folder}: data.name={name!r}: allowed are {_SOURCES}; another source of the same"
            " images needs --dataset=CIFAR10 or SVHN"
        )
    if found is not None and given not in (None, found):
        raise LeaderboardError(f"{folder}: dataset={given!r}: allowed with {name!r} is {found}")
    return found or str(given)


def _row(folder: epath.Path, results: Mapping[str, Any], stage: str) -> records.Row:
    """Returns the row of a stage, which has to be of a pruned network and of all images."""
    row = next((row for row in results["rows"] if row["stage"] == stage), None)
    if row is None:
        have = ", ".join(row["stage"] for row in results["rows"])
        raise LeaderboardError(
            f"{folder}: results.json has no row of stage {stage!r}, only of {have}; evaluate it"
        )
    if row["sparsity"] <= 0:
        raise LeaderboardError(f"{folder}: sparsity=0 ({stage}): allowed are pruned networks")
    _require(folder, "images", row["images"], [IMAGES])
    return row


def _robust(folder: epath.Path, results: Mapping[str, Any], row: records.Row) -> float:
    """Returns the accuracy under the benchmark's AutoAttack, by whatever name it was measured."""
    for name, settings in (results.get("attacks") or {}).items():
        is_one = settings.get("type") == "AutoAttack" and name in row["robust"]
        if is_one and make_attack(settings, f"evaluate.attacks.{name}") == ATTACK:
            return row["robust"][name]
    raise LeaderboardError(
        f"{folder}: attacks={', '.join(row['robust']) or 'none'}: allowed are evaluations with"
        f" AutoAttack, version {ATTACK.version}, {ATTACK.norm}, epsilon {ATTACK.epsilon}"
    )


def _sparsity(
    folder: epath.Path, row: records.Row, scores: Any, config: Mapping[str, Any]
) -> tuple[str, int, str]:
    """Returns the structure ('US', 'S'), the sparsity in percent, and what it counts in words."""
    arrays = jax.tree.leaves(scores)  # of a kernel's shape, or a number for each channel
    structure = "S" if arrays and all(each.ndim == 1 for each in arrays) else "US"
    kept = f"{row['parameters']:,} of {row['total']:,} weights are kept"
    if structure == "US":
        found = 100 * row["sparsity"]
        field, words = "sparsity in percent", kept
    elif (config.get("finetune") or {}).get("source"):
        raise LeaderboardError(
            f"{folder}: finetune.source={config['finetune']['source']!r}: allowed with channels are"
            " runs that prune, whose prune.target is the share of channels"
        )
    else:
        target = config["prune"]["target"]
        found = 100 * (1 - target)
        field = "sparsity of channels in percent"
        words = f"the FLOPs are those of {target:g} of the channels in every layer; {kept}"
    percent = min(SPARSITIES[structure], key=lambda each: abs(found - each))
    if abs(found - percent) > POINTS:
        allowed = ", ".join(map(str, SPARSITIES[structure]))
        raise LeaderboardError(
            f"{folder}: {field}={found:.2f}: allowed are {allowed}, up to {POINTS} off"
        )
    return structure, percent, words


def _notes(network: Mapping[str, Any], row: records.Row, config: Mapping[str, Any]) -> list[str]:
    normalization = network.get("normalization")
    numbers = "no normalization"
    if normalization:
        mean, deviation = normalization
        numbers = f"needs normalization, mean {list(mean)}, standard deviation {list(deviation)}"
    found = [numbers]
    if (config.get("data") or {}).get("select_on") == "test":
        found.append("epochs were chosen on test images")
    return [*found, *row.get("warnings", [])]


def _answers(method: str, structure: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Answers the benchmark's form; what another run did is not known."""
    prune, finetune = config.get("prune") or {}, config.get("finetune") or {}
    pruned_here, kind = not finetune.get("source"), str(prune.get("method"))
    trained_here = pruned_here and not prune.get("source")
    locality = _GLOBAL if kind == "harp" else _LOCALITIES.get(str(prune.get("strategy")), "")
    known = pruned_here and kind in _CRITERIA
    return {
        "link_to_paper": "",
        "ap_key": method,
        "Type of Pipeline:": "A-Methods Pruning After Training",
        "A: Pretraining ": _training(config, "pretrain") if trained_here else "",
        "A: Finetuning": _training(config, "finetune"),
        "A: OneShot (1S) vs Iterative (IT)": "1S" if known else "",
        "Pruning structure": _STRUCTURES[structure],
        "Pruning locality": locality if known else "",
        "Pruning criterion": _CRITERIA[kind] if known else "",
    }


def _training(config: Mapping[str, Any], stage: str) -> str:
    loss = (config.get(stage) or {}).get("loss") or config.get("loss")
    named = f"Adversarial Training (AT) {str(loss).upper()}" if loss in LOSSES else ""
    return _TRAINING.get(str(loss), named)


def issue(entries: Sequence[Entry]) -> str:
    """Returns the text of the issue, with the template's headings and fields.

    Args:
        entries: The networks, in the order of the text.
    """
    lines = ["# Loading Section", "", "## JSON Entry"]
    lines += ["<!-- what the benchmark's form sends by email -->", ""]
    for number, each in enumerate(entries, start=1):
        lines += [
            f"## Evaluation Results of Model n°{number}",
            f'_Model GDrive:_ "{each.key}" : ["", "{ENDING}"]',
            f'_Distances GDrive:_ "{each.key}" : ["", ".pickle"]',
            "",
            f"_Clean Accuracy:_ {100 * each.natural:.2f}",
            f"_Robust Accuracy (AA):_ {100 * each.robust:.2f}",
            "_Robust Accuracy (HO-FMN):_ <!-- measured by the benchmark's `benchmark` -->",
            "",
        ]
    lines += ["## Architecture details and normalization"]
    lines += [f"- {each.key}: {'; '.join(each.notes)}" for each in entries]
    lines += [
        "",
        "All checkpoints are state dicts of the base models, with pruned weights set to zero. The"
        f" accuracies are those of the first {IMAGES:,} test images, under harp_jax's AutoAttack"
        f" (standard, L_inf, epsilon {ATTACK.epsilon}).",
    ]
    return "\n".join(lines) + "\n"


def taxonomy(entries: Sequence[Entry]) -> dict[str, str]:
    """Returns the answers of all networks; different ones side by side, '' if one is unknown."""
    found = {}
    for name in entries[0].answers:
        values = list(dict.fromkeys(each.answers[name] for each in entries))
        found[name] = "" if "" in values else ", ".join(values)
    return found


def missing(entries: Sequence[Entry]) -> list[str]:
    """Returns the keys that complete each triple of sparsities, of which the benchmark needs one.

    Args:
        entries: The networks.
    """
    have = {each.key for each in entries}
    groups = dict.fromkeys(key.rpartition("_")[0] for key in have)
    wanted = [
        f"{group}_{percent}"
        for group in sorted(groups)
        for percent in SPARSITIES[group.rpartition("_")[2]]
    ]
    return [key for key in wanted if key not in have]


def write(entries: Sequence[Entry], out: epath.PathLike) -> epath.Path:
    """Writes the checkpoints, the issue's text and the answers for the form.

    Args:
        entries: The networks.
        out: Folder to write to; files of the same names are replaced.

    Returns:
        The folder.

    Raises:
        LeaderboardError: If two networks have the same key.
        FileError: If a checkpoint does not compute what the network does.
        OSError: If a file cannot be written.
    """
    of_key: dict[str, Entry] = {}
    for each in entries:
        other = of_key.setdefault(each.key, each)
        if other is not each:
            raise LeaderboardError(
                f"{each.folder}: key={each.key!r}: allowed once, and {other.folder} has it"
            )
    folder = checkpoint.absolute(out)
    for each in entries:
        export.write(each.folder, folder / f"{each.key}{ENDING}", "torch")
    write_atomically(folder / "issue.md", issue(entries))
    write_json(folder / "taxonomy.json", taxonomy(entries))
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Writes the networks of runs, and says what is still missing; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.leaderboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="folder of a run")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--method", required=True, help="such as HARP_Zhao2023Holistic")
    parser.add_argument(
        "--dataset", choices=sorted({*DATASETS.values()}), help="where data.name does not say it"
    )
    given = parser.parse_args(arguments)
    try:
        entries = [entry(each, given.method, given.dataset) for each in given.workdirs]
        folder = write(entries, given.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for each in entries:
        print(f"{folder / each.key}{ENDING}: {each.natural:.2%} / {each.robust:.2%} (AutoAttack)")
    empty = [name.strip(" :") for name, text in taxonomy(entries).items() if not text]
    print(f"{folder / 'taxonomy.json'}: empty are {json.dumps(empty)}")
    if missing(entries):
        print(f"still missing: {', '.join(missing(entries))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
