"""A comparison as data: which methods, at which sparsities, from which seeds."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

DENSE = "dense"

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """What is compared.

    Attributes:
        base: The configuration file that all cells start from.
        fields: What all of them change in it, {'data.train_examples': 20000, ...}.
        methods: By name, what each changes further.
        targets: Shares of the weights to keep.
        seeds: Seeds of every method and of the dense network.
        more_seeds: By method, seeds beyond those.
        more_targets: By method, targets beyond those.
    """

    base: str
    fields: Fields
    methods: Mapping[str, Fields]
    targets: tuple[float, ...]
    seeds: tuple[int, ...] = (0,)
    more_seeds: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    more_targets: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the matrix.

    Attributes:
        method: Its name in the matrix, or 'dense'.
        target: Share of the weights to keep; 1 for the dense network.
        seed: Of everything random.
        fields: What it sets in the configuration.
    """

    method: str
    target: float
    seed: int
    fields: Fields

    @property
    def key(self) -> tuple[str, str, str]:
        """How a table's row names it."""
        return self.method, f"{self.target:g}", str(self.seed)

    @property
    def name(self) -> str:
        """Name of its folder."""
        words = re.sub(r"[^a-z0-9]+", "-", self.method.lower())
        return f"{words}_{self.target:g}_{self.seed}"


def cells(matrix: Matrix) -> Iterator[Cell]:
    """All cells: seed by seed, the dense network of a seed before those that start from it."""
    more_seeds = {seed for seeds in matrix.more_seeds.values() for seed in seeds}
    for seed in sorted({*matrix.seeds, *more_seeds}):
        yield Cell(DENSE, 1.0, seed, {"stages": ("pretrain", "evaluate")})
        for method, fields in matrix.methods.items():
            if seed in (*matrix.seeds, *matrix.more_seeds.get(method, ())):
                for target in (*matrix.targets, *matrix.more_targets.get(method, ())):
                    own = {"stages": ("prune", "finetune", "evaluate"), "prune.target": target}
                    yield Cell(method, target, seed, {**own, **fields})
