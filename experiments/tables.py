"""Reading and writing the tables of experiments, as CSV files."""

import csv
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

# The columns that name a cell of a matrix.
KEY = ("method", "target", "seed")

Line = dict[str, Any]


def read(path: pathlib.Path, *columns: str) -> list[Line]:
    """Reads the rows of a table; a missing file has none.

    Args:
        path: The file.
        columns: Columns that it must have if it has rows.

    Returns:
        The rows; all values are text.

    Raises:
        SystemExit: If it is no table with these columns, or a row is cut off; in one line.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [_whole(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SystemExit(f"error: {path}: cannot be read ({error}); allowed are tables") from None
    missing = [name for name in columns if rows and name not in rows[0]]
    if missing:
        allowed = f"allowed are tables with {', '.join(columns)}"
        raise SystemExit(f"error: {path}: has no column {missing[0]!r}; {allowed}")
    return rows


def _whole(path: pathlib.Path, number: int, row: Line) -> Line:
    if None in row or None in row.values():
        allowed = "allowed are as many as in the head of the table"
        raise SystemExit(f"error: {path}: line {number} has too many or too few values; {allowed}")
    return row


def write(path: pathlib.Path, rows: list[Line]) -> None:
    """Writes a table, and makes its folder; an interruption leaves the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(path)


def add(path: pathlib.Path, lines: list[Line]) -> None:
    """Adds the rows of cells to a table, if any; rows that it has of these cells are replaced."""
    if not lines:
        return
    cells = {_key(line) for line in lines}
    write(path, [row for row in read(path, *KEY) if _key(row) not in cells] + lines)


def by_run(
    runs: Sequence[pathlib.Path],
    measure: Callable[[pathlib.Path], Line],
    out: pathlib.Path | None = None,
) -> None:
    """Prints a row for each run, and writes it to a table in place of the row of that name.

    Args:
        runs: Workdirs; the name of a run is its folder's.
        measure: Returns the row of one, with its name as `run`.
        out: The table; its folder is made. It keeps its rows of other runs. None for none.

    Raises:
        SystemExit: For a run or a table that cannot be used; in one line.
    """
    earlier: list[Line] = []
    rows: list[Line] = []
    try:
        names = [place.name for place in {run.resolve() for run in runs}]
        for twice in (name for name in names if names.count(name) > 1):
            raise ValueError(f"{twice}: names two runs; allowed are runs of different names")
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)  # before the work
            if out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
                raise ValueError(f"--out={out}: allowed are files that can be written")
            earlier = read(out, "run")
        for run in runs:
            rows.append(measure(run))
            print(rows[-1], flush=True)
            if out is not None:
                measured = {row["run"] for row in rows}
                write(out, [row for row in earlier if row["run"] not in measured] + rows)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None


def _key(row: Line) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)
