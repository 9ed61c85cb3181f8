"""The base class of pruning methods, the setting that they get, and masks in a training step."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Int

from harp_jax.pruning.compression import TargetAt
from harp_jax.pruning.layers import bake
from harp_jax.pruning.schemes import Scheme
from harp_jax.pruning.scores import Granularity
from harp_jax.types import Images, Labels, LogitsFn, Variables

Trained = Literal["weights", "norm", "scores", "rates"]
Links = dict[str, Any]
# (scores, their gradient) -> the scores at which the gradient of the update is taken.
Ascend = Callable[[Any, Any], Any]
# Two accuracies of an epoch: of training, and on the validation split as the loss chooses networks.
Accuracies = Sequence[float]
# (variables at the end of an epoch, accuracies of all epochs so far) -> those that go on.
AfterEpoch = Callable[[dict[str, Any], Sequence[Accuracies]], dict[str, Any]]


class Masking(NamedTuple):
    """How masks enter a training step.

    Attributes:
        seen: (all collections) -> the `params` that the passes compute with, differentiable.
        follow: (variables after a step, variables before it, the result of `seen`, updates done in
            this stage) -> the variables that the step returns. `seen` is of the variables before
            the update; in Free-AT, whose step makes several, of those after the last one.
        first: (variables that the stage starts from) -> those that the first step takes.
        regrow: (what `follow` returned, the gradient of the training loss with respect to the
            result of `seen`, updates done in this stage) -> the variables that the step returns.
            The gradient is the mean over all devices; masked weights have one too. None changes
            nothing.
    """

    seen: Callable[[Variables], Any]
    follow: Callable[[dict[str, Any], Variables, Any, Int[Array, ""]], dict[str, Any]] = (
        lambda variables, before, params, updates: variables
    )
    first: Callable[[dict[str, Any]], dict[str, Any]] = lambda variables: variables
    regrow: Callable[[dict[str, Any], Any, Int[Array, ""]], dict[str, Any]] | None = None


PLAIN = Masking(seen=lambda variables: bake(variables)["params"])


class Setting(NamedTuple):
    """The facts of a run that a method gets.

    Attributes:
        scheme: The scheme of the network.
        target: Share of the dense cost that may stay, in (0, 1].
        minimum: Smallest rate of a layer, in [0, 1).
        updates_per_epoch: Updates of the optimiser in an epoch, >= 1.
        epochs: Epochs of the prune stage, >= 1.
        seed: The seed of the run.
        target_at: Updates done -> the target of the moment, for the compression loss of a method
            that learns rates (`prune.anneal`); None if it is `target` all the time.
        updates_per_batch: Updates of the optimiser with each batch, >= 1.
    """

    scheme: Scheme
    target: float
    minimum: float
    updates_per_epoch: int
    epochs: int
    seed: int
    target_at: TargetAt | None = None
    updates_per_batch: int = 1

    def updates(self, share: float) -> int:
        """Computes how many updates a share of the stage, in [0, 1], has; rounded."""
        return round(share * self.epochs * self.updates_per_epoch)


@runtime_checkable
class Probe(Protocol):
    """The model, the training data and the gradients that a method may look at before it starts."""

    def logits_fn(self, variables: Variables) -> LogitsFn:
        """Returns the network in inference mode."""
        ...

    def batches(self) -> Iterator[tuple[Images, Labels]]:
        """Yields this process's part of the first epoch's batches, not augmented."""
        ...

    def gradient(self, variables: Variables, batches: int = 1) -> Any:
        """Computes the gradient of the training loss with respect to the masked kernels.

        Args:
            variables: All collections.
            batches: Number of the first epoch's batches to average over, >= 1.

        Returns:
            A tree like `params`, the mean over all devices and processes.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to prune. A method is a subclass in a file of its own.

    Its fields are its settings, with defaults, checked in `__post_init__` (`settings.check`).

    Attributes:
        stream: Part of the random key of the stage; each method has its own number, which never
            changes. Those of the package are below 100.
        trains: What the prune stage trains. If it is nothing, the method prunes in one shot.
        granularities: Granularities that the method can prune.
    """

    stream: ClassVar[int] = 100
    trains: ClassVar[frozenset[Trained]] = frozenset()
    granularities: ClassVar[tuple[Granularity, ...]] = ("weight", "channel")

    def unstable(self, epochs: int, learning_rate: float) -> str | None:
        """Returns the allowed values if the settings do not fit the prune stage.

        Args:
            epochs: Epochs of the prune stage.
            learning_rate: Base learning rate of the prune stage.

        Returns:
            The allowed values in words, or None if the settings fit.
        """
        del epochs, learning_rate

    def start(self, variables: dict[str, Any], setting: Setting, probe: Probe) -> dict[str, Any]:
        """Returns the variables that the prune stage starts from.

        Args:
            variables: Variables of the dense network, with the scores of its weights and the first
                rates.
            setting: The setting of the run.
            probe: The model, the training data and its gradients.

        Returns:
            Variables of the same structure.
        """
        del setting, probe
        return variables

    def links(self, setting: Setting, variables: Variables) -> Links:
        """Returns further links of the stage's optimiser.

        Args:
            setting: The setting of the run.
            variables: The variables that the stage starts from.

        Returns:
            Links by the name of their argument of `training.optim.optimizer`.
        """
        del setting, variables
        return {}

    def masking(self, setting: Setting, variables: Variables) -> Masking:
        """Returns how masks enter the steps; the arguments are those of `links`."""
        del setting, variables
        return PLAIN

    def ascend(self, setting: Setting) -> Ascend | None:
        """Returns a function that moves the scores for the gradient; None does not move them."""
        del setting

    def after_epoch(self, setting: Setting, variables: Variables) -> AfterEpoch | None:
        """Returns a function that changes the variables after each epoch; None changes nothing.

        The loop calls it on the host, after it has validated the epoch's network and before it
        saves the state. It is a function of its arguments alone. The arguments are those of
        `links`.
        """
        del setting, variables

    def chosen_from(self, setting: Setting) -> int:
        """Returns the first epoch whose network may be chosen as the stage's result."""
        del setting
        return 0

    @property
    def learns_masks(self) -> bool:
        """Whether scores or rates train."""
        return bool({"scores", "rates"} & self.trains)
