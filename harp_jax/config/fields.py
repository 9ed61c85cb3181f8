"""The fields of the configuration with their words, for the command line and the documentation.

The words of a field are its comments in `defaults.default`, or those of `WORDS`.
"""

import dataclasses
import inspect
import re
import textwrap
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from harp_jax.config import defaults as source
from harp_jax.losses import LOSSES
from harp_jax.methods import METHODS

# Where the comment is missing, or too short to be read by itself.
WORDS = {
    "seed": "Seed of everything random. A run is a function of the configuration and this number",
    "stages": "The stages to run, always in this order. Finished ones are skipped",
    "model": "A name in `harp_jax.models.MODELS`, or `module:function` of your own",
    "width": (
        "Multiplies the channels and hidden units of all layers but the last, in (0, 100]. They are"
        " rounded to whole ones, at least 1"
    ),
    "devices": "Number of devices. Unset: all accelerators, or one device per CPU core",
    "compilation_cache": "Folder of compiled programs, kept over runs. `''`: none is kept",
    "batch_size": "Training images in a step, over all devices of all processes",
    "loss": (
        "The training loss: `natural`, `pgd`, `fgsm`, `trades`, `mart`, `free` or"
        " `module:Class`. A stage may have its own"
    ),
    "checkpoint_every_steps": (
        "Steps between checkpoints inside an epoch. 0: none by steps. One is saved at the end of"
        " each epoch too"
    ),
    "checkpoint_minutes": (
        "Minutes after which a checkpoint is saved inside an epoch, since the one before. 0: never"
    ),
    "keep_checkpoints": (
        "Checkpoints to resume from that are kept. If the newest is damaged, the one before it"
        " serves"
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
    "pretrain.average": (
        "Decay of an exponential moving average of the weights, in [0, 1), once a step; less in"
        " the first steps. The averaged network is validated, chosen and handed on, while the"
        " plain weights train. 0: no average"
    ),
    "prune.epochs": "Epochs of the stage. `magnitude` and `random` have none, whatever this says",
    "prune.learning_rate": (
        "Learning rate of its first epochs. `admm` trains weights and wants 0.01"
    ),
    "prune.loss": "Training loss of this stage. Unset: `config.loss`",
    "prune.source": (
        "Checkpoint or workdir of a dense network. `''`: this run's pretrain stage. Its digest"
        " is recorded, and it cannot be changed after the stage began"
    ),
    "prune.recipe": (
        "A set of options by one name. `best`: live connections (for single weights), rates"
        " that learn at the threshold, joint learning, an annealed budget, filling up, weight"
        " averaging and finetuning at 0.1. Fields with another value than their default keep it."
        " `paper`: none"
    ),
    "prune.target": "Share of the weights, or of the channels, to keep, in (0, 1]",
    "prune.alpha": "No layer's rate goes below alpha * target",
    "prune.gamma0": "Weight of the compression loss in the first epoch, and its growth per epoch",
    "prune.live": (
        "Spend the budget on live connections only: units that no path joins to images and"
        " classes are removed for good, and rates learn from the weights that they would add."
        " False: as the authors"
    ),
    "prune.live_after": (
        "Share of the prune stage before which no such unit is removed, in [0, 1], since it may"
        " come back. 0: from the first update on"
    ),
    "prune.window": (
        "Rates learn from the weights around the threshold: those whose rank is within this share"
        " of the kept number, in [0, 1]. 0: from all of the layer, as the authors"
    ),
    "prune.joint": (
        "Train the weights together with the scores and rates, at the stage's learning rate. Kept"
        " weights follow the loss, all decay. False: as the authors"
    ),
    "prune.anneal": (
        "Share of the prune stage in which the target comes down geometrically, in [0, 1]: from"
        " the cost of the first rates where rates learn; where they do not, every rate from 1."
        " 0: the final target all the time, as the authors"
    ),
    "prune.fill": (
        "If pruning ends below the target, raise all rates until the masks keep as much as is"
        " allowed: the weights with the next-highest scores come back, with `prune.live` those"
        " that connect. False: as the authors"
    ),
    "prune.above_target": (
        "If pruning ends above the target: `shift` moves all rates onto it, `error` stops the run"
    ),
    "finetune.epochs": "Epochs of the stage",
    "finetune.learning_rate": "Learning rate of its first epochs",
    "finetune.loss": "Training loss of this stage. Unset: `config.loss`",
    "finetune.average": "As `pretrain.average`, in this stage",
    "finetune.source": "Checkpoint or workdir of a pruned network. `''`: this run's prune stage",
    "evaluate.batch_size": "Test images in a batch, over all devices of all processes",
    "evaluate.run": "Names of the attacks to run, in this order",
    "evaluate.stages": "The stages whose networks are attacked",
    "evaluate.curve": "Also measure the accuracy from 0 to 2 epsilon, under APGD with 25 steps",
}


class Field(NamedTuple):
    """A field of the configuration.

    Attributes:
        path: Its name with that of its section, 'prune.target'.
        value: Its default. None is unset.
        words: One sentence or more, in Markdown.
    """

    path: str
    value: Any
    words: str


class Section(NamedTuple):
    """A section of the configuration.

    Attributes:
        path: Its name, '' for the fields of the whole run.
        words: What it is about, '' if its fields say so.
        fields: Its fields. `evaluate.attacks` is not among them.
    """

    path: str
    words: str
    fields: list[Field]


_FIELD = re.compile(r"    config\.([a-z_0-9.]+) = (?:.*?)(?:  # (.*))?$")
_WHOLE = "The whole run"
_INDENT = " " * 6


def _comments() -> dict[str, str]:
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


def _own_settings(name: str) -> dict[str, str]:
    """Returns what the docstring of a loss or method says of its fields."""
    kind = (LOSSES | METHODS)[name]
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE)
    names = {field.name for field in dataclasses.fields(kind)}
    return {field: " ".join(words.split()) for field, words in entries if field in names}


def sections() -> list[Section]:
    """Returns every field with its default and its words, in the order of `defaults.default`."""
    config, said = source.default(), _comments()
    plain = {name: value for name, value in config.items() if not isinstance(value, ConfigDict)}
    found = [Section("", "", _fields("", plain, said))]
    nested = [name for name in config if name not in plain]
    for path in sorted(nested, key=lambda name: _place(name, said)):
        words = _own_settings(path) if path in LOSSES | METHODS else {}
        inner = said | {f"{path}.{name}": text for name, text in words.items()}
        fields = _fields(f"{path}.", config[path], inner)
        found.append(Section(path, _sentence(said.get(path, "")), fields))
    return found


def _fields(prefix: str, values: Any, said: dict[str, str]) -> list[Field]:
    names = sorted(values, key=lambda name: _place(prefix + name, said))
    return [
        Field(prefix + name, values[name], _sentence(said[prefix + name]))
        for name in names
        if not isinstance(values[name], ConfigDict)
    ]


def _place(path: str, said: dict[str, str]) -> int:
    return list(said).index(path) if path in said else len(said)


def _sentence(words: str) -> str:
    words = words[:1].upper() + words[1:]
    return words if words.endswith(".") or not words else f"{words}."


def text(width: int = 100) -> str:
    """Returns every field as a flag with its default, its words below it, for a terminal.

    Args:
        width: Longest line, in characters; a flag is never broken.
    """
    lines = []
    for section in sections():
        title = section.path or _WHOLE
        about = f": {_plain(section.words)}" if section.words else ""
        lines += ["", *textwrap.wrap(title + about, width)]
        for field in section.fields:
            lines.append(f"  --config.{field.path}={_for_a_shell(field.value)}")
            words = textwrap.wrap(_plain(field.words), width - len(_INDENT))
            lines += [_INDENT + line for line in words]
    return "\n".join(lines[1:])


def _plain(words: str) -> str:
    return words.replace("`", "")


def _for_a_shell(value: Any) -> str:
    if value is None:
        return ""
    return f'"{value}"' if isinstance(value, tuple) else str(value)
