"""The networks and rates that stages start from: found, checked, compared with those before."""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from harp_jax import checkpoint
from harp_jax.config.defaults import CHECKPOINT, JSON, default
from harp_jax.config.sections import Config, ConfigError
from harp_jax.pruning.layers import Path, layer_name
from harp_jax.run.initial_rates import read as read_rates
from harp_jax.training.stages import STAGES
from harp_jax.types import Normalization
from harp_jax.workdir import files, ownership, sources
from harp_jax.workdir.claims import WorkdirError
from harp_jax.workdir.sources import Source

_LOGGER = logging.getLogger(__name__)

PRODUCER = {"prune": "pretrain", "finetune": "prune"}  # whose network a stage starts from


def needed(config: Config) -> list[str]:
    """Returns the requested stages in their order, without any whose network nothing would read.

    A stage is left out if the next one is among those requested and has a source of its own, or is
    left out itself.
    """
    asked = [stage for stage in STAGES if stage in config.stages]
    for stage, producer in reversed(PRODUCER.items()):
        is_left_out = stage in config.stages and stage not in asked
        has_source = stage in asked and config[stage].source
        if producer in asked and (is_left_out or has_source):
            asked.remove(producer)
    return asked


STRATEGY = "prune.strategy"


def check_checkpoints(config: Config, workdir: epath.Path, data: Mapping[str, Any]) -> None:
    """Refuses checkpoints in a workdir that were saved in another run or another stage.

    Args:
        config: A valid configuration.
        workdir: Folder of the run.
        data: 'digests' of this run's data.

    Raises:
        WorkdirError: If there is one; it names the folder.
    """
    ours, defaults = ownership.plain(config), ownership.plain(default())
    for stage in STAGES:
        for folder, run, saved_in in checkpoint.origins(workdir / stage):
            if saved_in not in (None, stage):
                raise ownership.foreign(folder, f"is of stage {saved_in!r}")
            ownership.check_checkpoint(folder, run, ours, defaults, data)


class Sources(NamedTuple):
    """The sources of a run's stages.

    Attributes:
        config: A valid configuration.
        workdir: Folder of the run.
        expected: All collections of the pruned network, as shapes.
        normalization: Of the network.
        pruned: Paths of the kernels that are pruned.
        data: 'digests' of this run's data.
    """

    config: Config
    workdir: epath.Path
    expected: Mapping[str, Any]
    normalization: Normalization | None
    pruned: list[Path]
    data: Mapping[str, Any]

    def check(self, earlier: Mapping[str, Any] | None) -> dict[str, dict[str, Source]]:
        """Checks the sources of the stages that were asked for, and of those that have begun.

        Args:
            earlier: Content of the workdir's config.json; None if there is none.

        Returns:
            For each stage that has begun what it started from, by field.

        Raises:
            ConfigError: If there is nothing that a stage could start from.
            CheckpointError: If a source is missing or is not of this network.
            WorkdirError: If a stage that has begun is given another source.
        """
        begun = {}
        for stage in STAGES:
            if checkpoint.has_begun(self.workdir / stage):
                if earlier is None:
                    self._check_not_trained(stage)
                begun[stage] = {} if earlier is None else self._of_begun(stage, earlier)
        asked = needed(self.config)
        if "prune" in asked and not self._complete("prune"):
            read_rates(self.config, self.pruned)
        for stage, producer in PRODUCER.items():
            if stage not in asked or self._complete(stage):
                continue
            if self.config[stage].source or self._complete(producer):
                self.network(stage)
                self._say_what_it_saw(stage)
            elif producer not in asked:
                raise ConfigError(
                    f"{stage}.source='': allowed are a checkpoint, or '' with {producer!r} among"
                    f" the stages or complete in {self.workdir}"
                )
        return begun

    def begin(self, stage: str, network: Mapping[str, Any]) -> None:
        """Records what a stage starts from, unless it has begun before.

        Args:
            stage: 'prune' or 'finetune'.
            network: The collections that it starts from.
        """
        if checkpoint.has_begun(self.workdir / stage):
            return
        source = Source(self.config[stage].source, checkpoint.digest(jax.device_get(network)))
        found = {f"{stage}.source": source}
        if stage == "prune":
            found |= self._strategy()
        sources.record(self.workdir, found)

    def network(self, stage: str) -> dict[str, Any]:
        """Loads the collections that a stage starts from.

        Args:
            stage: 'prune' or 'finetune'.

        Raises:
            CheckpointError: If they are missing or are not of this network.
        """
        path = self._path(stage)
        collections = tuple(c for c in ("params", "batch_stats") if c in self.expected)
        if stage == "finetune":
            collections += ("scores", "rates", "minimum_rates")
        try:
            found = checkpoint.load(path)
            checkpoint.check_fits(found, self.expected, collections, str(path))
            ours = {
                "model": self.config.model,
                "width": self.config.width,
                "normalization": self.normalization,
            }
            checkpoint.check_metadata(found["metadata"], ours, str(path))
            if stage == "prune" and "scores" in found:
                raise checkpoint.CheckpointError(f"{path}: is pruned; allowed are dense networks")
        except checkpoint.CheckpointError as error:
            text = str(error).removeprefix(f"{path}: ")
            raise checkpoint.CheckpointError(f"{stage}.source={str(path)!r}: {text}") from None
        return {name: jax.tree.map(jnp.asarray, found[name]) for name in collections}

    def _check_not_trained(self, stage: str) -> None:
        """Refuses a stage of an unknown run; an imported network has no checkpoints beside it."""
        if (self.workdir / stage / files.CHECKPOINTS).exists():
            raise WorkdirError(
                f"workdir={str(self.workdir)!r}: has {stage}/{files.CHECKPOINTS} but no"
                f" {files.CONFIG} that says whose they are; allowed are a new folder, or to put"
                " that file back"
            )

    def _complete(self, stage: str) -> bool:
        return checkpoint.is_complete(self.workdir / stage)

    def _path(self, stage: str) -> epath.Path:
        path = checkpoint.absolute(self.config[stage].source or self.workdir)
        own = path / PRODUCER[stage]
        return own if not self.config[stage].source or checkpoint.is_complete(own) else path

    def _say_what_it_saw(self, stage: str) -> None:
        if self.config[stage].source:
            sentence = sources.trained_on_others(self._path(stage), self.data)
            if sentence is not None:
                _LOGGER.warning("%s.source: %s", stage, sentence)

    def _strategy(self) -> dict[str, Source]:
        """Digests the rates of a file or a checkpoint; none where a rule makes them."""
        given = self.config.prune.strategy
        if not given.startswith((JSON, CHECKPOINT)):
            return {}
        rates = read_rates(self.config, self.pruned) or {}
        text = json.dumps({layer_name(path): rate for path, rate in rates.items()}, sort_keys=True)
        return {STRATEGY: Source(given, hashlib.sha256(text.encode()).hexdigest())}

    def _of_begun(self, stage: str, earlier: Mapping[str, Any]) -> dict[str, Source]:
        """Checks that a stage that has begun is given what it started from; returns that."""
        fields = {f"{stage}.source": self.config[stage].source} if stage in PRODUCER else {}
        if stage == "prune" and self.config.prune.strategy.startswith((JSON, CHECKPOINT)):
            fields[STRATEGY] = self.config.prune.strategy
        found = {}
        for field, given in fields.items():
            before = sources.recorded(earlier, field)
            if self._is_read(stage, before.given, given):
                now = Source(given, self._digest(field, may_be_gone=before.given == given))
                if now.digest is not None or before.given != given:
                    sources.check_same(self.workdir, field, before, now)
            found[field] = before._replace(given=given)
        return found

    def _is_read(self, stage: str, before: str, given: str) -> bool:
        """Returns whether a source of a stage that has begun has to be looked at."""
        return bool(before or given) and (before != given or stage in self.config.stages)

    def _digest(self, field: str, *, may_be_gone: bool) -> str | None:
        """Returns the digest of what a field gives; None if it is not there."""
        stage = field.partition(".")[0]
        try:
            if field == STRATEGY:
                return self._strategy()[STRATEGY].digest
            if not self.config[stage].source and not self._complete(PRODUCER[stage]):
                return None
            return checkpoint.digest(jax.device_get(self.network(stage)))
        except (checkpoint.CheckpointError, ConfigError):
            if may_be_gone:
                return None
            raise
