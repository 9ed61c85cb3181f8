"""The packages that `benchmarks.accelerator` needs, and how it takes missing ones from wheels."""

import importlib.util
import pathlib
import platform
import sys
import zipfile

NEEDED = ("absl", "etils", "flax", "jax", "jaxtyping", "ml_collections", "optax", "orbax", "tqdm")
NEEDED = (*NEEDED, "wadler_lindig", "PIL", "safetensors")
# What whole runs import beside that, for their records and the page.
FOR_RUNS = ("contourpy", "cycler", "dateutil", "fontTools", "jinja2", "kiwisolver", "markupsafe")
FOR_RUNS = (*FOR_RUNS, "matplotlib", "packaging", "pyparsing", "six", "tensorboardX")
WANTED = ("torch", "torchattacks", "ml_dtypes", "tensorflow_datasets", "mlxtend")
# Modules by the name of the wheel, where they differ.
MODULES = {"pillow": "PIL", "python_dateutil": "dateutil"}


def missing(names: tuple[str, ...]) -> list[str]:
    """Returns the modules that cannot be found."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def unpack(folder: pathlib.Path, site: pathlib.Path) -> list[str]:
    """Unpacks the wheels of modules that are missing; returns their files' names.

    It also writes the metadata of this checkout there, which `harp_jax` reads its version from.

    Args:
        folder: Folder of wheels; it need not be there.
        site: New folder, for `sys.path`.
    """
    site.mkdir()
    absent = {name.lower() for name in missing((*NEEDED, *FOR_RUNS, *WANTED))}
    taken = []
    for wheel in sorted(folder.glob("*.whl")):
        name, *words = wheel.stem.split("-")
        if len(words) < 4:  # no wheel has such a name
            continue
        tag, binary, machine = words[-3:]
        if MODULES.get(name, name).lower() in absent and fits(tag, binary, machine):
            try:
                with zipfile.ZipFile(wheel) as file:
                    if damaged := file.testzip():  # before anything is written
                        raise zipfile.BadZipFile(f"{damaged} is damaged")
                    file.extractall(site)
            except (OSError, zipfile.BadZipFile) as error:
                print(f"{wheel}: left out, cannot be unpacked: {error}", file=sys.stderr)
                continue
            taken.append(wheel.name)
    information = site / "harp_jax-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: harp_jax\nVersion: 0.1.0\n")
    return taken


def fits(tag: str, binary: str, machine: str) -> bool:
    """Says whether this Python can import a wheel of tags like 'cp312', 'abi3', 'any'."""
    ours = f"cp{sys.version_info.major}{sys.version_info.minor}"
    right = binary in ("none", "abi3") or ours in tag.split(".")
    return right and (machine == "any" or machine.endswith(f"_{platform.machine()}"))
