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
from harp_jax.attacks.inputs import check_inputs
from harp_jax.attacks.objectives import OBJECTIVES, dlr_targeted, is_wrong, wrong_class
from harp_jax.settings import check, check_name
from harp_jax.types import ExampleKeys, Images, Labels, Logits, LogitsFn, PerExample, Selection

APGD_OBJECTIVES = ("ce", "dlr", "dlr_targeted")
MOMENTUM = 0.75

Number = Int[Array, ""] | int
# Images -> losses, flags of misclassified images, gradients.
Evaluation = Callable[[Images], tuple[PerExample, Selection, Images]]


class Found(NamedTuple):
    """Best points of an attack so far, per example."""

    adversarial: Images
    broken: Selection
    loss: PerExample  # largest loss of all runs so far; -inf before the first run


@dataclasses.dataclass(frozen=True)
class APGD:
    """APGD: steps with momentum; the step size is halved when the loss stops growing.

    A run starts at a random point at distance `epsilon` (before clipping to [0, 1]), with steps of
    size 2 * epsilon. At checkpoints an example's step is halved, and it restarts from its best
    point, if its loss grew in at most a fraction `rho` of the steps since the last checkpoint, or
    if neither its best loss nor its step has changed since then.

    'dlr_targeted' (APGD-T) makes `restarts` runs for each of the `targets` most likely wrong
    classes of the clean image. The result is the first misclassified point of an example, which is
    the clean image if that is misclassified. If all points are classified correctly, the result is
    the point with the largest loss.

    As in the published implementation, checkpoints are whole numbers of steps (fractions of `steps`
    are rounded down), "at most `rho`" includes equality, and the second condition applies from the
    second checkpoint on. The first step's loss is compared with the start's, as in the paper; the
    implementation compares it with zero.

    Attributes:
        epsilon: Radius of the ball, on the [0, 1] scale.
        norm: 'linf' or 'l2'.
        objective: 'ce', 'dlr' or 'dlr_targeted', see `objectives`.
        steps: Number of gradient steps of a run, >= 1; a run evaluates steps + 1 points.
        restarts: Number of runs, >= 1; per target class for 'dlr_targeted'.
        targets: Number of target classes of 'dlr_targeted', >= 1; all wrong classes if there are
            fewer.
        rho: Largest fraction of successful steps at which the step is halved, in (0, 1).
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
        check_name(self, "objective", APGD_OBJECTIVES)
        check(self, "rho", 0 < self.rho < 1, "numbers in (0, 1)")

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch; see `Attack`.

        Returns:
            Adversarial images in [0, 1], within `epsilon` of the clean ones.
        """
        check_inputs(logits_fn, images, labels, key)
        keys = norms.per_example_keys(key, len(images))
        logits = logits_fn(images)
        run = functools.partial(self._run, logits_fn, images, labels, logits, keys)
        start = _untouched(images, labels, logits)
        return lax.fori_loop(0, self.rounds(logits.shape[-1]), run, start).adversarial

    def rounds(self, classes: int) -> int:
        """Returns the number of runs against a network with `classes` classes."""
        if self.objective != "dlr_targeted":
            return self.restarts
        return self.restarts * min(self.targets, classes - 1)

    def start(self, task: Task) -> State:
        """Returns the clean images as state."""
        return untouched(task)

    def advance(self, task: Task, state: State) -> State:
        """Makes a whole run; unbroken examples end at their point with the largest loss."""
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
        """Makes a run on the unbroken examples; `logits` are those of the clean images."""
        loss = OBJECTIVES[self.objective]
        if self.objective == "dlr_targeted":
            targets = wrong_class(logits, labels, number // self.restarts)
            loss = functools.partial(dlr_targeted, targets=targets)
        noise = norms.surface_noise(norms.fold_keys(keys, number), images, self.epsilon, self.norm)
        start = norms.project(images + noise, images, self.epsilon, self.norm)
        return self._climb(_evaluation(logits_fn, labels, loss), images, start, best)

    def _climb(self, evaluate: Evaluation, images: Images, start: Images, best: Found) -> Found:
        """Runs algorithm 1 from `start`; ends early if all examples are broken."""
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
        """Returns the next iterate: a projected step plus momentum, projected again."""
        project = functools.partial(
            norms.project, images=images, epsilon=self.epsilon, norm=self.norm
        )
        x = state.x
        step_size = norms.expand(state.step_size)
        moved = project(norms.ascend(x, state.gradient, step_size, self.norm))
        share = jnp.where(state.step > 1, MOMENTUM, 1.0)
        return project(x + share * (moved - x) + (1 - share) * (x - state.previous))


class _State(NamedTuple):
    """State of the loop; all but `step` have one entry per example."""

    step: Int[Array, ""]
    x: Images  # start of the next step; then its gradient and the previous iterate
    gradient: Images
    previous: Images
    loss: PerExample  # loss of the last iterate
    step_size: PerExample
    best_x: Images  # point with the largest loss; then its gradient
    best_gradient: Images
    best_loss: PerExample
    increases: Int[Array, " batch"]  # steps since the last checkpoint that raised the loss
    checked_loss: PerExample  # best loss at the last checkpoint
    halved: Selection  # whether the step was halved at the last checkpoint
    adversarial: Images  # first misclassified point
    broken: Selection


def _first_state(start: Images, best: Found, epsilon: float) -> _State:
    """Returns a state whose step 0 only evaluates the start.

    So the compiled program contains the network once, not once more before the loop.
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
    """Returns the state after the evaluation of `x`."""
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
    """Halves the steps of stalled examples if this is a checkpoint (`allowed` >= 0)."""
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
    """Returns, for steps 0..steps, the most increases that still halve the step; -1 elsewhere.

    The first distance between checkpoints is 22 % of the steps; each next one is 3 % shorter, down
    to 6 %. Step 0 is a checkpoint that only starts the count.
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
    """Builds a function that evaluates points by one forward and one backward pass."""

    def total(images):
        logits = logits_fn(images)
        losses = objective(logits, labels)
        return losses.sum(), (losses, is_wrong(logits, labels))

    def evaluate(images):
        (_, (losses, wrong)), gradient = jax.value_and_grad(total, has_aux=True)(images)
        return losses, wrong, gradient

    return evaluate


def _untouched(images: Images, labels: Labels, logits: Logits) -> Found:
    """Returns the state before the first run."""
    return Found(images, is_wrong(logits, labels), jnp.full(len(images), -jnp.inf))
