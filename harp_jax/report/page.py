"""Writes the page of a finished workdir: tables, curves, layer-wise rates and attacked images.

The page is one file with embedded figures and without scripts. Parts whose data the workdir lacks
are left out. Epochs count from 0, as in the logs.
"""

from etils import epath

from harp_jax.report import classes, figures, loading, rendering, sizes, tables, words
from harp_jax.report.recorded import read
from harp_jax.workdir import files, records


def write(workdir: epath.PathLike, out: epath.PathLike | None = None) -> epath.Path:
    """Writes the page of a finished run.

    Args:
        workdir: Folder with `results.json` and, if they exist, `config.json`,
            `<stage>/metrics.jsonl`, `examples.npz` and `network.json`.
        out: Folder of the page; None means `report` in the workdir.

    Returns:
        The path of the page, `index.html`. Its content depends only on these files.

    Raises:
        ReportError: If `results.json` is missing or has no rows, or a file cannot be read or has
            another form; names the file.
    """
    workdir = epath.Path(workdir)
    records.read_results(workdir)  # says what to run if there is nothing to report
    found = read(workdir)
    results, rows, logs = found.results, found.rows, found.logs
    examples = records.read_examples(workdir / files.EXAMPLES)
    sized = sizes.of_rows(found.sizes, rows)
    model = str((sized or found.run.get("config", {})).get("model", ""))
    html = rendering.page(
        "report.html",
        [*figures.of_sizes(sized, rows), *figures.of_run(rows, logs, examples)],
        **tables.headline(found.run, results),
        rows=rows,
        columns=list(dict.fromkeys(name for row in rows for name in row["robust"])),
        summary=tables.summary(rows),
        precision=tables.precision(rows),
        flops=tables.flops(rows),
        warnings=[(row["stage"], text) for row in rows for text in row.get("warnings", [])],
        autoattacks=list(tables.autoattacks(rows)),
        attacks=[(name, words.attack(each)) for name, each in results.get("attacks", {}).items()],
        dataset=results.get("dataset", {}),
        chosen_on=results.get("config", {}).get("data", {}).get("select_on", "validation"),
        complete=results.get("complete", True),
        notes=results.get("notes", []),
        size=sizes.table(sized, rows),
        by_class=classes.table(rows),
        loading=loading.code(model, found.complete, sized is not None),
        shown_attack=tables.shown_attack(examples),
        training=tables.training(rows, logs),
        environment=tables.environment(found.run, results),
        settings=list(tables.flat(found.run.get("config", {}))),
    )
    folder = workdir / files.REPORT if out is None else epath.Path(out)
    page = folder / files.PAGE
    files.write_atomically(page, html)
    return page
