"""What a pruning method is, what it is told of a run, and how masks enter a training step."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import optax
from jaxtyping import Array, Int

from harp_jax.pruning.layers import bake
from harp_jax.pruning.schemes import Scheme
from harp_jax.pruning.scores import Granularity
from harp_jax.types import Images, Labels, LogitsFn, Variables

Trained = Literal["weights", "norm", "scores", "rates"]
Links = dict[str, optax.GradientTransformation]
# (scores, their gradient) -> the scores at which the gradient of the update is taken.
Ascend = Callable[[Any, Any], Any]


class Masking(NamedTuple):
    """How masks enter a training step.

    Attributes:
        seen: (all collections) -> the `params` that the passes compute with, differentiable.
        follow: (variables after a step, those before it, the params that were seen, updates done in
            this stage) -> the variables that the step hands on.
    """

    seen: Callable[[Variables], Any]
    follow: Callable[[dict[str, Any], Variables, Any, Int[Array, ""]], dict[str, Any]] = (
        lambda variables, before, params, updates: variables
    )


PLAIN = Masking(seen=lambda variables: bake(variables)["params"])


class Setting(NamedTuple):
    """What a method is told of the run.

    Attributes:
        scheme: How the network is pruned.
        target: Share of the dense cost that may stay, in (0, 1].
        minimum: Smallest rate of a layer, in [0, 1).
        updates_per_epoch: Updates of the optimiser in an epoch, >= 1.
        epochs: Epochs of the prune stage, >= 1.
        seed: Of the run.
    """

    scheme: Scheme
    target: float
    minimum: float
    updates_per_epoch: int
    epochs: int
    seed: int


@runtime_checkable
class Probe(Protocol):
    """The model, the training data and the gradients that a method may look at before it starts."""

    def logits_fn(self, variables: Variables) -> LogitsFn:
        """The network in inference mode."""
        ...

    def batches(self) -> Iterator[tuple[Images, Labels]]:
        """This process's part of the batches of the first epoch, as they are in the data set."""
        ...

    def gradient(self, variables: Variables, batches: int = 1) -> Any:
        """The gradient of the training loss at the kernels that the masks let through.

        Args:
            variables: All collections.
            batches: Over how many of the first epoch's batches to take the mean, >= 1.

        Returns:
            A tree like `params`, the mean over all devices and processes.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to prune. A method is a subclass in a file of its own.

    Its fields are its settings, with defaults, checked in `__post_init__` (`settings.check`).

    Attributes:
        stream: Part of the random key of the stage, a number of its own for good. Those of the
            package are below 100.
        trains: What the prune stage trains; nothing: the method chooses in one shot.
        granularities: Those that it can prune.
    """

    stream: ClassVar[int] = 100
    trains: ClassVar[frozenset[Trained]] = frozenset()
    granularities: ClassVar[tuple[Granularity, ...]] = ("weight", "channel")

    def unstable(self, epochs: int, learning_rate: float) -> str | None:
        """Whether the settings do not go with the prune stage's.

        Args:
            epochs: Of the prune stage.
            learning_rate: Of the prune stage.

        Returns:
            The allowed values in words, or None where all is well.
        """
        del epochs, learning_rate

    def start(self, variables: dict[str, Any], setting: Setting, probe: Probe) -> dict[str, Any]:
        """The variables that the prune stage starts from.

        Args:
            variables: Of the dense network, with the scores of its weights and the first rates.
            setting: Of the run.
            probe: The model, the training data and its gradients.

        Returns:
            Variables of the same structure.
        """
        del setting, probe
        return variables

    def links(self, setting: Setting, variables: Variables) -> Links:
        """Further links of the stage's optimiser.

        Args:
            setting: Of the run.
            variables: Those that the stage starts from.

        Returns:
            By the name of an argument of `training.optim.optimizer`.
        """
        del setting, variables
        return {}

    def masking(self, setting: Setting, variables: Variables) -> Masking:
        """How masks enter the steps; the arguments are those of `links`."""
        del setting, variables
        return PLAIN

    def ascend(self, setting: Setting) -> Ascend | None:
        """Where the gradient of a step is taken: None is at the scores as they are."""
        del setting

    @property
    def learns_masks(self) -> bool:
        """Whether scores or rates train."""
        return bool({"scores", "rates"} & self.trains)
