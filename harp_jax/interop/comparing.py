"""Compares the keys of a checkpoint with a network's."""

import functools
import math
import re
from typing import Any

import numpy as np

from harp_jax import models
from harp_jax.export.errors import FileError
from harp_jax.export.torch_file import own_metadata
from harp_jax.interop import normalizing
from harp_jax.interop.choosing import choose
from harp_jax.interop.layouts import RATE, SCORES, layout, why_ignored
from harp_jax.interop.options import Options, checked
from harp_jax.interop.report import Report, shown
from harp_jax.interop.tensors import Tensor

PRUNED = "scores and rates: see the notes"
# Of torch.nn.utils.prune, weight_norm and spectral_norm, and parametrizations.
_COMPUTED = r"\.weight_(orig|mask|g|v|u)$|\.parametrizations\."


class Comparison:
    """A checkpoint and the network that it should be of.

    Attributes:
        choice: The place of the network's arrays.
        scores: Scores and, if there is one, rate of every layer that has scores, by its name.
        buffers: The file's normalisation.
        own: What `harp_jax.export` said of the network, if it wrote the file; else None.
        report: The report.
    """

    def __init__(self, content: Any, options: Options):
        """Reads no numbers.

        Args:
            content: What is in the file.
            options: How to read it.

        Raises:
            FileError: If there is no one place to look at.
        """
        self._options = options
        of_classes = functools.partial(
            layout, options.model, options.image_shape, width=options.width
        )
        self.choice, others = choose(content, of_classes, options.num_classes, options.key)
        self.scores = self._scores()
        level = self.choice.level
        self._prefixes = [each.prefix for each in others if each.level == level]
        self.buffers = normalizing.buffers(self.choice.entries, self.choice.prefix, self._prefixes)
        self.own = own_metadata(content)
        self.report = self._report(content)

    def weights(self, name: str) -> np.ndarray:
        """Reads the weights of a layer, in PyTorch's order of axes."""
        return self.choice.entries[f"{self.choice.prefix}{name}.weight"].array()

    def _scores(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        found = {}
        for name in self.choice.layout.layers():
            scores, rate = (self._tensor(f"{name}.{leaf}") for leaf in (SCORES, RATE))
            if scores is not None:
                found[name] = (scores, rate)
        return found

    def _tensor(self, name: str) -> Tensor | None:
        found = self.choice.entries.get(f"{self.choice.prefix}{name}")
        return found if isinstance(found, Tensor) else None

    def _report(self, content: Any) -> Report:
        choice, wrong, missing = self.choice, self.choice.wrong(), self.choice.missing()
        taken = {
            key: path
            for name, (path, _) in choice.layout.arrays.items()
            if (key := f"{choice.prefix}{name}") not in (*wrong, *missing)
        }
        ignored, unknown = {}, []
        for key in choice.entries:
            if key in taken or key in wrong or key in missing:
                continue
            why = self._why_left_out(key)
            if why is None:
                unknown.append(str(key)[:200])
            else:
                ignored[str(key)[:200]] = why
        if choice.level:
            level = choice.level.split(".")[0]
            ignored |= {
                str(key)[:200]: "another entry of the file" for key in content if key != level
            }
        if self.own is not None:
            ignored["metadata"] = "see the notes"
        return Report(self._options.model, choice.name, taken, ignored, missing, wrong, unknown, [])

    def _why_left_out(self, key: Any) -> str | None:
        if not isinstance(key, str) or not isinstance(self.choice.entries[key], Tensor):
            return "no array"
        if key in self.buffers.keys:
            return "the network's normalisation"
        name = key.removeprefix(self.choice.prefix)
        layer, _, leaf = name.rpartition(".")
        if leaf in (SCORES, RATE) and layer in self.choice.layout.layers():
            return PRUNED
        if any(name.startswith(each) for each in self._options.ignore if each):
            return "as asked"
        prefixes = [p for p in (self.choice.prefix, *self._prefixes) if key.startswith(p)]
        of_other = bool(prefixes) and max(prefixes, key=len) != self.choice.prefix
        if of_other or key in self.buffers.others:
            return "another network"
        return why_ignored(name) or why_ignored(key)

    def check(self) -> None:
        """Raises a FileError if something forbids the import."""
        problem = self.report.problem()
        if problem is not None:
            raise FileError(f"is not of model={self._options.model!r}; {problem}{self._advice()}")

    def check_scores(self, with_rates: bool) -> None:
        """Raises a FileError unless every layer has scores of a form that is known."""
        layers = self.choice.layout.layers()
        without = [f"{name}.{SCORES}" for name in layers if name not in self.scores]
        if with_rates:
            without += [f"{name}.{RATE}" for name, (_, rate) in self.scores.items() if rate is None]
        if without:
            raise FileError(f"missing: {shown(without)}")
        for name, (scores, rate) in self.scores.items():
            shape = layers[name][1]
            inputs = (1, shape[1], *(1 for _ in shape[2:]))
            if scores.shape not in (shape, inputs):
                raise FileError(
                    f"{name}.{SCORES}: has the shape {scores.shape}; allowed are {shape} and, for"
                    f" channels, {inputs}"
                )
            if rate is not None and math.prod(rate.shape) != 1:
                raise FileError(f"{name}.{RATE}: has the shape {rate.shape}; allowed is one number")

    def _advice(self) -> str:
        """Names the networks that the file is of, or how to make one of it, if that is known."""
        if any(re.search(_COMPUTED, key) for key in self.report.unknown):
            return "; some weights are computed from others: in PyTorch, make them plain first" + (
                " (torch.nn.utils.prune.remove, remove_weight_norm, remove_parametrizations)"
            )
        fitting = []
        for model in models.MODELS:
            try:
                given = {"ignore": self._options.ignore, "width": self._options.width}
                options = checked(model, given)
                other = Comparison(dict(self.choice.entries), options)
            except FileError:
                continue
            if model != self._options.model and other.report.problem() is None:
                fitting.append(model)
        return f"; it fits model={' or '.join(fitting)}" if fitting else ""
