"""The settings behind a table and behind a run: of others, a comparison takes neither."""

import ast
import difflib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.tables import KEY, read
from harp_jax import config
from harp_jax.workdir import files
from harp_jax.workdir.identity import FREE_FIELDS

# Where the images lie is another place on each machine.
_PLACES = ("data.name",)


def check_there(base: str, names: Mapping[str, Any]) -> None:
    """Checks that fields are in a configuration.

    Args:
        base: Configuration file.
        names: Fields, such as 'prune.epochs'.

    Raises:
        SystemExit: For the first that is not, or if there is no such file; in one line.
    """
    try:
        known = dict(_flat(config.load(base).to_dict()))
    except config.ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    for name in names:
        if name in known or name.startswith(("own.", "evaluate.attacks.")):  # new ones are allowed
            continue
        near = difflib.get_close_matches(name, known, n=3)
        more = f"; did you mean {', '.join(near)}?" if near else ""
        raise SystemExit(f"error: --set={name}: is no field; allowed are those of {base}{more}")


def check_table(table: pathlib.Path, base: str, fields: Mapping[str, Any], given: Any) -> None:
    """Checks that a table's rows have the settings of a comparison; notes them with the first.

    Args:
        table: NAME_matrix.csv; beside it is NAME_settings.json, of tables that are new.
        base: Configuration file of all cells.
        fields: Fields that all cells override.
        given: Those of them that the command line gave.

    Raises:
        SystemExit: If the rows have others; in one line.
    """
    path = table.with_name(table.name.replace("_matrix.csv", "_settings.json"))
    now = {name: str(value) for name, value in {"base": base, **fields}.items()}
    now = {name: value for name, value in now.items() if name not in _PLACES}
    begun = bool(read(table, *KEY))
    if begun and path.exists():
        try:
            earlier = json.loads(path.read_text())
        except ValueError as error:
            raise SystemExit(f"error: {path}: is damaged: {error}") from None
        for name in sorted(earlier.keys() | now.keys()):
            if earlier.get(name) != now.get(name):
                text = f"has rows of {name}={earlier.get(name)}, now it is {now.get(name)}"
                raise SystemExit(f"error: {table}: {text}; allowed is another --results")
    elif begun and (others := [name for name in given if name not in _PLACES]):
        text = f"no {path.name} says that its rows have --set={others[0]}={given[others[0]]}"
        raise SystemExit(f"error: {table}: {text}; allowed is another --results")
    elif not begun:
        path.write_text(json.dumps(now, indent=1) + "\n")


def check_run(workdir: pathlib.Path, stage: str, fields: Mapping[str, Any]) -> None:
    """Checks that a network that others start from was trained with these fields.

    Args:
        workdir: The run.
        stage: Its last stage that the network depends on.
        fields: Fields that its command would set.

    Raises:
        SystemExit: If one is another there; in one line.
    """
    path = workdir / files.CONFIG
    if not path.exists():
        return
    found = dict(_flat(json.loads(path.read_text())["config"]))
    later = (*files.STAGES[files.STAGES.index(stage) + 1 :], *FREE_FIELDS, *_PLACES)
    for name, value in fields.items():
        if name in later or name.split(".")[0] in later or name not in found:
            continue
        if _plain(found[name]) != _plain(value):
            raise SystemExit(
                f"error: {workdir}: was trained with {name}={found[name]}, now it is {value};"
                " allowed is another --runs"
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: Any) -> Any:
    """Returns a value as it is compared: text of a number as the number, tuples as lists."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            return value
    return list(value) if isinstance(value, tuple) else value
