"""The notebook of the documentation: it is executed, and what it shows is there."""

import json
import os
import re
import subprocess
import sys

import pages
import pytest
import runs

NOTEBOOK = pages.DOCS / "examples" / "digits.ipynb"
# In a process of its own: the tests' warnings and virtual devices are not a user's.
EXECUTE = """
import sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def sources(notebook):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_short_and_in_order():
    notebook = json.loads(NOTEBOOK.read_text())
    assert NOTEBOOK.stat().st_size < 60_000
    assert "harp_jax.export.write" in sources(notebook)[-1]
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            assert output["output_type"] in ("display_data", "stream"), output
            assert output.get("name") != "stderr"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    executed = tmp_path / "executed.ipynb"
    environment = {
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        "PYTHONPATH": os.pathsep.join([str(runs.ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(executed)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cells = json.loads(executed.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    printed = "".join("".join(output["text"]) for output in outputs if output.get("name"))
    assert "finetune" in printed
    kept, accuracy = re.search(r"(\d+) weights, natural accuracy (\S+)%", printed).groups()
    assert 600 < int(kept) <= 0.2 * 3592
    assert float(accuracy) > 90
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert (tmp_path / "digits.safetensors").stat().st_size < 10_000
