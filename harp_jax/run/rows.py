"""Measures one network for its row of results.json."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from harp_jax import models, parallel
from harp_jax.attacks import APGD, Attack
from harp_jax.attacks.base import Ensemble, loss_at_start
from harp_jax.config.sections import Config
from harp_jax.data import Dataset
from harp_jax.evaluation import CURVE, ROBUST, Outcome, PackedAttack
from harp_jax.evaluation.accuracy import Score
from harp_jax.evaluation.checks import check_finite
from harp_jax.interrupt import InterruptedRunError
from harp_jax.pruning.channels import Architecture
from harp_jax.pruning.sparsity import layer_sparsity
from harp_jax.run import kept
from harp_jax.run.networks import Networks
from harp_jax.types import Device, Images, Logits, Model, Variables
from harp_jax.workdir.files import ROBUSTNESS
from harp_jax.workdir.records import Row

NATURAL = "natural"  # among the members of 'balanced' and of 'excess'
CURVE_STEPS = 25  # of APGD, for each radius of the security curve


class Subject(NamedTuple):
    """The run and the functions that measure it; the same for all its stages.

    Attributes:
        config: The run's configuration.
        workdir: Folder of the stages and the results.
        networks: The forms in which the networks compute, and what measures them.
        dataset: The data; all of its test split is used.
        devices: Local devices.
        architecture: The network's layers, to count FLOPs.
    """

    config: Config
    workdir: epath.Path
    networks: Networks
    dataset: Dataset
    devices: Sequence[Device]
    architecture: Architecture

    def precision(self) -> str | None:
        """Returns the precision of the evaluation's products, see `parallel.parallel`."""
        return parallel.precision_on(self.devices, self.config.evaluate.matmul_precision)

    def precision_name(self) -> str:
        """Returns the name to record: CPUs compute in float32 whatever is asked."""
        return self.precision() or "highest"


class _Measured(NamedTuple):
    """A network that is being measured: its stage, its form, and its replicated plain variables."""

    stage: str
    form: Model
    plain: Any


class Measurer:
    """Measures the networks of all stages; those of equal masks with the same programs."""

    def __init__(
        self,
        subject: Subject,
        attacks: Mapping[str, Attack],
        stop_requested: Callable[[], bool],
    ):
        """Builds functions that compile at their first use.

        Args:
            subject: The run and the functions that measure it.
            attacks: The attacks, by name.
            stop_requested: Called between measurements, and between the batches of AutoAttack;
                True stops the evaluation.
        """
        self._subject, self._attacks, self._stop_requested = subject, attacks, stop_requested
        self._split = subject.dataset.test
        self._packed = functools.cache(self._new_packed)

    def row(self, variables: Variables, stage: str, before: Row | None) -> Row:
        """Measures what a stage's row does not hold yet, without its warnings.

        Args:
            variables: Variables of the network, with its scores and rates if it is pruned.
            stage: Name of the stage.
            before: The row of an earlier evaluation, to be completed; None if there is none.

        Returns:
            The row. Its 'seconds' are those of all evaluations.

        Raises:
            InterruptedRunError: If a stop was requested.
            ValueError: If logits are not finite, clean or attacked; names how many images' are.
        """
        started = time.monotonic()
        row = before or {
            "stage": stage,
            **_sizes(variables, self._subject.architecture),
            "robust": {},
            "balanced": {},
            "correct": {},
            "checks": kept.checks({}, {}),
            "images": len(self._split),
            "seed": self._subject.config.seed,
            "seconds": 0.0,
        }
        entries = ("robust", "balanced", "correct", "checks")
        row = {**row, **{entry: dict(row.get(entry) or {}) for entry in entries}}
        subject = self._subject
        form, variables = subject.networks.measured(stage, variables)
        bake = subject.networks.measurement(form, subject.precision()).bake
        plain = bake(parallel.replicate(variables, subject.devices))
        self._measure(row, _Measured(stage, form, plain))
        row["seconds"] += time.monotonic() - started
        return row

    def lacks(self, row: Row | None) -> bool:
        """Returns whether something of this evaluation is missing in a row."""
        if row is None:
            return True
        return not self._attacks.keys() <= row["robust"].keys() or self._lacks_curve(row)

    def _lacks_curve(self, row: Row) -> bool:
        return self._subject.config.evaluate.curve and not row.get("curve")

    def _measure(self, row: Row, network: _Measured) -> None:
        """Adds to a row what it does not hold yet of the network apart from its size."""
        excess = dict(row["checks"].get("excess") or {})
        zero = dict(row["checks"].get("zero_gradients") or {})
        share = functools.cache(functools.partial(self._zero_gradients, network))

        def add(name: str, score: Score) -> None:
            row["balanced"][name], excess[name] = score.balanced, _number(score.excess)
            row["correct"][name], row["class_images"] = list(score.correct), list(score.examples)

        if "natural" not in row:
            natural = self._score(network, NATURAL, None)
            row["natural"] = natural.accuracy
            add(NATURAL, natural)
        for name, attack in self._attacks.items():
            if name in row["robust"]:
                continue
            if isinstance(attack, Ensemble):
                outcome = self._ensemble(network, name, attack)
                score = Score.of(*self._by_class(outcome.broken_by == ROBUST), outcome.excess)
                zero[name] = outcome.zero_gradients
                found = {name: self._of_outcome(outcome)}
                row["autoattack"] = {**(row.get("autoattack") or {}), **found}
            else:
                score = self._score(network, name, attack)
                loss = loss_at_start(attack)
                if loss is not None:
                    zero[name] = share(loss)
            row["robust"][name] = score.accuracy
            add(name, score)
        if self._lacks_curve(row):
            row["curve"] = self._curve(network, row["natural"])
        row["checks"] = kept.checks(excess, zero)

    def _score(self, network: _Measured, name: str, attack: Attack | None) -> Score:
        if self._stop_requested():
            raise InterruptedRunError(
                f"evaluate: stopped in stage {network.stage}; finished stages are saved, the same"
                " command goes on from here"
            )
        measurement = self._subject.networks.measurement(network.form, self._subject.precision())
        score = measurement.under(attack)(network.plain, self._split, name)
        check_finite(score.not_finite, len(self._split), f"{network.stage}, {name}")
        return score

    def _zero_gradients(self, network: _Measured, loss: str) -> float:
        measurement = self._subject.networks.measurement(network.form, self._subject.precision())
        label = f"gradients of {loss}"
        return measurement.zero_gradients(loss)(network.plain, self._split, label)

    def _ensemble(self, network: _Measured, name: str, attack: Ensemble) -> Outcome:
        path = self._subject.workdir / ROBUSTNESS / f"{network.stage}-{name}.npz"
        label = f"{network.stage} {name}"
        packed = self._packed(network.form, attack)
        return packed(network.plain, self._split, label, path, self._stop_requested)

    def _new_packed(self, form: Model, attack: Ensemble) -> PackedAttack:
        config, devices = self._subject.config, self._subject.devices
        precision = self._subject.precision()

        def network(variables: Variables, images: Images) -> Logits:
            return models.logits_fn(form, variables)(images)

        return PackedAttack(
            network,
            attack.parts(),
            identity=f"{attack!r} {precision or ''}".strip(),
            seed=config.seed,
            batch_size=self._subject.networks.ensemble_batch(
                form, config.evaluate.batch_size, len(devices) * jax.process_count()
            ),
            devices=devices,
            precision=precision,
        )

    def _of_outcome(self, outcome: Outcome) -> dict[str, Any]:
        after = {name: outcome.robust(name) for name in outcome.names}
        balanced = {name: Score.of(*self._by_class(robust)) for name, robust in after.items()}
        return {
            "after": {name: score.accuracy for name, score in balanced.items()},
            "balanced": {name: score.balanced for name, score in balanced.items()},
            "seconds": outcome.seconds,
            "images": len(self._split),
            "seed": self._subject.config.seed,
            "zero_gradients": outcome.zero_gradients,
            "deterministic": outcome.deterministic,
        }

    def _by_class(self, robust: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts the robust and all examples of each class."""
        classes = self._subject.dataset.num_classes
        return (
            np.bincount(self._split.labels[robust], minlength=classes),
            np.bincount(self._split.labels, minlength=classes),
        )

    def _curve(self, network: _Measured, natural: float) -> list[dict[str, float]]:
        """Computes accuracy by radius; an example may break at a radius and not at a larger one."""
        curve = [{"epsilon": 0.0, "robust": natural}]
        for multiple in CURVE[1:]:
            attack = APGD(multiple * self._subject.config.attack.epsilon, steps=CURVE_STEPS)
            score = self._score(network, f"{multiple:g} epsilon", attack)
            curve.append({"epsilon": attack.epsilon, "robust": score.accuracy})
        return curve


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _sizes(variables: Any, architecture: Architecture) -> dict[str, Any]:
    layers = layer_sparsity(variables, architecture)
    fields = ("parameters", "kept", "flops", "kept_flops")
    total, kept, total_flops, flops = (sum(getattr(row, f) for row in layers) for f in fields)
    return {
        "sparsity": 1.0 - kept / total,
        "parameters": kept,
        "total": total,
        "flops": flops,
        "total_flops": total_flops,
        "layers": [row._asdict() for row in layers],
    }
