"""Chooses how a run computes with each network, and compiles what measures it once."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from harp_jax.evaluation.accuracy import Measurement
from harp_jax.models.sparse import SparseNetwork, fastest
from harp_jax.types import Model, Variables

_LOGGER = logging.getLogger(__name__)

# Images that a CPU device attacks at once (`attacks.groups`). The sparse kernels compute with
# vectors of images.
GROUP, SPARSE_GROUP = 16, 32


class Networks:
    """The forms of a run's network: dense, and sparse for each set of masks that stays fixed."""

    def __init__(
        self,
        model: nn.Module,
        *,
        sparse: bool,
        grouped: bool,
        measure: Callable[..., Measurement],
    ):
        """Compiles nothing.

        Args:
            model: The dense network.
            sparse: Whether to compute with the kept weights alone where that pays.
            grouped: Whether to attack small groups of images; see `attacks.groups`.
            measure: Builds the functions that measure a network, from it and `group`.
        """
        self.model = model
        self._sparse, self._grouped, self._measure, self._forms = sparse, grouped, measure, {}
        self.measurement = functools.cache(self._measurement)  # of a form, for all stages

    def group(self, form: Model) -> int | None:
        """Returns the number of images that a device attacks at once; None means all."""
        if not self._grouped:
            return None
        return SPARSE_GROUP if isinstance(form, SparseNetwork) else GROUP

    def _measurement(self, form: Model) -> Measurement:
        return self._measure(form, group=self.group(form))

    def of(self, name: str, variables: Variables) -> Model:
        """Returns the form for fixed masks; networks with equal masks get the same one.

        Args:
            name: Name of the stage, for the log.
            variables: All collections of the network, as concrete arrays.
        """
        form: Any = fastest(self.model, variables) if self._sparse else self.model
        if not isinstance(form, SparseNetwork):
            return form
        if form.digest not in self._forms:
            self._forms[form.digest] = form
            layers, kept = len(form.kept), sum(len(each.index) for each in form.kept.values())
            _LOGGER.info("%s: %d layers compute with their %d weights alone", name, layers, kept)
        return self._forms[form.digest]
