"""Chooses how a run computes with each network, and compiles what measures it once."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from harp_jax.data import Split
from harp_jax.evaluation.accuracy import Measurement
from harp_jax.export import Compact, compact
from harp_jax.export.trained import counts
from harp_jax.models.sparse import SparseNetwork, fastest
from harp_jax.pruning.costs import trace_layers
from harp_jax.pruning.layers import bake
from harp_jax.types import Model, Variables

LEAST_REMOVED = 0.1  # share of the FLOPs for which another program is worth its compilation
_COMPARED = 128  # images

_LOGGER = logging.getLogger(__name__)

# Images that a CPU device attacks at once (`attacks.groups`). The sparse kernels compute with
# vectors of images.
GROUP, SPARSE_GROUP = 16, 32
# Groups that an ensemble's parts attack at once, each with a program of its own.
ENSEMBLE_GROUPS = 2


class Networks:
    """The forms of a run's network: dense, and those that skip what is pruned.

    On CPUs a network of fixed masks computes with its kept weights alone, in finetuning too.
    Elsewhere dense products are fast and lone weights slow: there a network that is measured
    computes without the units that do nothing, see `harp_jax.export.compact`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sparse: bool,
        grouped: bool,
        measure: Callable[..., Measurement],
        platform: str = "cpu",
        images: Split | None = None,
    ):
        """Compiles nothing.

        Args:
            model: The dense network.
            sparse: Whether to skip what is pruned where that pays; the network is in float32.
            grouped: Whether to attack small groups of images; see `attacks.groups`.
            measure: Builds the functions that measure a network, from it, `group` and `precision`.
            platform: Of the devices that compute: 'cpu', 'gpu', 'tpu'.
            images: The first of them show whether a compact network has the same logits. None means
                that there are no compact ones.
        """
        self.model = model
        self._on_cpus, self._images = platform == "cpu", images
        self._sparse, self._grouped, self._measure, self._forms = sparse, grouped, measure, {}
        # Of a form at a precision, for all stages.
        self.measurement = functools.cache(self._measurement)

    def group(self, form: Model) -> int | None:
        """Returns the number of images that a device attacks at once; None means all."""
        if not self._grouped:
            return None
        return SPARSE_GROUP if isinstance(form, SparseNetwork) else GROUP

    def ensemble_batch(self, form: Model, batch_size: int, devices: int) -> int:
        """Returns the number of images that an ensemble attacks at once, over all devices.

        Args:
            form: The network.
            batch_size: The largest number; a multiple of `devices`.
            devices: Number of devices of all processes.
        """
        group = self.group(form)
        return batch_size if group is None else min(batch_size, ENSEMBLE_GROUPS * group * devices)

    def _measurement(self, form: Model, precision: str | None = None) -> Measurement:
        return self._measure(form, group=self.group(form), precision=precision)

    def of(self, name: str, variables: Variables) -> Model:
        """Returns the form for fixed masks; networks with equal masks get the same one.

        Args:
            name: Name of the stage, for the log.
            variables: All collections of the network, as concrete arrays.
        """
        use = self._sparse and self._on_cpus
        form: Any = fastest(self.model, variables) if use else self.model
        if not isinstance(form, SparseNetwork):
            return form
        if form.digest not in self._forms:
            self._forms[form.digest] = form
            layers, kept = len(form.kept), sum(len(each.index) for each in form.kept.values())
            text = "%s: %d layers compute with their %d kept weights alone, others as dense ones"
            _LOGGER.info(text, name, layers, kept)
        return self._forms[form.digest]

    def measured(self, name: str, variables: Variables) -> tuple[Model, Variables]:
        """Returns the form of a network that does not train any more, and its variables.

        Args:
            name: Name of the stage, for the log.
            variables: All collections of the network, as concrete arrays.

        Returns:
            (form, variables): the variables given, or those of the compact network.
        """
        small = None
        if self._sparse and not self._on_cpus and self._images is not None:
            small = self._compact(name, variables, self._images.take(slice(_COMPARED)).images)
        return (self.of(name, variables), variables) if small is None else small

    def _compact(self, name: str, variables: Variables, images: Any) -> Compact | None:
        """Returns the compact network, if there is one and it is smaller by enough."""
        plain = jax.device_get(jax.jit(bake)(variables))
        if not counts(plain)["sparsity"]:
            return None
        try:
            small = compact(self.model, plain, images)
        except ValueError as error:  # an operation that it does not know
            _LOGGER.info("%s: computes densely; %s", name, error)
            return None
        before = sum(layer.flops for layer in trace_layers(self.model, images.shape[1:]))
        removed = 1 - sum(row.flops or 0 for row in small.layers) / before
        if removed < LEAST_REMOVED:
            return None
        _LOGGER.info(
            "%s: computes without units that do nothing, %.0f %% fewer FLOPs", name, 100 * removed
        )
        return small
