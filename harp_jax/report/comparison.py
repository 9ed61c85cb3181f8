"""Writes a page that compares several runs."""

import json
from collections.abc import Sequence
from typing import Any

from etils import epath
from matplotlib.figure import Figure

from harp_jax.report import classes, comparison_figures, rendering, seeds
from harp_jax.report.runs import DATA, MODEL, Configuration, configurations, differences, read
from harp_jax.workdir import files
from harp_jax.workdir.records import STAGES


def compare(workdirs: Sequence[epath.PathLike], out: epath.PathLike) -> epath.Path:
    """Writes a page that compares runs: means over seeds, and one line a run in figures.

    Runs whose configurations and test images differ in nothing but the seed are averaged. Runs of
    other data or another network stand in a section of their own. Runs may be unfinished; the page
    says what they lack.

    Args:
        workdirs: Folders of the runs, at least one.
        out: Folder of the page; it is created if needed.

    Returns:
        The path of the page, `index.html`.

    Raises:
        ReportError: If a folder is none of a run, or a file in it cannot be read or has another
            form; names it.
    """
    found = configurations(read(workdirs))
    sections, figures = [], []
    for number, together in enumerate(_of_same_network(found)):
        section, drawn = _section(number, together)
        sections.append(section)
        figures += drawn
    html = rendering.page(
        "comparison.html",
        figures,
        title="Comparison of runs",
        subtitle="",
        sections=sections,
        configurations=found,
        repeated=[run for each in found for run in each.repeated],
        differences=[
            (field, [_shown(value) for value in values])
            for field, values in differences(found).items()
        ],
    )
    page = epath.Path(out) / files.PAGE
    files.write_atomically(page, html)
    return page


def _of_same_network(found: Sequence[Configuration]) -> list[list[Configuration]]:
    """Sorts configurations by data and model."""
    groups: dict[Any, list[Configuration]] = {}
    for each in found:
        groups.setdefault((each.fields[DATA], each.fields.get(MODEL)), []).append(each)
    return list(groups.values())


def _section(
    number: int, found: Sequence[Configuration]
) -> tuple[dict[str, Any], list[tuple[str, Figure]]]:
    """Builds the table and the figures of runs of the same data and model."""
    attacks = seeds.Attacks([run for each in found for run in each.runs])
    runs = comparison_figures.points(found, attacks)
    drawn = {
        f"epochs{number}": comparison_figures.epochs(found),
        f"size{number}": comparison_figures.over_size(found, runs),
    }
    figures = [(name, figure) for name, figure in drawn.items() if figure is not None]
    fields = found[0].fields
    section = {
        "title": f"{fields.get(MODEL)} on {fields[DATA]}",
        "kinds": attacks.kinds(),
        "attacks": list(attacks.settings.items()),
        "lines": seeds.lines(found, attacks),
        "missing": list(seeds.missing(found, attacks)),
        "by_class": _by_class(found, attacks),
        "figures": [name for name, _ in figures],
        "images": _images(found),
        "chosen_on": fields.get("data.select_on", "validation"),
    }
    return section, figures


def _by_class(found: Sequence[Configuration], attacks: seeds.Attacks) -> classes.Means | None:
    """Builds the table by class of the last stage whose networks have such numbers."""
    for stage in reversed(STAGES):
        table = classes.means(
            {
                each.letter: [
                    (attacks.names(run, row), row)
                    for run in each.runs
                    if (row := seeds.row_of(run, stage)) is not None
                ]
                for each in found
            }
        )
        if table is not None:
            return table
    return None


def _images(found: Sequence[Configuration]) -> str:
    counts = {row["images"] for each in found for run in each.runs for row in run.found.rows}
    return " or ".join(f"{count:,}" for count in sorted(counts))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
