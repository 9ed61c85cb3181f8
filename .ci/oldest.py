"""Prints pip's constraints that hold every dependency at the oldest version that it may have."""

import pathlib
import re
import tomllib

path = pathlib.Path(__file__).parents[1] / "pyproject.toml"
project = tomllib.loads(path.read_text())["project"]
extras = project["optional-dependencies"]
for wanted in [
    *project["dependencies"],
    *(each for name in ("onnx", "parquet", "test") for each in extras[name]),
]:
    found = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,<[\d.]+)?", wanted)
    if found:
        print("==".join(found.groups()))
