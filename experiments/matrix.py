"""Describing a comparison: its methods, sparsities and seeds."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

DENSE = "dense"
_ONLY_DENSE = {"stages": ("pretrain", "evaluate")}

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A comparison of methods.

    Attributes:
        base: Configuration file of all cells.
        fields: Fields that all cells override, such as {'data.train_examples': 20000}.
        methods: Fields that each method overrides, by the method's name.
        targets: Fractions of the weights to keep, in (0, 1].
        seeds: Seeds of all methods and of the dense network.
        more_seeds: Additional seeds, by method.
        more_targets: Additional targets, by method.
        dense: Fields of further dense networks, by name; each is trained once a seed.
        pruned: Methods that finetune the pruned network of another method, by the method's name.
    """

    base: str
    fields: Fields
    methods: Mapping[str, Fields]
    targets: tuple[float, ...]
    seeds: tuple[int, ...] = (0,)
    more_seeds: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    more_targets: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    dense: Mapping[str, Fields] = dataclasses.field(default_factory=dict)
    pruned: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Checks the names and targets; raises a ValueError for the first wrong one."""
        known, networks = tuple(self.methods), (*self.methods, *self.dense)
        words = [folder(name) for name in (DENSE, *networks)]
        for place, name in enumerate(networks, start=1):
            free = words[place] not in words[:place]
            _require(free, "methods", name, "names that differ in letters and digits, but 'dense'")
        for name, source in self.pruned.items():
            _require(name in known, "pruned", name, f"methods: {', '.join(known)}")
            _require(source in known, f"pruned[{name!r}]", source, f"methods: {', '.join(known)}")
            seen = [name]
            while (last := seen[-1]) in self.pruned and len(seen) <= len(self.pruned):
                seen.append(self.pruned[last])
            allowed = "methods that do not come back to it"
            _require(last not in self.pruned, f"pruned[{name!r}]", source, allowed)
        for field, allowed in (("more_seeds", networks), ("more_targets", known)):
            for name in getattr(self, field):
                _require(name in allowed, field, name, f"methods: {', '.join(allowed)}")
        for target in itertools.chain(self.targets, *self.more_targets.values()):
            _require(0 < target <= 1, "targets", target, "numbers in (0, 1]")
        for method in known:  # a target's name has six digits
            names = [f"{each:g}" for each in (*self.targets, *self.more_targets.get(method, ()))]
            for name in names:
                _require(names.count(name) == 1, "targets", name, "targets of different names")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the matrix.

    Attributes:
        method: Name of the method in the matrix, or 'dense'.
        target: Fraction of the weights to keep, in (0, 1]; 1 for the dense network.
        seed: Seed of the run.
        fields: Fields of the configuration that the cell overrides.
    """

    method: str
    target: float
    seed: int
    fields: Fields

    @property
    def key(self) -> tuple[str, str, str]:
        """Method, target and seed, as in a row of the table."""
        return self.method, f"{self.target:g}", str(self.seed)

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        return f"{folder(self.method)}_{self.target:g}_{self.seed}"

    def source(self, matrix: Matrix) -> "Cell | None":
        """Returns the cell that this one starts from; None for dense networks."""
        if self.method == DENSE or self.method in matrix.dense:
            return None
        if self.method in matrix.pruned:
            return _cell(matrix, matrix.pruned[self.method], self.target, self.seed)
        return _dense(self.seed)

    def depth(self, matrix: Matrix) -> int:
        """Counts the cells that come before this one: each starts from the one before it."""
        source = self.source(matrix)
        return 0 if source is None else 1 + source.depth(matrix)


def folder(method: str) -> str:
    """Returns the part of the names of folders that stands for a method."""
    return re.sub(r"[^a-z0-9]+", "-", method.lower())


def _require(condition: bool, field: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{field}={value!r}: allowed are {allowed}")


def _dense(seed: int) -> Cell:
    return Cell(DENSE, 1.0, seed, _ONLY_DENSE)


def _cell(matrix: Matrix, method: str, target: float, seed: int) -> Cell:
    first = () if method in matrix.pruned else ("prune",)
    fields = {
        "stages": (*first, "finetune", "evaluate"),
        "prune.target": target,
        **matrix.methods[method],
    }
    return Cell(method, target, seed, fields)


def cells(matrix: Matrix) -> Iterator[Cell]:
    """Yields all cells, seed by seed; a seed's dense network comes first."""
    more_seeds = {seed for seeds in matrix.more_seeds.values() for seed in seeds}
    for seed in sorted({*matrix.seeds, *more_seeds}):
        yield _dense(seed)
        for method, fields in matrix.dense.items():
            if seed in (*matrix.seeds, *matrix.more_seeds.get(method, ())):
                yield Cell(method, 1.0, seed, {**_ONLY_DENSE, **fields})
        for method in matrix.methods:
            if seed in (*matrix.seeds, *matrix.more_seeds.get(method, ())):
                for target in (*matrix.targets, *matrix.more_targets.get(method, ())):
                    yield _cell(matrix, method, target, seed)
