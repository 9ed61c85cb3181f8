"""A method around another one."""

import dataclasses
from typing import Any

from harp_jax.methods.base import Ascend, Links, Masking, Method, Probe, Setting
from harp_jax.types import Variables


@dataclasses.dataclass(frozen=True)
class Wrapped(Method):
    """Does what the method inside does; a subclass changes a part of it.

    Attributes:
        method: The method inside.
    """

    method: Method

    @property
    def stream(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the method inside."""
        return self.method.stream

    @property
    def trains(self) -> frozenset[Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the method inside trains."""
        return self.method.trains

    def unstable(self, epochs: int, learning_rate: float) -> str | None:
        """As the method inside."""
        return self.method.unstable(epochs, learning_rate)

    def start(self, variables: dict[str, Any], setting: Setting, probe: Probe) -> dict[str, Any]:
        """As the method inside."""
        return self.method.start(variables, setting, probe)

    def links(self, setting: Setting, variables: Variables) -> Links:
        """As the method inside."""
        return self.method.links(setting, variables)

    def masking(self, setting: Setting, variables: Variables) -> Masking:
        """As the method inside."""
        return self.method.masking(setting, variables)

    def ascend(self, setting: Setting) -> Ascend | None:
        """As the method inside."""
        return self.method.ascend(setting)
