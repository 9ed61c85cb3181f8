"""A method around another one."""

import dataclasses
from typing import Any

from harp_jax.methods.base import AfterEpoch, Ascend, Links, Masking, Method, Probe, Setting
from harp_jax.pruning.scores import Granularity
from harp_jax.types import Variables


@dataclasses.dataclass(frozen=True)
class Wrapped(Method):
    """A method that behaves as the one inside; a subclass changes a part of it.

    Attributes:
        method: The method inside.
    """

    method: Method

    @property
    def stream(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The stream of the method inside."""
        return self.method.stream

    @property
    def trains(self) -> frozenset[Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The collections that the method inside trains."""
        return self.method.trains

    @property
    def granularities(self) -> tuple[Granularity, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The granularities that the method inside can prune."""
        return self.method.granularities

    def unstable(self, epochs: int, learning_rate: float) -> str | None:
        """Calls the method inside."""
        return self.method.unstable(epochs, learning_rate)

    def start(self, variables: dict[str, Any], setting: Setting, probe: Probe) -> dict[str, Any]:
        """Calls the method inside."""
        return self.method.start(variables, setting, probe)

    def links(self, setting: Setting, variables: Variables) -> Links:
        """Calls the method inside."""
        return self.method.links(setting, variables)

    def masking(self, setting: Setting, variables: Variables) -> Masking:
        """Calls the method inside."""
        return self.method.masking(setting, variables)

    def ascend(self, setting: Setting) -> Ascend | None:
        """Calls the method inside."""
        return self.method.ascend(setting)

    def after_epoch(self, setting: Setting, variables: Variables) -> AfterEpoch | None:
        """Calls the method inside."""
        return self.method.after_epoch(setting, variables)

    def chosen_from(self, setting: Setting) -> int:
        """Calls the method inside."""
        return self.method.chosen_from(setting)
