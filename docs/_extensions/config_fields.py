"""The fields of the configuration as Markdown: values from `default()`, words from its comments."""

import dataclasses
import inspect
import re
from typing import Any

from ml_collections import ConfigDict

from harp_jax.config import default
from harp_jax.config import defaults as source
from harp_jax.losses import LOSSES
from harp_jax.methods import METHODS

# Where the comment is missing, or too short to be read by itself.
WORDS = {
    "seed": "Seed of everything random. A run is a function of the configuration and this number",
    "stages": "The stages to run, always in this order. Finished ones are skipped",
    "model": "A name in `harp_jax.models.MODELS`, or `module:function` of your own",
    "devices": "Number of devices. Unset: all accelerators, or one device per CPU core",
    "compilation_cache": "Folder of compiled programs, kept over runs. `''`: none is kept",
    "batch_size": "Training images in a step, over all devices of all processes",
    "loss": (
        "The training loss: `natural`, `pgd`, `fgsm`, `trades`, `mart`, `free` or"
        " `module:Class`. A stage may have its own"
    ),
    "checkpoint_every_steps": (
        "Steps between checkpoints inside an epoch. 0: a checkpoint at the end of each epoch only"
    ),
    "data.name": (
        "`mnist5k`, `digits`, the name of a TFDS image set, or files of your own: `npz:FILE`,"
        " `folder:DIR`, `parquet:GLOB`, `cifar:DIR`, `svhn:DIR`, `idx:DIR`"
    ),
    "data.directory": "Folder of TFDS, a path or `gs://...`. Unset: its own default",
    "data.validation_examples": (
        "Images that are taken from the train split, chosen by the seed. The best epoch is"
        " chosen on them"
    ),
    "data.train_examples": "Training images. Unset: all that are left",
    "data.test_examples": "Test images, from the start of the split. Unset: all",
    "data.pad_to": "Height and width, in pixels, to which images are padded with zeros",
    "data.workers": "Processes that decode a streamed set. 0: a thread of the main process does",
    "data.crop_padding": (
        "Random crops, after zeros are put around the image, this many pixels wide. 0: no crops"
    ),
    "data.flip": "Random horizontal flips",
    "data.mean": (
        "A number per channel, which the network subtracts from pixels in [0, 1]. `()`:"
        " nothing. Epsilon stays on the [0, 1] scale"
    ),
    "data.std": "A number per channel, by which the network then divides",
    "own": (
        'Settings of losses and methods of your own, by the name of the class: `{"MyLoss":'
        ' {"beta": 2.0}}`'
    ),
    "attack": (
        "PGD in the L_inf ball, for validation and for training. A loss may change its start"
        " and what it ascends"
    ),
    "attack.epsilon": "Radius of the ball, on the [0, 1] pixel scale",
    "attack.step_size": "Length of a step, on the [0, 1] pixel scale",
    "attack.steps": "Number of steps",
    "optimizer": "Stochastic gradient descent, the same in every stage",
    "optimizer.momentum": "Momentum, in [0, 1)",
    "optimizer.weight_decay": "Weight decay of everything that trains, scores and rates included",
    "optimizer.schedule": (
        "Learning rate over a stage: `cosine`, or `step` (a tenth after 75 %, a hundredth after"
        " 90 % of the epochs)"
    ),
    "pretrain.epochs": "Epochs of the stage",
    "pretrain.learning_rate": "Learning rate of its first epochs",
    "pretrain.loss": "Training loss of this stage. Unset: `config.loss`",
    "prune.epochs": "Epochs of the stage. `magnitude` and `random` have none, whatever this says",
    "prune.learning_rate": (
        "Learning rate of its first epochs. `admm` trains weights and wants 0.01"
    ),
    "prune.loss": "Training loss of this stage. Unset: `config.loss`",
    "prune.source": (
        "Checkpoint or workdir of a dense network. `''`: this run's pretrain stage. Its digest"
        " is recorded, and it cannot be changed after the stage began"
    ),
    "prune.target": "Share of the weights, or of the channels, to keep, in (0, 1]",
    "prune.alpha": "No layer's rate goes below alpha * target",
    "prune.gamma0": "Weight of the compression loss in the first epoch, and its growth per epoch",
    "prune.live": (
        "Spend the budget on live connections only: units that no path joins to images and"
        " classes are removed for good, and rates learn from the weights that they would add."
        " False: as the authors"
    ),
    "prune.above_target": (
        "If pruning ends above the target: `shift` moves all rates onto it, `error` stops the run"
    ),
    "finetune.epochs": "Epochs of the stage",
    "finetune.learning_rate": "Learning rate of its first epochs",
    "finetune.loss": "Training loss of this stage. Unset: `config.loss`",
    "finetune.source": "Checkpoint or workdir of a pruned network. `''`: this run's prune stage",
    "evaluate.batch_size": "Test images in a batch, over all devices of all processes",
    "evaluate.run": "Names of the attacks to run, in this order",
    "evaluate.stages": "The stages whose networks are attacked",
    "evaluate.curve": "Also measure the accuracy from 0 to 2 epsilon, under APGD with 25 steps",
}

_FIELD = re.compile(r"    config\.([a-z_0-9.]+) = (?:.*?)(?:  # (.*))?$")


def comments() -> dict[str, str]:
    """Returns the words for each field: the comment above it and at its end, or `WORDS`."""
    found, above = {}, []
    for line in inspect.getsource(source.default).splitlines():
        if line.startswith("    # "):
            above.append(line.removeprefix("    # "))
            continue
        if match := _FIELD.match(line):
            found[match[1]] = " ".join([*above, match[2] or ""]).strip()
        above = []
    return found | WORDS


def own_settings(name: str) -> dict[str, str]:
    """Returns what the docstring of a loss or method says of its fields."""
    kind = (LOSSES | METHODS)[name]
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE)
    names = {field.name for field in dataclasses.fields(kind)}
    return {field: " ".join(words.split()) for field, words in entries if field in names}


def _sentence(words: str) -> str:
    """Writes a comment as a sentence of Markdown."""
    words = (words[:1].upper() + words[1:]).replace("*", r"\*").replace("<", r"\<")
    return words if words.endswith(".") else f"{words}."


def _value(value: Any) -> str:
    return "unset" if value is None else f"`{value!r}`"


def _entry(path: str, value: Any, words: str) -> str:
    return f"`{path}` = {_value(value)}\n: {_sentence(words)}\n"


def _place(path: str, said: dict[str, str]) -> int:
    return list(said).index(path) if path in said else len(said)


def _section(path: str, section: ConfigDict, said: dict[str, str]) -> list[str]:
    lines = [f"## `{path}`\n"]
    if words := said.get(path):
        lines.append(_sentence(words) + "\n")
    if path in LOSSES | METHODS:
        said = {f"{path}.{name}": words for name, words in own_settings(path).items()}
    names = sorted(section, key=lambda name: _place(f"{path}.{name}", said))
    for name in names:
        value = section[name]
        if not isinstance(value, ConfigDict):
            lines.append(_entry(f"{path}.{name}", value, said[f"{path}.{name}"]))
    return lines


def markdown() -> str:
    """Returns a definition list of all fields, a heading a section."""
    config, said = default(), comments()
    plain = [name for name in config if not isinstance(config[name], ConfigDict)]
    lines = ["## The whole run\n"]
    lines += [
        _entry(name, config[name], said[name])
        for name in sorted(plain, key=lambda name: _place(name, said))
    ]
    sections = [name for name in config if isinstance(config[name], ConfigDict)]
    for name in sorted(sections, key=lambda name: _place(name, said)):
        lines += _section(name, config[name], said)
    return "\n".join(lines)


def attacks() -> str:
    """Returns a table of `config.evaluate.attacks`."""
    lines = ["| name | type | settings |", "|---|---|---|"]
    for name, settings in default().evaluate.attacks.items():
        fields = {field: value for field, value in settings.items() if field != "type"}
        told = ", ".join(
            field if field in ("epsilon", "step_size") else f"{field}={value}"
            for field, value in fields.items()
        )
        lines.append(f"| `{name}` | `{settings.type}` | {told} |")
    return "\n".join(lines)
