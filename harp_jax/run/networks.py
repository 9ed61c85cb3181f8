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


class Networks:
    """The forms of a run's network: dense, and sparse for each set of masks that stays fixed."""

    def __init__(self, model: nn.Module, sparse: bool, measure: Callable[[Model], Measurement]):
        """Compiles nothing.

        Args:
            model: The dense network.
            sparse: Whether to compute with the kept weights alone where that pays.
            measure: Builds the functions that measure a network.
        """
        self.model = model
        self._sparse, self._forms = sparse, {}
        self.measurement = functools.cache(measure)  # of a form, for all stages

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
