"""A whole run: the stages in order, each from a named checkpoint, in one workdir."""

import contextlib
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax.errors import FlaxError

from harp_jax import checkpoint, models, parallel, report
from harp_jax.attacks.groups import pays_in_groups
from harp_jax.config import check_batches, validate
from harp_jax.config import default as config_default
from harp_jax.config.recipes import with_recipe
from harp_jax.config.sections import (
    Config,
    ConfigError,
    load_data,
    loss,
    method,
    minimum_rate,
    normalization,
    validation_attack,
)
from harp_jax.config.validation import plain_numbers
from harp_jax.data import batches_per_epoch
from harp_jax.evaluation.accuracy import make_measurement
from harp_jax.interrupt import Interrupt
from harp_jax.pruning import schemes
from harp_jax.pruning.budget import shift_to_budget
from harp_jax.run import budget, initial_rates, recipe, usable
from harp_jax.run.evaluate import evaluate
from harp_jax.run.network_file import write_network
from harp_jax.run.networks import Networks
from harp_jax.run.paths import no_path
from harp_jax.run.rows import Subject
from harp_jax.run.sources import Sources, check_checkpoints, needed
from harp_jax.training import loop, metrics, stages, state
from harp_jax.training.probe import Probe
from harp_jax.training.stages import Stage
from harp_jax.workdir import claims, files, is_first_process, ownership, records
from harp_jax.workdir.lease import check_reachable

_LOGGER = logging.getLogger(__name__)


def run(config: Config, workdir: epath.PathLike) -> None:
    """Runs the configured stages; complete ones are skipped, an incomplete one resumes.

    All input is checked before anything compiles or is written.

    Args:
        config: See `harp_jax.config.default`.
        workdir: Folder of this run; it may be on gs://.

    Raises:
        ValueError: For bad input, in one line (ConfigError, DataError, CheckpointError).
        TrainingDivergedError: If the loss, a network or its logits are not finite.
        InterruptedRunError: If the run was asked to stop; its state is saved.
    """
    validate(config)
    config = with_recipe(plain_numbers(config))
    check_reachable(workdir)
    with Interrupt() as interrupt, contextlib.ExitStack() as until_the_end:
        experiment = _Experiment(config, checkpoint.absolute(workdir), interrupt, until_the_end)
        for stage in experiment.stages():
            experiment.train(stage)
        if "evaluate" in config.stages:
            experiment.evaluate()
        if "report" in config.stages:
            experiment.report()


class _Experiment:
    """A checked configuration with its data, network and workdir."""

    def __init__(
        self,
        config: Config,
        workdir: epath.Path,
        interrupt: Interrupt,
        until_the_end: contextlib.ExitStack,
    ):
        self.config, self.workdir, self.interrupt = config, workdir, interrupt
        self.devices = parallel.local_devices(config.devices)
        check_batches(config, len(self.devices) * jax.process_count())
        self.precision = parallel.precision_on(self.devices, config.matmul_precision)
        earlier = ownership.earlier_run(
            workdir,
            ownership.plain(config),
            ownership.plain(config_default()),
            otherwise=lambda: checkpoint.recorded_run(workdir),
        )
        records.read_table(workdir)  # one that cannot be read is an error before anything trains
        self.dataset = load_data(config)
        self.data = self.dataset.identity()
        ownership.check_data(workdir, earlier, self.data)
        check_checkpoints(config, workdir, self.data)
        self.batches_per_epoch = batches_per_epoch(self.dataset.train, config.batch_size)
        self.normalization = normalization(config, self.dataset.image_shape[-1])
        self.model = models.create(
            config.model,
            self.dataset.num_classes,
            axis_name=parallel.AXIS,
            normalization=self.normalization,
            dtype=config.compute_dtype,
            width=config.width,
        )
        self._check_steps()
        self.scheme = self._scheme()
        usable.check(config, self.model, self.dataset, len(self.devices) * jax.process_count())
        self.cost = self.scheme.cost
        self.target_share = self.cost.target_share(config.prune.target)
        self.expected = self._expected_variables()
        self._check_pruning()
        self.sources = Sources(
            config=config,
            workdir=workdir,
            expected=self.expected,
            normalization=self.normalization,
            pruned=self.scheme.architecture.pruned,
            data=self.data,
        )
        begun = self.sources.check(earlier)
        self._check_networks()
        until_the_end.enter_context(ownership.held(workdir))
        devices = parallel.names(self.devices)
        self.header = ownership.claim(config, workdir, earlier, devices, self.data, begun)
        _LOGGER.info("%s", self.header["devices"])
        platform = self.devices[0].platform
        self.networks = Networks(
            self.model,
            sparse=config.sparse == "auto" and config.compute_dtype == "float32",
            platform=platform,
            images=self.dataset.test,
            grouped=platform == "cpu" and pays_in_groups(self.expected["params"]),
            measure=functools.partial(
                make_measurement,
                seed=config.seed,
                batch_size=config.evaluate.batch_size,
                devices=self.devices,
            ),
        )

    def _check_steps(self) -> None:
        if self.batches_per_epoch == 0:
            raise ConfigError(
                f"batch_size={self.config.batch_size}: allowed are at most the"
                f" {len(self.dataset.train)} training examples"
            )

    def _scheme(self) -> schemes.Scheme:
        shape, prune = self.dataset.image_shape, self.config.prune
        try:
            scheme = schemes.scheme(self.model, shape, prune.granularity, prune.live)
        except Exception as error:  # a user's network may raise anything
            known = isinstance(error, ValueError) and not isinstance(error, FlaxError)
            if known and "; allowed " in str(error):
                raise ConfigError(f"model={self.config.model!r}: {error}") from None
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            if isinstance(error, ZeroDivisionError) and self.config.model in models.MODELS:
                reason = "nothing is left of them for a layer"  # an empty kernel in older JAX
            raise ConfigError(
                f"model={self.config.model!r}: cannot take images of {shape}"
                f" ({' '.join(reason.split())[:300]}); allowed are networks for such images"
            ) from error
        return scheme

    def _expected_variables(self) -> dict[str, Any]:
        """Computes the shapes of all collections of the pruned network."""
        images = jnp.zeros((1, *self.dataset.image_shape))

        def pruned(key: jax.Array) -> dict[str, Any]:
            variables: Any = self.model.init(key, images)
            rates = dict.fromkeys(self.scheme.architecture.pruned, 1.0)
            return self.scheme.make_prunable(variables, rates, 0.0)

        return jax.eval_shape(pruned, jax.random.key(0))

    def _check_pruning(self) -> None:
        """Refuses a target that the smallest rates miss, or that allows nothing."""
        if "prune" not in needed(self.config):
            return
        lowest = dict.fromkeys(self.scheme.architecture.pruned, -100.0)
        try:
            minimum = minimum_rate(self.config)
            shift_to_budget(lowest, minimum, self.cost, self.target_share)
        except ValueError as error:
            raise ConfigError(f"prune.{error}; allowed are larger targets") from None
        if int(self.target_share * self.cost.total) < 1:
            raise ConfigError(
                f"prune.target={self.config.prune.target}: is less than one of"
                f" {self.cost.total} {self.cost.unit}; allowed are larger targets"
            )

    def _check_networks(self) -> None:
        """Refuses stages without any network to train or to evaluate."""
        complete = [each for each in stages.STAGES if checkpoint.is_complete(self.workdir / each)]
        networks, wanted = {*complete, *self.stages()}, tuple(self.config.evaluate.stages)
        if "evaluate" in self.config.stages and networks and not networks & set(wanted):
            raise ConfigError(
                f"evaluate.stages={wanted}: allowed are those to run, and those complete in"
                f" {self.workdir} ({', '.join(complete)})"
            )
        if not networks:
            raise ConfigError(
                f"stages={tuple(self.config.stages)}: no complete stage in {self.workdir}; allowed"
                f" are lists with {stages.STAGES[0]!r}"
            )

    def stages(self) -> list[str]:
        """Returns the requested stages, without any whose network nothing would read."""
        asked = needed(self.config)
        for place, stage in enumerate(stages.STAGES):
            if stage in self.config.stages and stage not in asked:
                later = next(s for s in stages.STAGES[place + 1 :] if self.config[s].source)
                _LOGGER.info("%s: skipped, %s.source is set", stage, later)
        return asked

    def _start(self, stage: str) -> dict[str, Any]:
        """Returns the variables before the first step of a stage."""
        if stage == "pretrain":
            images = jnp.zeros((1, *self.dataset.image_shape))
            return dict(jax.jit(self.model.init)(jax.random.key(self.config.seed), images))
        variables = self.sources.network(stage)
        self.sources.begin(stage, variables)
        if stage == "finetune":
            note = no_path(self.config, self.model, self.dataset, variables)
            if note is not None:
                _LOGGER.warning("finetune: %s", note)
            return variables
        variables = initial_rates.start_pruning(self.config, variables, self.scheme, self.workdir)
        told = recipe.setting(self.config, self.scheme, self.batches_per_epoch)
        probe = Probe(
            self.model,
            loss(self.config, stage),
            validation_attack(self.config),
            self.dataset.train,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            devices=self.devices,
            precision=self.precision,
        )
        return method(self.config).start(variables, told, probe)

    def train(self, name: str) -> None:
        """Trains a stage, unless it is complete, and writes its result."""
        directory = self.workdir / name
        if checkpoint.is_complete(directory):
            _LOGGER.info("%s: complete, skipped", name)
            if (directory / files.CHECKPOINTS).exists():  # else it was not trained here
                self._check_records(name)
            return
        variables = self._start(name)
        stage = recipe.make_stage(self.config, name, self.scheme, self.batches_per_epoch, variables)
        if stage.trains:
            self._hand_on(name, self._fit(stage, variables, directory))
        else:
            self._hand_on(name, loop.Outcome(jax.device_get(variables), epoch=None, reached=True))

    def _check_records(self, stage: str) -> None:
        """Logs what is gone of the records of a complete stage, which are not made again."""
        metrics.check(self.workdir / stage, self.config[stage].epochs)
        if stage == "prune":
            initial_rates.check(self.workdir / files.STRATEGY)

    def _fit(self, stage: Stage, variables: dict[str, Any], directory: epath.Path) -> loop.Outcome:
        """Trains a stage in the loop."""
        describe_pruning = functools.partial(
            metrics.of_pruning,
            cost=self.cost,
            target=self.target_share,
            minimum=minimum_rate(self.config),
        )
        plan = loop.Plan(
            devices=self.devices,
            checkpoint_every_steps=self.config.checkpoint_every_steps,
            describe=describe_pruning if stage.name == "prune" else lambda _: {},
            stop_requested=self.interrupt.requested,
            checkpoint_minutes=self.config.checkpoint_minutes,
            keep_checkpoints=self.config.keep_checkpoints,
            run=claims.read_claim(self.workdir),
        )
        fixed = stage.name == "finetune" and stage.masking.regrow is None
        if stage.name == "finetune" and not fixed and self.config.sparse == "auto":
            _LOGGER.info("finetune: masks change (finetune.regrow), so it computes densely")
        network = self.networks.of(stage.name, variables) if fixed else self.model
        measurement = self.networks.measurement(network, self.precision)
        step = recipe.make_step(stage, network, self.networks.group(network))
        programs = loop.Programs(
            train_step=parallel.parallel(step, self.devices, (0,), self.precision),
            bake=measurement.bake,
            natural=measurement.under(None),
            robust=measurement.under(validation_attack(self.config)),
        )
        first = state.create(stage, variables, self.dataset.image_shape)
        return loop.fit(stage, plan, first, programs, self.dataset, directory)

    def _hand_on(self, stage: str, outcome: loop.Outcome) -> None:
        """Writes a stage's result; a pruned network is first brought onto its budget."""
        variables, notes = dict(outcome.variables), []
        if stage == "prune":
            variables, notes = budget.fit(self.config, variables, self.scheme, outcome.epoch)
            dense = schemes.stays_dense(self.scheme.architecture, variables["params"])
            notes = [*notes, *([] if dense is None else [f"prune: {dense}"])]
        wrong = state.not_finite(variables)
        if wrong is not None:
            raise loop.TrainingDivergedError(
                f"{stage}: {wrong}; allowed are networks of finite numbers, so it is not saved"
            )
        on_test = self.config.data.select_on == "test" and outcome.epoch is not None
        if on_test and outcome.reached:
            chosen = f"{stage}: the network of epoch {outcome.epoch} was chosen by its accuracy on"
            notes = [*notes, f"{chosen} test data (data.select_on='test'), so it looks too good"]
        for note in notes:
            _LOGGER.warning("%s", note)
        metadata = {
            "stage": stage,
            "epoch": outcome.epoch,
            "model": self.config.model,
            "num_classes": self.dataset.num_classes,
            "image_shape": list(self.dataset.image_shape),
            "normalization": self.normalization,
            "compute_dtype": self.config.compute_dtype,
            "width": self.config.width,
            "dataset": self.dataset.name,
            "seed": self.config.seed,
            "notes": notes,
        }
        records.drop_row(self.workdir, stage)  # it is of a network that this one replaces
        run = claims.read_claim(self.workdir)
        checkpoint.save_result(self.workdir / stage, variables, metadata, run)

    def evaluate(self) -> None:
        """Measures every complete stage on the test split."""
        subject = Subject(
            config=self.config,
            workdir=self.workdir,
            networks=self.networks,
            dataset=self.dataset,
            devices=self.devices,
            architecture=self.scheme.architecture,
        )
        evaluate(subject, self.header, self.interrupt.requested)

    def report(self) -> None:
        """Writes the pruned network as a file, if there is one, and the page."""
        write_network(self.workdir, self.config.model, self.dataset.test, self.devices[0])
        if is_first_process():
            _LOGGER.info("report: %s", report.write(self.workdir))
