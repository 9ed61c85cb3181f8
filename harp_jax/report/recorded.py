"""Reads what the report shows of a run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from harp_jax.workdir import files, forms, records
from harp_jax.workdir.records import STAGES

Record = Mapping[str, Any]
Log = Sequence[Record]  # one record an epoch


class Recorded(NamedTuple):
    """The files of a run that the report is made of.

    Attributes:
        results: Content of results.json, rows in the order of the stages; {} if it is missing.
        run: Content of config.json; that of results.json if it is missing.
        logs: Epochs of each stage that has any.
        sizes: Content of network.json; None if it is missing.
        complete: Stages with a network that the next stage would take.
    """

    results: Record
    run: Record
    logs: Mapping[str, Log]
    sizes: Record | None
    complete: Sequence[str]

    @property
    def rows(self) -> Sequence[Record]:
        """Rows of the table, in the order of the stages."""
        return self.results.get("rows", [])


def read(workdir: epath.Path) -> Recorded:
    """Reads a run that may be unfinished.

    Args:
        workdir: Folder of the run.

    Returns:
        What is there.

    Raises:
        ReportError: If a file cannot be read or has another form; names the file.
    """
    results = records.read_table(workdir) or {}
    if results.get("rows"):
        results = records.read_results(workdir)  # in the order of the stages
    run, sizes = workdir / files.CONFIG, workdir / files.SIZES
    logs = {stage: records.read_metrics(workdir / stage / files.METRICS) for stage in STAGES}
    return Recorded(
        results=results,
        run=records.read_json(run, forms.CONFIG) if run.exists() else results,
        logs={stage: lines for stage, lines in logs.items() if lines},
        sizes=records.read_json(sizes, forms.SIZES) if sizes.exists() else None,
        complete=[stage for stage in STAGES if (workdir / stage / files.RESULT).exists()],
    )
