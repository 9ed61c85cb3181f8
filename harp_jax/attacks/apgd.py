"""Auto-PGD (Croce & Hein, 2020, algorithm 1): PGD that chooses its own step size."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Key

from harp_jax.attacks import norms
from harp_jax.attacks.base import State, Task, check_settings, finished, untouched
from harp_jax.attacks.objectives import OBJECTIVES, dlr_targeted, wrong_class
from harp_jax.settings import check
from harp_jax.types import ExampleKeys, Images, Labels, Logits, LogitsFn, PerExample, Selection

APGD_OBJECTIVES = ("ce", "dlr", "dlr_targeted")
MOMENTUM = 0.75

Number = Int[Array, ""] | int
# Images -> losses, whether they are misclassified, gradients.
Evaluation = Callable[[Images], tuple[PerExample, Selection, Images]]


class Found(NamedTuple):
    """What an attack has found so far, per example."""

    adversarial: Images
    broken: Selection
    loss: PerExample  # the largest of all runs so far; -inf before the first


@dataclasses.dataclass(frozen=True)
class APGD:
    """APGD: steps with momentum, halved where they do not pay, restarted from the best point.

    A run starts at a random point at distance `epsilon` (before the box), with steps of
    2 * epsilon. At checkpoints an example's step is halved, and the example goes back to its best
    point, if its loss grew in at most `rho` of the steps since the last one, or if neither its best
    loss nor its step changed since then.

    'dlr_targeted' (APGD-T) makes `restarts` runs for each of the `targets` most likely wrong
    classes of the clean image. An example is returned as the first point that is misclassified, a
    misclassified image as it is; of an example that withstands all runs, the point with the
    largest loss is.

    As in the published implementation the checkpoints are whole numbers of steps (all fractions of
    `steps` rounded down), "at most `rho`" includes equality, and the second condition waits for
    the second checkpoint. The first step's loss is compared with the start's, as in the paper; the
    implementation compares it with zero.

    Attributes:
        epsilon: Radius of the ball, on the [0, 1] scale.
        norm: 'linf' or 'l2'.
        objective: 'ce', 'dlr' or 'dlr_targeted', see `objectives`.
        steps: Number of gradient steps of a run, >= 1; a run costs one evaluation more.
        restarts: Number of runs, for each target if there are targets; >= 1.
        targets: Number of target classes, >= 1, at most all wrong ones; of 'dlr_targeted' only.
        rho: Share of successful steps up to which the step is halved, in (0, 1).
    """

    epsilon: float
    norm: str = "linf"
    objective: str = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    rho: float = 0.75

    uses_gradients = True
    in_pieces = False

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the first one out of range."""
        check_settings(self, "steps", "restarts", "targets")
        check(self, "objective", self.objective in APGD_OBJECTIVES, ", ".join(APGD_OBJECTIVES))
        check(self, "rho", 0 < self.rho < 1, "numbers in (0, 1)")

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch with all runs; see `Attack`.

        Returns:
            Adversarial images in [0, 1], within `epsilon` of the clean ones.
        """
        keys = norms.per_example_keys(key, len(images))
        logits = logits_fn(images)
        run = functools.partial(self._run, logits_fn, images, labels, logits, keys)
        start = _untouched(images, labels, logits)
        return lax.fori_loop(0, self.rounds(logits.shape[-1]), run, start).adversarial

    def rounds(self, classes: int) -> int:
        """Number of runs of an attack on a network with so many classes."""
        if self.objective != "dlr_targeted":
            return self.restarts
        return self.restarts * min(self.targets, classes - 1)

    def start(self, task: Task) -> State:
        """The clean images."""
        return untouched(task)

    def advance(self, task: Task, state: State) -> State:
        """A whole run; of examples that withstand it, the points with the largest loss."""
        logits_fn, images, labels, keys, number = task
        best = Found(state.adversarial, state.done, jnp.full(len(images), -jnp.inf))
        logits = logits_fn(images)
        found = self._run(logits_fn, images, labels, logits, keys, number, best)
        return finished(found.adversarial)

    def _run(
        self,
        logits_fn: LogitsFn,
        images: Images,
        labels: Labels,
        logits: Logits,
        keys: Key[Array, " batch"],
        number: Number,
        best: Found,
    ) -> Found:
        """A run that leaves alone what is broken; `logits` are the clean images'."""
        loss = OBJECTIVES[self.objective]
        if self.objective == "dlr_targeted":
            targets = wrong_class(logits, labels, number // self.restarts)
            loss = functools.partial(dlr_targeted, targets=targets)
        noise = norms.surface_noise(norms.fold_keys(keys, number), images, self.epsilon, self.norm)
        start = norms.project(images + noise, images, self.epsilon, self.norm)
        return self._climb(_evaluation(logits_fn, labels, loss), images, start, best)

    def _climb(self, evaluate: Evaluation, images: Images, start: Images, best: Found) -> Found:
        """Algorithm 1 from `start`, until all examples are broken."""
        allowed = jnp.asarray(_allowed_increases(self.steps, self.rho))

        def unfinished(state: _State):
            return (state.step <= self.steps) & ~state.broken.all()

        def step(state: _State) -> _State:
            x = self._move(state, images)
            loss, wrong, gradient = evaluate(x)
            state = _recorded(state, x, loss, wrong, gradient)
            return _checked(state, allowed[state.step])._replace(step=state.step + 1)

        end = lax.while_loop(unfinished, step, _first_state(start, best, self.epsilon))
        better = (end.best_loss > best.loss) & ~end.broken
        return Found(
            adversarial=norms.select(better, end.best_x, end.adversarial),
            broken=end.broken,
            loss=jnp.maximum(end.best_loss, best.loss),
        )

    def _move(self, state: "_State", images: Images) -> Images:
        """The next iterate: a projected step, mixed with the last movement, projected again."""
        project = functools.partial(
            norms.project, images=images, epsilon=self.epsilon, norm=self.norm
        )
        x = state.x
        step_size = norms.expand(state.step_size)
        moved = project(norms.ascend(x, state.gradient, step_size, self.norm))
        share = jnp.where(state.step > 1, MOMENTUM, 1.0)
        return project(x + share * (moved - x) + (1 - share) * (x - state.previous))


class _State(NamedTuple):
    """The loop's variables; all but `step` have one entry per example."""

    step: Int[Array, ""]
    x: Images  # where the next step starts, with its gradient and the iterate before
    gradient: Images
    previous: Images
    loss: PerExample  # of the last iterate
    step_size: PerExample
    best_x: Images  # point of the largest loss, with its gradient
    best_gradient: Images
    best_loss: PerExample
    increases: Int[Array, " batch"]  # steps since the last checkpoint that raised the loss
    checked_loss: PerExample  # best loss at the last checkpoint
    halved: Selection  # at the last checkpoint
    adversarial: Images  # first misclassified point
    broken: Selection


def _first_state(start: Images, best: Found, epsilon: float) -> _State:
    """The state in which step 0 does not move: it evaluates the start.

    So the program holds the network once, not a second time before the loop.
    """
    nothing = jnp.full(len(start), -jnp.inf)
    return _State(
        step=jnp.int32(0),
        x=start,
        gradient=jnp.zeros_like(start),
        previous=start,
        loss=nothing,
        step_size=jnp.full(len(start), 2.0 * epsilon),
        best_x=start,
        best_gradient=jnp.zeros_like(start),
        best_loss=nothing,
        increases=jnp.zeros(len(start), jnp.int32),
        checked_loss=nothing,
        halved=jnp.ones(len(start), bool),
        adversarial=best.adversarial,
        broken=best.broken,
    )


def _recorded(
    state: _State, x: Images, loss: PerExample, wrong: Selection, gradient: Images
) -> _State:
    """The state after an evaluation of `x`."""
    improved = loss > state.best_loss
    return state._replace(
        x=x,
        gradient=gradient,
        previous=state.x,
        loss=loss,
        best_x=norms.select(improved, x, state.best_x),
        best_gradient=norms.select(improved, gradient, state.best_gradient),
        best_loss=jnp.where(improved, loss, state.best_loss),
        increases=state.increases + (loss > state.loss),
        adversarial=norms.select(wrong & ~state.broken, x, state.adversarial),
        broken=state.broken | wrong,
    )


def _checked(state: _State, allowed: Int[Array, ""]) -> _State:
    """Halves the steps that do not pay, if this is a checkpoint: `allowed` >= 0."""
    first, checkpoint = state.step == 0, allowed >= 0
    stuck = ~state.halved & (state.checked_loss >= state.best_loss)
    halve = checkpoint & ~first & (stuck | (state.increases <= allowed))
    return state._replace(
        x=norms.select(halve, state.best_x, state.x),
        gradient=norms.select(halve, state.best_gradient, state.gradient),
        step_size=jnp.where(halve, state.step_size / 2, state.step_size),
        increases=jnp.where(checkpoint, 0, state.increases),
        checked_loss=jnp.where(checkpoint, state.best_loss, state.checked_loss),
        halved=jnp.where(checkpoint, halve | first, state.halved),
    )


def _allowed_increases(steps: int, rho: float) -> np.ndarray:
    """For steps 0..steps: at most how many increases halve the step; -1 where nothing is checked.

    Checkpoints are 22 % of the steps apart, then 3 % less each time, down to 6 %; step 0 is one too
    and only begins the count.
    """
    allowed = np.full(steps + 1, -1, np.int32)
    allowed[0] = 0
    apart, less, least = (max(percent * steps // 100, 1) for percent in (22, 3, 6))
    place = apart
    while place <= steps:
        allowed[place] = int(rho * apart)
        apart = max(apart - less, least)
        place += apart
    return allowed


def _evaluation(
    logits_fn: LogitsFn, labels: Labels, objective: Callable[..., PerExample]
) -> Evaluation:
    """One forward and one backward pass."""

    def total(images):
        logits = logits_fn(images)
        losses = objective(logits, labels)
        return losses.sum(), (losses, logits.argmax(-1) != labels)

    def evaluate(images):
        (_, (losses, wrong)), gradient = jax.value_and_grad(total, has_aux=True)(images)
        return losses, wrong, gradient

    return evaluate


def _untouched(images: Images, labels: Labels, logits: Logits) -> Found:
    """What is known before the first run."""
    return Found(images, logits.argmax(-1) != labels, jnp.full(len(images), -jnp.inf))
