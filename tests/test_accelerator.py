"""`benchmarks.accelerator`: its parts, limits, file and table, and the hours that follow."""

import argparse
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import runs

from benchmarks import accelerator, accelerator_table, peaks
from benchmarks.accelerator import Part, Record
from benchmarks.modes import MODES, SMALL, Sizes
from experiments import hours

# A part whose first result comes at once and whose second never does.
SLOW = """
import json, sys, time
print("RESULT " + json.dumps({"name": "first", "value": 1}), flush=True)
print("other words", flush=True)
time.sleep(60)
"""


def step(network="resnet18", batch=128, mode="tf32", kind="plain", tflops=98.94):
    return {
        "network": network,
        "batch": batch,
        "mode": mode,
        "kind": kind,
        "compile_seconds": 20.0,
        "memory_mib": 900.0,
        "seconds": 0.03,
        "spread": 1.01,
        "images_per_second": 4000.0,
        "tflops": tflops,
    }


def entry(**results):
    return {"state": "complete", "limit": 60.0, "seconds": 12.0, "results": results}


@pytest.fixture
def record():
    """A file of a machine with an H200, as far as the table reads it."""
    device = {"kind": "NVIDIA H200", "devices": 1, "python": "3.12.3", "versions": {"jax": "0.11"}}
    larger = step(batch=512, tflops=150.0)
    theirs = {"images_per_second": 2000.0}
    faster = {"images_per_second": 3200.0}
    return {
        "small": False,
        "missing": ["torchattacks"],
        "parts": {
            "device": entry(device=device, **{"product tf32": {"size": 8192, "tflops": 400.0}}),
            "golden": entry(logits={"default": 1e-3, "highest": 2e-6}),
            "steps resnet18": entry(a=step(), b=larger, memory={"peak_mib": 5.0}),
            "torch_steps": entry(
                **{"resnet18 tf32 128": theirs, "resnet18 tf32 128 compiled": faster}
            ),
            "torch_autoattack": {"state": "no torchattacks", "results": {}},
            "steps wrn_28_4": {**entry(a={"failed": "no memory"}), "error": ["a", "Killed"]},
            "bits": entry(default={"steps": 3, "same_bits": False}),
        },
    }


def run_slow(tmp_path, monkeypatch, seconds):
    program = tmp_path / "slow_part.py"
    program.write_text(SLOW)
    monkeypatch.setattr(accelerator, "ROOT", tmp_path)
    record = Record(tmp_path / "out" / "file.json", {"small": True}, keep=False)
    options = argparse.Namespace(work=tmp_path, small=False)
    write = functools.partial(record.write, "slow")
    accelerator.run(Part("slow", "slow_part", [], 1.0), seconds, options, {}, write)
    return json.loads((tmp_path / "out" / "file.json").read_text())


def test_a_part_is_killed_at_its_limit_and_leaves_what_it_had(tmp_path, monkeypatch):
    slow = run_slow(tmp_path, monkeypatch, 2.0)["parts"]["slow"]
    assert slow["results"] == {"first": {"value": 1}}
    assert slow["state"] == "stopped after 2 s"
    assert slow["seconds"] < 30


def test_a_part_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SLOW", "raise ValueError('no such device')")
    slow = run_slow(tmp_path, monkeypatch, 30.0)["parts"]["slow"]
    assert (slow["state"], slow["results"]) == ("ended with 1", {})
    assert slow["error"][-1] == "ValueError: no such device"


def test_parts_of_an_earlier_file_are_kept_on_request(tmp_path):
    path = tmp_path / "file.json"
    Record(path, {"small": True}, keep=False).write("golden", {"state": "complete"})
    again = Record(path, {"small": False}, keep=True)
    again.write("bits", {"state": "complete"})
    assert list(json.loads(path.read_text())["parts"]) == ["golden", "bits"]
    Record(path, {}, keep=False).write("bits", {})
    assert list(json.loads(path.read_text())["parts"]) == ["bits"]


def test_only_wheels_of_missing_modules_are_unpacked(tmp_path, monkeypatch):
    for name in ("torchattacks-3-py3-none-any.whl", "jax-1-py3-none-any.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr(f"{name.split('-')[0]}/__init__.py", "")
    monkeypatch.setattr(accelerator, "missing", lambda _: ["torchattacks"])
    taken = accelerator.unpack_wheels(tmp_path, tmp_path / "site")
    assert taken == ["torchattacks-3-py3-none-any.whl"]
    names = sorted(path.name for path in (tmp_path / "site").iterdir())
    assert names == ["harp_jax-0.1.0.dist-info", "torchattacks"]


@pytest.mark.parametrize(
    ("tags", "taken"),
    [("cp37-cp37m", False), ("cp310-abi3", True), ("py2.py3-none", True)],
)
def test_wheels_of_another_python_stay_packed(tmp_path, monkeypatch, tags, taken):
    wheel = f"pillow-13.0-{tags}-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(tmp_path / wheel, "w") as file:
        file.writestr("PIL/__init__.py", "")
    monkeypatch.setattr(accelerator, "missing", lambda _: ["PIL"])
    assert accelerator.unpack_wheels(tmp_path, tmp_path / "site") == [wheel] * taken


def test_every_needed_package_can_be_carried():
    """JAX, Flax, Optax and Orbax bring the others along."""
    script = (accelerator.ROOT / "benchmarks" / "wheels.sh").read_text().split()
    theirs = {"absl", "etils", "flax", "jax", "optax", "orbax"}
    carried = {accelerator.MODULES.get(name, name) for name in script}
    assert set(accelerator.NEEDED) - theirs <= carried


def test_a_garbled_result_does_not_end_the_others(tmp_path, monkeypatch):
    garbled = "print('RESULT {', flush=True)\nimport sys\nsys.stdout.buffer.write(b'\\xff\\n')"
    monkeypatch.setattr(sys.modules[__name__], "SLOW", garbled)
    assert run_slow(tmp_path, monkeypatch, 30.0)["parts"]["slow"]["state"] == "complete"


def test_a_file_that_cannot_be_written_is_named_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "out.json"
    command = [sys.executable, "-m", "benchmarks.accelerator", "--small", f"--out={path}"]
    ran = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith(f"error: --out={path}: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_part_too(tmp_path, number):
    program = """
import pathlib, signal, sys
from benchmarks import accelerator
work = pathlib.Path(sys.argv[1])
(work / "slow_part.py").write_text(
    "import os, pathlib, time\\n"
    "pathlib.Path('pid.tmp').write_text(str(os.getpid()))\\n"
    "os.replace('pid.tmp', 'pid')\\n"
    "time.sleep(120)\\n"
)
accelerator.ROOT = work
accelerator.missing = lambda _: []
accelerator.parts = lambda _: [accelerator.Part("device", "slow_part", [], 1.0)]
sys.argv = ["accelerator", "--small", f"--out={work}/out.json", f"--wheels={work}/none"]
accelerator.main()
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    child = subprocess.Popen(command, cwd=runs.ROOT, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 100
    while not (tmp_path / "pid").exists() and time.monotonic() < until:
        time.sleep(0.1)
    part = int((tmp_path / "pid").read_text())
    child.send_signal(number)
    assert "ended from outside" in child.communicate(timeout=60)[1]
    while time.monotonic() < until and pathlib.Path(f"/proc/{part}").exists():
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(part, 0)
    assert "parts" in json.loads((tmp_path / "out.json").read_text())


def test_all_parts_fit_into_ten_minutes():
    for sizes in (Sizes(), SMALL):
        assert sum(part.share for part in accelerator.parts(sizes)) <= 600


@pytest.mark.parametrize(
    ("device", "mode", "expected"),
    [
        ("NVIDIA H200", "tf32", 494.7),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756.0),
        ("NVIDIA H100 NVL", "tf32", 417.5),
        ("NVIDIA A100-SXM4-40GB", "float32", 19.5),
        ("NVIDIA L40", "bfloat16", 181.05),
        ("TPU v4", "tf32", 275.0),
        ("TPU v5 lite", "bfloat16", 197.0),
        ("TPU v4", "float32", None),
        ("cpu", "float32", None),
    ],
)
def test_published_peaks(device, mode, expected):
    assert mode in MODES
    assert peaks.at_precision(device, mode) == expected


def test_the_table_has_shares_of_the_peak_and_the_ratio_to_pytorch(record):
    table = accelerator_table.table(record).splitlines()
    cells = "resnet18, 128, tf32, plain | 4000 | 98.9 | 20% | 900 | 20 | 3200 | 1.25"
    assert f"| {cells} |" in table
    assert "| tf32 | 400 | 494.7 | 81% |" in table
    assert "| logits | 1.0e-03 | 2.0e-06 |" in table
    assert "| torch_autoattack | no torchattacks | 0 of 0 s |" in table
    assert "| default | 3 | no |" in table
    assert "| steps wrn_28_4 | complete; Killed; a: no memory | 12 of 60 s |" in table


@pytest.mark.slow
def test_hours_use_what_was_measured(record):
    assumed, measured = (hours.table(each, 0.3, "pgd") for each in (None, record))
    assert "measured" not in assumed
    row = next(line for line in measured.splitlines() if line.startswith("| CIFAR-10, resnet18"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[2] == "20%, measured"
    on_an_h100, on_the_device = (float(cells[at].removesuffix(" h")) for at in (4, -1))
    assert on_an_h100 == pytest.approx(on_the_device, abs=0.11)
    vgg = next(line for line in measured.splitlines() if line.startswith("| CIFAR-10, vgg16"))
    assert "| 30% |" in vgg
    assert hours.table({**record, "small": True}, 0.3, "pgd") == assumed


@pytest.mark.slow
def test_a_dry_run_writes_the_whole_file(tmp_path):
    path = tmp_path / "file.json"
    command = [sys.executable, "-m", "benchmarks.accelerator", "--small", f"--out={path}"]
    subprocess.run(command, cwd=runs.ROOT, env=runs.environment(), check=True, timeout=900)
    record = json.loads(path.read_text())
    assert list(record["parts"]) == [part.name for part in accelerator.parts(SMALL)]
    ours = [name for name in record["parts"] if not name.startswith("torch")]
    assert {record["parts"][name]["state"] for name in ours} == {"complete"}
    golden = record["parts"]["golden"]["results"]
    assert golden["masks: weights kept differently"] == {"default": 0, "highest": 0}
    assert all(row["highest"] < 1e-4 for row in golden.values())
    assert record["parts"]["bits"]["results"]["default"] == {"steps": 3, "same_bits": True}
    assert "cnn, 8, bfloat16, plain" in accelerator_table.table(record)
