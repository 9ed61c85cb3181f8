"""`benchmarks.accelerator`: its parts, limits and file, and dry runs of all of it."""

import argparse
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import runs

from benchmarks import (
    accelerator,
    accelerator_cifar,
    accelerator_config,
    accelerator_process,
    accelerator_table,
    autoattack_task,
)
from benchmarks.accelerator import Record
from benchmarks.accelerator_process import Part
from benchmarks.modes import SMALL, Sizes
from harp_jax import config as harp

# A part whose first result comes at once and whose second never does.
SLOW = """
import json, sys, time
print("RESULT " + json.dumps({"name": "first", "value": 1}), flush=True)
print("other words", flush=True)
time.sleep(60)
"""


def entry(**results):
    times = {"limit": 60.0, "seconds": 12.0}
    return {"state": "complete", "small": False, **times, "results": results}


def run_slow(tmp_path, monkeypatch, seconds, share=1.0):
    program = tmp_path / "slow_part.py"
    program.write_text(SLOW)
    monkeypatch.setattr(accelerator_process, "ROOT", tmp_path)
    record = Record(tmp_path / "out" / "file.json", {}, keep=False)
    options = argparse.Namespace(work=tmp_path, small=False)
    write = functools.partial(record.write, "slow")
    part = Part("slow", "slow_part", [], share)
    accelerator_process.run(part, seconds, options, dict(os.environ), write)
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


SAVING = """
import json, signal, sys, time

def save(*_):
    print("RESULT " + json.dumps({"name": "saved"}), flush=True)
    sys.exit(3)

signal.signal(signal.SIGTERM, save)
print("RESULT " + json.dumps({"name": "begun"}), flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_part_without_a_share_saves_before_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SLOW", SAVING)
    monkeypatch.setattr(accelerator_process, "GRACE", 55.0)
    slow = run_slow(tmp_path, monkeypatch, 60.0, share=0)["parts"]["slow"]
    assert list(slow["results"]) == ["begun", "saved"]
    assert slow["state"].startswith("stopped after ")
    assert slow["state"].endswith("; the same command goes on")
    assert 5 <= slow["seconds"] < 60


def test_parts_of_an_earlier_file_are_kept_on_request(tmp_path):
    path = tmp_path / "file.json"
    Record(path, {}, keep=False).write("golden", {"small": False})
    Record(path, {}, keep=True).write("bits", {"small": True})
    kept = json.loads(path.read_text())["parts"]
    assert kept == {"golden": {"small": False}, "bits": {"small": True}}


def test_an_earlier_file_is_moved_and_never_lost(tmp_path, capsys):
    path, contents = tmp_path / "file.json", ["first", "no results", "third"]
    for content in contents:
        path.write_text(content)
        Record(path, {}, keep=False).save()
    moved = [path.with_name(f"file.{number}.json") for number in (1, 2, 3)]
    assert [each.read_text() for each in moved] == contents
    assert f"{path}: was there; it is {moved[2]} now" in capsys.readouterr().err
    assert json.loads(path.read_text()) == {"parts": {}}


@pytest.mark.parametrize("content", ["no results", "[]", "{}", '{"parts": 3}'])
def test_no_part_is_added_to_another_file(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"file\.json: is no file of results; allowed are "):
        Record(path, {}, keep=True)
    assert path.read_text() == content


def one_part(tmp_path, name, share, seconds, **earlier):
    record = Record(tmp_path / "file.json", {}, keep=False)
    record.content["parts"] |= earlier
    options = argparse.Namespace(work=tmp_path, small=True)
    accelerator.one_part(Part(name, "none", [], share), seconds, options, record)
    return record.content["parts"][name]


def test_what_is_left_out_says_why_and_takes_no_results(tmp_path, monkeypatch):
    left_out = {"state": "no time left", "small": True, "results": {}}
    monkeypatch.setattr(accelerator, "missing", lambda _: [])
    assert one_part(tmp_path, "last", 0, 10.0) == left_out
    before = entry(pretrain={"epochs": 3})
    assert one_part(tmp_path, "last", 0, 10.0, last=before) == before
    monkeypatch.setattr(accelerator, "missing", lambda names: list(names)[:1])
    assert one_part(tmp_path, "torch_steps", 1.0, 10.0)["state"] == "no torch"
    assert one_part(tmp_path, "cifar vgg16_bn", 0, 90.0)["state"] == "no contourpy"


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


def test_a_folder_is_not_moved_out_of_the_way(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        Record(tmp_path, {}, keep=False)
    assert tmp_path.is_dir()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out=out.json", "--minutes=0"], "--minutes=0: allowed are"),
        (["--out=out.json", "--minutes=inf"], "--minutes=inf: allowed are"),
        (["--out=out.json", "--parts", "cifar"], "--parts cifar: needs --cifar=FILE"),
        (["--out=out.json", "--parts", "autoattack"], "--parts autoattack: needs the part steps"),
        (["--table=none.json"], "--table=none.json: No such file"),
        (["--table=half.json"], "--table=half.json: is no file of results"),
    ],
)
def test_wrong_arguments_end_in_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.json").write_text('{"parts": {')
    monkeypatch.setattr(sys, "argv", ["accelerator", *arguments])
    with pytest.raises(SystemExit):
        accelerator.main()
    assert f"error: {said}" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def checked(tmp_path, *, small=True, runs="runs", **arrays):
    np.savez(tmp_path / "file.npz", **arrays)
    options = argparse.Namespace(small=small, cifar=tmp_path / "file.npz", runs=tmp_path / runs)
    return list(accelerator_cifar.check(SMALL, options))


def test_what_would_fail_on_cifar_is_said_before(tmp_path):
    labels = np.arange(40) % 10
    images = np.full((40, 32, 32, 3), 255, np.uint8)
    allowed = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    assert checked(tmp_path, **allowed) == []
    with pytest.raises(SystemExit, match=r"^--cifar: "):
        checked(tmp_path, other=labels)
    narrow = {"x_train": images[:, :, :16], "x_test": images[:, :, :16]}
    with pytest.raises(SystemExit, match=r"holds images of \(32, 16, 3\)"):
        checked(tmp_path, **{**allowed, **narrow})
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit, match=r"^--runs=.*taken: "):
        checked(tmp_path, runs="taken", **allowed)
    with pytest.raises(SystemExit, match=f"^{accelerator.NO_ACCELERATOR}$"):
        checked(tmp_path, small=False, **allowed)


LEFT = """
import json, subprocess, sys
child = subprocess.Popen(["sleep", "120"], stdout=sys.stderr)
print("RESULT " + json.dumps({"name": "child", "pid": child.pid}), flush=True)
raise ValueError
"""


def test_what_a_failed_part_has_started_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SLOW", LEFT)
    slow = run_slow(tmp_path, monkeypatch, 60.0)["parts"]["slow"]
    command = pathlib.Path(f"/proc/{slow['results']['child']['pid']}/cmdline")
    until = time.monotonic() + 20
    while time.monotonic() < until and command.exists() and command.read_bytes():
        time.sleep(0.1)  # a zombie's is empty
    assert not command.exists() or not command.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_part_too(tmp_path, number):
    program = """
import pathlib, signal, sys
from benchmarks import accelerator, accelerator_process
work = pathlib.Path(sys.argv[1])
(work / "slow_part.py").write_text(
    "import os, pathlib, time\\n"
    "pathlib.Path('pid.tmp').write_text(str(os.getpid()))\\n"
    "os.replace('pid.tmp', 'pid')\\n"
    "time.sleep(120)\\n"
)
accelerator_process.ROOT = work
accelerator.missing = lambda _: []
accelerator.parts = lambda *_: [accelerator.Part("device", "slow_part", [], 1.0)]
sys.argv = ["accelerator", "--small", f"--out={work}/out.json", f"--wheels={work}/none"]
accelerator.main()
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    child = subprocess.Popen(command, cwd=runs.ROOT, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 100
    while not (tmp_path / "pid").exists() and time.monotonic() < until:
        time.sleep(0.1)
    part = int((tmp_path / "pid").read_text())
    child.send_signal(signal.SIGHUP)  # of a terminal that is gone: nothing ends
    time.sleep(0.5)
    assert child.poll() is None
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


def test_bits_are_compared_of_the_steps_that_both_have_taken():
    one, longer, other = (
        {"state": "complete", "seconds": 3.0, "results": dict(enumerate(digests))}
        for digests in ("a", "ab", "xb")
    )
    found = {("default", 1): one, ("default", 2): longer, ("other", 1): one, ("other", 2): other}
    compared = accelerator_process._compared(found, ("default", "other", "none"))
    assert compared["results"] == {
        "default": {"steps": 1, "same_bits": True},
        "other": {"steps": 1, "same_bits": False},
        "none": {"steps": 0, "same_bits": None},
    }


def test_time_in_the_compiler_is_counted_once():
    """Programs are traced inside of others; their time is part of that of the outer one."""
    clock = autoattack_task.compile_clock()
    event = "/jax/core/compile/jaxpr_trace_duration"
    started = time.perf_counter()
    time.sleep(0.2)
    jax.monitoring.record_event_duration_secs(event, 0.1)
    jax.monitoring.record_event_duration_secs("/jax/other", 0.2)
    jax.monitoring.record_event_duration_secs(event, 0.2)
    assert 0.199 <= clock() <= time.perf_counter() - started


@pytest.mark.parametrize("network", accelerator.TRAINED)
def test_runs_on_cifar_are_the_short_experiments(network):
    whole = accelerator_config.get_config(network)
    expected = harp.load(f"paper:cifar10-{network}-short-99")
    expected.evaluate.stages = ("pretrain", "finetune")
    assert whole == expected
    assert accelerator_config.get_config(f"{network}-small").width != whole.width


def dry_run(path, *more):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--small", f"--out={path}", *more]
    command.append("--minutes=14")  # a busy machine takes longer than a measurement may
    subprocess.run(command, cwd=runs.ROOT, env=runs.environment(), check=True, timeout=900)
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_dry_run_writes_the_whole_file(tmp_path):
    record = dry_run(tmp_path / "file.json")
    assert list(record["parts"]) == [part.name for part in accelerator.parts(SMALL)]
    ours = [name for name in record["parts"] if not name.startswith("torch")]
    assert {record["parts"][name]["state"] for name in ours} == {"complete"}
    golden = record["parts"]["golden"]["results"]
    assert golden["masks: weights kept differently"] == {"default": 0, "highest": 0}
    assert all(row["highest"] < 1e-4 for row in golden.values())
    assert record["parts"]["bits"]["results"]["default"] == {"steps": 3, "same_bits": True}
    (attack,) = record["parts"]["autoattack"]["results"].values()
    assert attack["left"] == []
    assert attack["after"]["square"] > 0, "every attack has had images"
    assert 0 < attack["seconds_compiled"] < attack["seconds"]
    assert "cnn, 8, bfloat16, plain" in accelerator_table.table(record)


@pytest.mark.slow
def test_a_dry_run_trains_on_cifar_and_goes_on(tmp_path):
    found = {}
    for name, count in (("train", 320), ("test", 20)):
        split = autoattack_task.images("resnet18", count, 3)
        found |= {f"x_{name}": split.images, f"y_{name}": split.labels}
    np.savez(tmp_path / "few.npz", **found)
    arguments = ("--parts", "cifar", f"--cifar={tmp_path / 'few.npz'}")
    parts = dry_run(tmp_path / "file.json", *arguments)["parts"]
    assert list(parts) == ["cifar vgg16_bn", "cifar resnet18"]
    for part in parts.values():
        assert part["state"] == "complete"
        assert [row["epochs"] for row in part["results"].values()] == [1, 1, 1]
        for stage in ("pretrain", "finetune"):
            row = part["results"][stage]
            assert 0 <= row["autoattack"] <= row["pgd10"] <= row["natural"] <= 1
            assert row["images"] == 16
    again = dry_run(tmp_path / "file.json", *arguments)["parts"]
    assert {name: part["results"] for name, part in again.items()} == {
        name: part["results"] for name, part in parts.items()
    }
    assert again["cifar resnet18"]["seconds"] < parts["cifar resnet18"]["seconds"] / 2
