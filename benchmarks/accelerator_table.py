"""Prints the results of `benchmarks.accelerator` as Markdown, and gives efficiencies to others."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import peaks
from benchmarks.modes import MODES

Record = Mapping[str, Any]

ACCURACIES = ("natural", "pgd10", "autoattack")


def results(record: Record, part: str) -> dict[str, Any]:
    """Returns the results of a part, by name; none if it did not run."""
    return record["parts"].get(part, {}).get("results", {})


def device(record: Record) -> str:
    """Returns JAX' name for the device's kind."""
    return results(record, "device").get("device", {}).get("kind", "unknown device")


def share_of_peak(record: Record, row: Record) -> float | None:
    """Returns a step's share of all devices' published peak; None if that is not known."""
    peak = peaks.at_precision(device(record), row["mode"])
    count = results(record, "device").get("device", {}).get("devices", 1)
    return None if not peak else row["tflops"] / (count * peak)


def steps(record: Record, *, small: bool) -> list[dict[str, Any]]:
    """Returns the rows of all measured steps of harp_jax; those of dry runs only if `small`."""
    names = [
        name
        for name, entry in record["parts"].items()
        if name.startswith("steps ") and (small or not entry["small"])
    ]
    rows = [row for name in names for row in results(record, name).values()]
    return [row for row in rows if "seconds" in row]


def table(record: Record) -> str:
    """Returns all results as Markdown."""
    lines = [f"## {device(record)}", "", *_head(record), *_states(record), *_golden(record)]
    lines += [*_products(record), *_steps(record), *_autoattack(record)]
    return "\n".join([*lines, *_rest(record)])


def _rows(title: str, columns: tuple[str, ...], cells: list[list[str]]) -> list[str]:
    if not cells:
        return []
    lines = [f"| {' | '.join(each)} |" for each in cells]
    return ["", title, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *lines]


def _head(record: Record) -> Iterator[str]:
    found = results(record, "device").get("device", {})
    versions = ", ".join(f"{name} {each}" for name, each in found.get("versions", {}).items())
    yield f"{found.get('devices', '?')} device, Python {found.get('python', '?')}; {versions}."
    if record["missing"]:
        yield f"Not there: {', '.join(record['missing'])}."
    if any(entry["small"] for entry in record["parts"].values()):
        yield "Dry runs have tiny sizes: their times say nothing."


def _states(record: Record) -> list[str]:
    cells = [
        [name, _state(entry), f"{entry.get('seconds', 0):.0f} of {entry.get('limit', 0):.0f} s"]
        for name, entry in record["parts"].items()
    ]
    return _rows("Parts:", ("part", "state", "time"), cells)


def _state(entry: Record) -> str:
    """Returns how a part ended, with its last words and the results that failed."""
    said = ["dry run"] * entry["small"] + [entry["state"], *entry.get("error", [])[-1:]]
    failed = {name: row["failed"] for name, row in entry["results"].items() if "failed" in row}
    said += [f"{name}: {reason}" for name, reason in failed.items()]
    return "; ".join(said).replace("|", "/")


def _golden(record: Record) -> list[str]:
    cells = [
        [name, f"{row['default']:.1e}", f"{row['highest']:.1e}"]
        for name, row in results(record, "golden").items()
    ]
    title = "Errors against the golden numbers, by precision of float32 products:"
    return _rows(title, ("number", "default", "highest"), cells)


def _products(record: Record) -> list[str]:
    cells = []
    for mode in MODES:
        row = results(record, "device").get(f"product {mode}")
        if row:
            peak = peaks.at_precision(device(record), mode)
            cells.append([mode, f"{row['tflops']:.3g}", _number(peak), _share(row["tflops"], peak)])
    return _rows("Large products:", ("mode", "TFLOP/s", "published", "share"), cells)


def _steps(record: Record) -> list[str]:
    theirs = results(record, "torch_steps")
    cells = []
    for row in steps(record, small=True):
        name = f"{row['network']} {row['mode']} {row['batch']}"
        rates = [
            theirs[key]["images_per_second"]
            for key in (name, f"{name} compiled")
            if row["kind"] == "plain" and "images_per_second" in theirs.get(key, {})
        ]
        best = max(rates, default=None)
        share = share_of_peak(record, row)
        cells.append(
            [
                f"{row['network']}, {row['batch']}, {row['mode']}, {row['kind']}",
                f"{row['images_per_second']:.0f}",
                f"{row['tflops']:.3g}",
                "" if share is None else f"{share:.0%}",
                f"{row['memory_mib']:.0f}",
                f"{row['compile_seconds']:.0f}",
                "" if best is None else f"{best:.0f}",
                "" if best is None else f"{row['images_per_second'] / best:.2f}",
            ]
        )
    columns = ("step", "images/s", "TFLOP/s", "of peak", "MiB by XLA", "compile, s")
    columns += ("PyTorch, images/s", "ratio")
    return _rows("PGD steps; PyTorch's are its faster of eager and compiled:", columns, cells)


def _autoattack(record: Record) -> list[str]:
    cells = []
    for part in ("autoattack", "torch_autoattack"):
        side = "harp_jax" if part == "autoattack" else "torchattacks"
        for row in results(record, part).values():
            found = [f"{name} {x:.1%}" for name, x in row["after"].items()]
            found += [f"not reached: {', '.join(row['left'])}"] * bool(row["left"])
            seconds = row.get("seconds_compiled", row.get("seconds"))
            said = "" if seconds is None else f"{seconds:.1f}"
            cells.append([f"{side}, {row['mode']}, {row['images']}", said, ", ".join(found)])
    title = "AutoAttack, seconds without compilation and accuracy after each attack:"
    return _rows(title, ("side, mode, images", "seconds", "accuracy"), cells)


def _rest(record: Record) -> list[str]:
    piped = [
        [name, f"{row['share']:.1%}", f"{1000 * row['host_seconds']:.2f}"]
        for name, row in results(record, "pipeline").items()
    ]
    bits = [
        [kind, str(row["steps"]), {True: "yes", False: "no", None: ""}[row["same_bits"]]]
        for kind, row in results(record, "bits").items()
    ]
    title = "Share of a step that waits for its batch, and the host's time for a batch:"
    lines = _rows(title, ("network", "share", "ms"), piped)
    lines += _rows("The same bits in two processes:", ("flags", "steps", "same"), bits)
    return lines + _memory(record) + _cifar(record)


def _memory(record: Record) -> list[str]:
    cells = []
    for part in record["parts"]:
        for name in ("device", "memory"):
            row = results(record, part).get(name, {})
            if row.get("peak_in_use_mib") is not None:
                limit = f"{row['allocator_limit_mib']:.0f}"
                cells.append([part, f"{row['peak_in_use_mib']:.0f}", limit])
    title = "Device memory of the parts' processes, compilation included, of what JAX may take:"
    return _rows(title, ("part", "most in use, MiB", "limit, MiB"), cells)


def _cifar(record: Record) -> list[str]:
    cells = [
        [
            f"{part.removeprefix('cifar ')}, {stage}",
            f"{row['epochs']}",
            f"{row['seconds'] / row['epochs']:.1f}",
            *(f"{row[name]:.2%}" if name in row else "" for name in ACCURACIES),
        ]
        for part in record["parts"]
        if part.startswith("cifar ")
        for stage, row in results(record, part).items()
    ]
    columns = ("network, stage", "epochs", "seconds each", *ACCURACIES)
    return _rows("CIFAR-10, short runs; accuracy on the first test images:", columns, cells)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _share(value: float, peak: float | None) -> str:
    return "" if not peak else f"{value / peak:.0%}"
