"""The loop over a stage's epochs: train, validate, record, checkpoint, resume."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from harp_jax import parallel
from harp_jax.checkpoint import StageCheckpoints
from harp_jax.data import Batch, Dataset, train_batches
from harp_jax.evaluation.accuracy import Accuracy
from harp_jax.interrupt import SHARED_EVERY, InterruptedRunError
from harp_jax.training.metrics import MetricsLog, Row
from harp_jax.training.progress import Progress
from harp_jax.training.stages import Stage
from harp_jax.training.state import TrainState, not_finite, zero_sums
from harp_jax.training.waits import Waits
from harp_jax.types import Device
from harp_jax.workdir.files import CHECKPOINTS

SECONDS_BETWEEN_CHECKS = 1.0


class TrainingDivergedError(RuntimeError):
    """Raised if the loss, the state or the logits of validation are NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Devices, checkpoints and callbacks of a stage's loop.

    Attributes:
        devices: Local devices.
        checkpoint_every_steps: Steps between checkpoints inside an epoch; 0 for none.
        checkpoint_minutes: Minutes after which one is saved inside an epoch; 0 for never.
        keep_checkpoints: States to resume from that are kept, >= 1.
        run: Content of the run's config.json, saved in every checkpoint; None for none.
        describe: Function from the state at the end of an epoch to further entries of its row; for
            pruning they are 'compression' (with 'reached') and 'rates'.
        stop_requested: Called after every step with its number; True stops the run.
    """

    devices: Sequence[Device]
    checkpoint_every_steps: int
    describe: Callable[[TrainState], Row]
    stop_requested: Callable[[int], bool]
    checkpoint_minutes: float = 0.0
    keep_checkpoints: int = 2
    run: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a stage, each mapped over the devices.

    Attributes:
        train_step: (state, batch) -> state.
        bake: Variables -> plain variables.
        natural: Accuracy on clean images.
        robust: Accuracy under the training attack.
    """

    train_step: Callable[[TrainState, Any], TrainState]
    bake: Callable[[Any], Any]
    natural: Accuracy
    robust: Accuracy


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a stage.

    Attributes:
        variables: The best network, or the last one if no epoch could count as best.
        epoch: The epoch that the network comes from; None if nothing was trained.
        reached: Whether the compression target was reached.
    """

    variables: dict[str, Any]
    epoch: int | None
    reached: bool


def fit(
    stage: Stage,
    plan: Plan,
    state: TrainState,
    programs: Programs,
    dataset: Dataset,
    directory: epath.Path,
) -> Outcome:
    """Trains a stage to its end, from its last checkpoint if there is one.

    The best network has the highest accuracy on the validation split, under attack unless the loss
    says natural. While pruning, only epochs from the first one on that reaches the target count.

    Args:
        stage: The stage.
        plan: Devices, checkpoints and callbacks.
        state: State before the first step, on the host.
        programs: The compiled functions.
        dataset: The data; the train split trains, the validation split chooses the network.
        directory: The stage's folder.

    Returns:
        The network for the next stage.

    Raises:
        TrainingDivergedError: If the loss, the network or its logits of validation are not finite;
            it names the step and the last checkpoint.
        InterruptedRunError: If a stop was requested; the state is saved.
        CheckpointError: If a checkpoint is of another run, or the best network is damaged at the
            end. Damaged states are passed over: the stage goes on from the newest whole one, or
            from its start, and the log says what was lost.
    """
    loop = _Loop(stage, plan, programs, dataset, directory, state)
    try:
        return loop.run()
    finally:
        loop.close()


class _Loop:
    """The files, the progress and the device state of a stage that is being trained."""

    def __init__(
        self,
        stage: Stage,
        plan: Plan,
        programs: Programs,
        dataset: Dataset,
        directory: epath.Path,
        state: TrainState,
    ):
        self.stage, self.plan = stage, plan
        self.programs, self.dataset = programs, dataset
        self.checkpoints = StageCheckpoints(
            directory / CHECKPOINTS, plan.keep_checkpoints, plan.run
        )
        self.progress = Progress()
        restored = self.checkpoints.restore_last(state.variables, state.training())
        if restored is not None:
            variables, training, metadata = restored
            state = state.replace(variables=variables, **training)
            self.progress = Progress(**metadata["progress"])
        self.first_step = int(state.step)
        self.last_saved = None if restored is None else self.first_step
        self.saved_at = time.monotonic()
        self.state = parallel.replicate(state, plan.devices)
        self.waits = Waits()
        self.log = MetricsLog(directory, resume_at=self.first_step // stage.batches_per_epoch)
        self.bar = tqdm(
            total=stage.epochs * stage.batches_per_epoch * stage.batch_size,
            initial=self.first_step * stage.batch_size,
            unit="img",
            disable=None,  # shown on terminals only
        )

    def run(self) -> Outcome:
        first_epoch, start = divmod(self.first_step, self.stage.batches_per_epoch)
        for epoch in range(first_epoch, self.stage.epochs):
            self.bar.set_description(f"{self.stage.name} {epoch + 1}/{self.stage.epochs}")
            started = time.monotonic()
            stop = self.train_epoch(epoch, start)
            seconds = time.monotonic() - started
            images = (self.stage.batches_per_epoch - start) * self.stage.batch_size
            timing = {
                "seconds": seconds,
                "images_per_second": images / seconds,
                "data_wait": self.waits.share(),
            }
            self.finish_epoch(epoch, timing)
            if stop:
                self.stop(epoch)
            start = 0
        best = self.checkpoints.best()
        if best is None:
            last = parallel.to_host(self.state.network())
            return Outcome(last, self.stage.epochs - 1, self.progress.reached)
        return Outcome(best, best.pop("metadata")["epoch"], self.progress.reached)

    def train_epoch(self, epoch: int, start: int) -> bool:
        """Runs the steps of an epoch from `start` on; returns whether to stop at its end."""
        stage = self.stage
        batches = train_batches(
            self.dataset.train,
            seed=stage.seed,
            epoch=epoch,
            batch_size=stage.batch_size,
            devices=len(self.plan.devices),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            start=start,
        )
        with contextlib.closing(batches):
            return self.run_steps(epoch, epoch * stage.batches_per_epoch + start, batches)

    def run_steps(self, epoch: int, step: int, batches: Iterable[Batch]) -> bool:
        """Takes a step with each batch, the first of them after `step`.

        Saves and stops inside the epoch on request. After the last step it does neither: a resumed
        run starts from the state that `finish_epoch` leaves.

        Returns:
            Whether a stop was requested after the last step.
        """
        stage, plan = self.stage, self.plan
        checked, stop = time.monotonic(), False
        self.waits = Waits()
        on_devices = parallel.prefetch(batches, plan.devices)
        for batch in self.waits.over(on_devices, lambda: self.state.step.is_ready()):
            self.state = self.programs.train_step(self.state, batch)
            step += 1
            waited = step % parallel.STEPS_IN_FLIGHT == 0
            if waited:
                jax.block_until_ready(self.state.step)
            # Processes must look at the same step: one that ends would leave the others waiting.
            due = time.monotonic() - checked > SECONDS_BETWEEN_CHECKS
            if waited if jax.process_count() > 1 else due:
                self.check(step)
                checked = time.monotonic()
            stop = plan.stop_requested(step)
            within = step % stage.batches_per_epoch != 0
            if within and (stop or self.is_due(step)):
                self.save(step)
            if within and stop:
                self.stop(epoch)
        self.check(step)
        return stop

    def is_due(self, step: int) -> bool:
        """Returns whether a checkpoint is due inside an epoch, by steps or by the clock."""
        every, seconds = self.plan.checkpoint_every_steps, 60 * self.plan.checkpoint_minutes
        if every and step % every == 0:
            return True
        # Processes save together, but their clocks differ; they wait for each other to compare.
        if not seconds or (jax.process_count() > 1 and step % SHARED_EVERY):
            return False
        return parallel.anywhere(time.monotonic() - self.saved_at >= seconds)

    def stop(self, epoch: int) -> None:
        """Ends the run; its state is saved."""
        raise InterruptedRunError(
            f"{self.stage.name}: stopped in epoch {epoch} after step {self.last_saved}; all is"
            " saved, the same command goes on from here"
        )

    def check(self, step: int) -> None:
        """Waits for the device, shows the progress, and stops a run whose loss is not finite."""
        bad_step = int(parallel.to_host(self.state.sums["bad_step"]))
        if bad_step >= 0:
            raise self.diverged("the loss is not finite in", bad_step)
        self.bar.set_postfix_str(f"waits for data {self.waits.share():.0%}", refresh=False)
        self.bar.update(step * self.stage.batch_size - self.bar.n)

    def diverged(self, what: str, step: int) -> TrainingDivergedError:
        """Returns the error for a step, counted from 0."""
        good = "none" if self.last_saved is None else f"step {self.last_saved}"
        return TrainingDivergedError(
            f"{self.stage.name}: {what} epoch {step // self.stage.batches_per_epoch}, step {step};"
            f" last good checkpoint: {good} in {self.checkpoints.directory}; try a smaller"
            f" {self.stage.name}.learning_rate in a new workdir; this one keeps its settings"
        )

    def finite_state(self, step: int) -> TrainState:
        """Returns the state after a number of steps; stops the run if it is not finite.

        The loss of a step is that of the network before its update. So the last update before a
        save shows in the state alone.
        """
        self.check(step)
        state = parallel.to_host(self.state)
        wrong = not_finite({**state.variables, **state.training()})
        if wrong is not None:
            raise self.diverged(f"{wrong} after", step - 1)
        return state

    def validate(self, step: int) -> dict[str, float]:
        """Measures accuracy on the validation split, clean and under attack."""
        plain = self.programs.bake(self.state.network())
        measures = {"natural": self.programs.natural, "robust": self.programs.robust}
        accuracies = {}
        for name, measure in measures.items():
            split = self.dataset.validation
            score = measure(plain, split, f"validation, {name}")
            if score.not_finite:
                images = f"{score.not_finite} of {len(split)} images"
                raise self.diverged(
                    f"validation, {name}: the logits of {images} are not finite after", step - 1
                )
            accuracies[name] = score.accuracy
        return accuracies

    def finish_epoch(self, epoch: int, timing: Row) -> None:
        """Validates, records and saves; leaves the sums at zero for the next epoch."""
        state = self.finite_state((epoch + 1) * self.stage.batches_per_epoch)
        validation = self.validate(int(state.step))
        last_update = (state.step - 1) * self.stage.loss.updates_per_batch
        row = {
            "stage": self.stage.name,
            "epoch": epoch,
            "step": int(state.step),
            **timing,
            "learning_rate": float(np.asarray(self.stage.learning_rate(last_update))),
            "train": {
                "loss": float(state.sums["loss"] / state.sums["examples"]),
                "accuracy": float(state.sums["correct"] / state.sums["examples"]),
            },
            "validation": validation,
            **self.plan.describe(state),
        }
        reached = row.get("compression", {"reached": True})["reached"]
        accuracy = validation[self.stage.loss.chosen_by]
        row["best"] = self.progress.judge(self.stage, epoch, accuracy, reached)
        if row["best"]:
            self.checkpoints.save_best(
                int(state.step), state.network(), {"epoch": epoch, "validation": validation}
            )
        self.log.add(row)
        accuracies = row["train"]["accuracy"], accuracy
        changed = self.progress.go_on(self.stage, state.variables, accuracies)
        if changed is not None:
            changed = parallel.replicate(changed, self.plan.devices)
            self.state = self.state.replace(variables=changed)
        self.state = self.state.replace(sums=parallel.replicate(zero_sums(), self.plan.devices))
        self.save(int(state.step))

    def save(self, step: int) -> None:
        """Saves the state to resume from; never one that is not finite."""
        state = self.finite_state(step)
        metadata = {"stage": self.stage.name, "progress": dataclasses.asdict(self.progress)}
        self.checkpoints.save_last(int(state.step), state.variables, state.training(), metadata)
        self.last_saved, self.saved_at = step, time.monotonic()

    def close(self) -> None:
        self.bar.close()
        self.checkpoints.close()
