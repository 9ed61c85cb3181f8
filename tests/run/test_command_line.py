"""Whole runs through the command line, on real digits."""

import functools
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import runs

import harp_jax
from harp_jax import checkpoint, main, parallel
from harp_jax.data import load, to_unit
from harp_jax.interrupt import Interrupt
from harp_jax.pruning.layers import rates_of
from harp_jax.pruning.masks import kept_weights
from harp_jax.pruning.scores import initial_scores
from harp_jax.run import experiment
from harp_jax.training.stages import STAGES

TARGET, WEIGHTS = 0.2, 3592
FROM_ELSEWHERE = (
    *("--config.prune.epochs=1", "--config.prune.gamma0=1e-6"),
    "--config.stages=('prune','evaluate')",
)
CHOSEN_ON_TEST = (
    "--config.data.select_on=test",
    "--config.stages=('pretrain','evaluate','report')",
)


@pytest.fixture(scope="session")
def temporary(tmp_path_factory):
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def workdir(temporary):
    return runs.finished(temporary)


@pytest.fixture(scope="session")
def commanded(temporary):
    """The workdir of a run of all stages by a command of its own, on a device for each core."""
    workdir = temporary / "commanded"
    done = runs.call(runs.command(workdir, *runs.SHORT, runs.cache_option(temporary)))
    assert done.returncode == 0, done.stderr
    return workdir


def test_results_say_what_was_measured(workdir):
    results = runs.results(workdir)
    assert results["complete"]
    assert results["seed"] == 0
    assert results["versions"]["jax"] == jax.__version__
    assert results["devices"] == "1 cpu device"
    assert [row["stage"] for row in results["rows"]] == list(STAGES)
    for row in results["rows"]:
        assert row["images"] == 359
        assert row["total"] == WEIGHTS
        assert 0.5 < row["natural"] <= 1
        assert set(row["robust"]) == {"fgsm", "pgd10"}
        assert all(0 < robust <= row["natural"] for robust in row["robust"].values())


def test_realised_sparsity_is_what_the_rates_say_and_meets_the_target(workdir):
    for row in runs.results(workdir)["rows"][1:]:
        assert row["parameters"] <= TARGET * WEIGHTS
        assert row["sparsity"] == pytest.approx(1 - row["parameters"] / WEIGHTS)
        assert sum(layer["kept"] for layer in row["layers"]) == row["parameters"]
        for layer in row["layers"]:
            assert abs(layer["kept"] - layer["rate"] * layer["parameters"]) <= 1
            rate = np.float32(layer["rate"])
            assert layer["kept"] == kept_weights(jax.numpy.asarray(rate), layer["parameters"])
    trees = checkpoint.load(workdir / "finetune")
    params, pruned = trees["params"], checkpoint.load(workdir / "prune")
    assert np.abs(params["conv2"]["kernel"] - pruned["params"]["conv2"]["kernel"]).max() > 0
    for name in ("scores", "rates"):
        same = jax.tree.map(np.array_equal, trees[name], pruned[name])
        assert all(jax.tree.leaves(same))


def test_records_of_the_stages(workdir):
    epochs = {"pretrain": 2, "prune": 3, "finetune": 1}
    for stage, count in epochs.items():
        rows = runs.metrics(workdir, stage)
        assert [row["epoch"] for row in rows] == list(range(count))
        assert rows[-1]["step"] == count * runs.STEPS_PER_EPOCH
        assert list((workdir / stage / "tensorboard").glob("events*"))
    last = runs.metrics(workdir, "prune")[-1]
    assert set(last["rates"]) == {"conv1", "conv2", "dense1", "dense2"}
    assert last["compression"]["target"] == TARGET
    examples = np.load(workdir / "examples.npz")
    change = np.abs(examples["finetune/adversarial"] - examples["images"]).max()
    assert 0.05 < change <= examples["epsilon"] + 1e-6
    assert (workdir / "report" / "index.html").read_text().count("<svg") >= 5


def test_loaded_network_has_the_accuracy_of_the_results(workdir):
    logits_fn, metadata = harp_jax.load(workdir)
    assert (metadata["stage"], metadata["model"]) == ("finetune", "tiny")
    test = load("digits", seed=0, validation_examples=150).test
    accuracy = np.mean(logits_fn(to_unit(jax.numpy.asarray(test.images))).argmax(-1) == test.labels)
    assert accuracy == pytest.approx(runs.results(workdir)["rows"][-1]["natural"])


def test_a_finished_run_is_skipped(workdir, temporary):
    again = temporary / "skipped"
    shutil.copytree(workdir, again)
    before = (again / "finetune" / "metrics.jsonl").stat().st_mtime_ns
    done = runs.here(runs.command(again, *runs.SHORT, runs.WITHOUT_REPORT, "--config.devices=1"))
    assert done.returncode == 0
    assert done.stderr.count("complete, skipped") == 3
    assert (again / "finetune" / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def outcome(workdir, temporary):
    """Ends of runs by name, each made when it is first asked for."""
    source = f"--config.prune.source={workdir / 'pretrain'}"
    arguments = {
        "elsewhere": [*FROM_ELSEWHERE, source],
        "on-test": [*runs.SHORT, *CHOSEN_ON_TEST],
        "score": [*FROM_ELSEWHERE, source, "--config.prune.method=score"],
        "rate": [
            *(*FROM_ELSEWHERE, "--config.prune.method=rate"),
            # The dense network of a finished run; its own is then for nothing.
            f"--config.prune.source={workdir}",
            "--config.stages=('pretrain','prune','evaluate')",
        ],
    }

    @functools.cache
    def end(name):
        options = [*arguments[name], runs.cache_option(temporary)]
        return runs.call(runs.command(temporary / name, *options))

    return end


@pytest.mark.slow
def test_interrupted_run_goes_on_with_the_same_bits(commanded, temporary):
    other = temporary / "interrupted"
    cache = runs.cache_option(temporary)
    arguments = runs.command(other, *runs.SHORT, runs.WITHOUT_REPORT, cache)
    process = runs.start(arguments)
    assert process.stderr is not None
    for line in process.stderr:
        if "prune epoch 0" in line:
            process.send_signal(signal.SIGINT)
            break
    said = process.stderr.read()
    assert process.wait() == 130
    assert "the same command goes on from here" in said
    assert not (other / "prune" / "result").exists()
    done = runs.call(arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("complete, skipped") == 1
    runs.assert_identical(commanded, other)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_a_second_signal_stops_at_once_in_a_line(number, code, tmp_path, monkeypatch):
    def run(*_):
        with Interrupt():
            signal.raise_signal(number)
            signal.raise_signal(number)

    monkeypatch.setattr(experiment, "run", run)
    done = runs.here([*runs.command(tmp_path / "run", *runs.SHORT), "--config.devices=1"])
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert line.startswith("interrupted: stopped at once; nothing is saved yet; the same command")


@pytest.mark.slow
def test_prunes_a_network_from_elsewhere_and_shifts_what_ends_above(outcome, temporary):
    done = outcome("elsewhere")
    assert done.returncode == 0, done.stderr
    results = runs.results(temporary / "elsewhere")
    assert "above prune.target=0.2; all rate logits were shifted" in results["notes"][0]
    (row,) = results["rows"]
    assert TARGET * WEIGHTS - 4 < row["parameters"] <= TARGET * WEIGHTS


@pytest.mark.slow
def test_a_network_that_nothing_would_read_is_not_trained(outcome, temporary):
    assert "pretrain: skipped, prune.source is set" in outcome("rate").stderr
    assert not (temporary / "rate" / "pretrain").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["score", "rate"])
def test_prunes_with_scores_or_rates_alone(method, workdir, outcome, temporary):
    done = outcome(method)
    assert done.returncode == 0, done.stderr
    start = checkpoint.load(workdir / "pretrain")["params"]["conv2"]["kernel"]
    trees = checkpoint.load(temporary / method / "prune")
    first = initial_scores(jax.numpy.asarray(start), "weight")
    moved = np.abs(trees["scores"]["conv2"]["kernel"] - first).max() > 1e-3
    assert moved == (method == "score")
    rates = [float(rate) for rate in rates_of(trees).values()]
    one_weight = 1 / 72  # as a share of the smallest layer
    assert (np.ptp(rates) < one_weight) == (method == "score")
    (row,) = runs.results(temporary / method)["rows"]
    assert TARGET * WEIGHTS - 4 < row["parameters"] <= TARGET * WEIGHTS


@pytest.mark.slow
def test_a_network_that_ends_above_is_refused_where_that_is_asked_for(workdir, outcome, temporary):
    outcome("elsewhere")  # the same programs, now compiled
    arguments = [*FROM_ELSEWHERE, f"--config.prune.source={workdir / 'pretrain'}"]
    arguments += ["--config.prune.above_target=error", runs.cache_option(temporary)]
    refused = runs.call(runs.command(temporary / "no", *arguments))
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: prune: epoch 0 kept")


@pytest.mark.slow
def test_a_stage_that_is_trained_again_is_measured_again(commanded, temporary):
    other = temporary / "again"
    shutil.copytree(commanded, other)
    shutil.rmtree(other / "finetune")
    results = runs.results(other)
    results["rows"][2]["natural"] = 0.123  # of the network that is gone
    (other / "results.json").write_text(json.dumps(results))
    done = runs.call(runs.command(other, *runs.SHORT, runs.cache_option(temporary)))
    assert done.returncode == 0, done.stderr
    runs.assert_identical(commanded, other)


@pytest.mark.slow
def test_networks_that_are_chosen_on_test_data_are_said_to_be(commanded, outcome, temporary):
    done = outcome("on-test")
    assert done.returncode == 0, done.stderr
    results = runs.results(temporary / "on-test")
    (row,), (note,) = results["rows"], results["notes"]
    epochs = runs.metrics(temporary / "on-test", "pretrain")
    best = max(epochs, key=lambda epoch: epoch["validation"]["robust"])
    assert row["checkpoint_epoch"] == best["epoch"]
    # The same images under the same attack with the same noise: the very same accuracies.
    assert results["dataset"]["validation"] == row["images"] == 359
    assert row["natural"] == best["validation"]["natural"]
    assert row["robust"]["pgd10"] == best["validation"]["robust"]
    begin = (
        f"pretrain: the network of epoch {best['epoch']} was chosen by its accuracy on test data"
    )
    assert note.startswith(begin)
    assert note in done.stderr
    page = (temporary / "on-test" / "report" / "index.html").read_text()
    assert begin in page
    assert "Accuracy on the test split" in page
    # What trains is the same; and no such note where networks are chosen as they should be.
    assert epochs[0]["train"] == runs.metrics(commanded, "pretrain")[0]["train"]
    assert not [note for note in runs.results(commanded)["notes"] if "test data" in note]
    assert "Accuracy on the validation split" in (commanded / "report" / "index.html").read_text()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    options = ["--config.loss=natural", "--config.pretrain.learning_rate=1e12"]
    done = runs.here(runs.command(tmp_path, *options, "--config.devices=1"))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "error: pretrain: the loss is not finite in epoch 0, step " in last
    assert "last good checkpoint: none" in last
    assert last.endswith("learning_rate in a new workdir; this one keeps its settings")


def test_a_last_update_that_is_not_finite_stops_the_run(tmp_path):
    options = ["--config.pretrain.epochs=1", "--config.batch_size=1024", "--config.devices=1"]
    options += ["--config.loss=natural", "--config.pretrain.learning_rate=1e30"]
    done = runs.here(runs.command(tmp_path, *options))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "error: pretrain: " in last
    assert "not finite after epoch 0, step 0; last good checkpoint: none" in last
    assert "best so far" not in done.stderr
    assert not list(tmp_path.glob("pretrain/checkpoints/*/*"))
    assert not (tmp_path / "pretrain" / "result").exists()


@pytest.mark.slow
def test_a_command_runs_on_all_cores_in_a_workdir_that_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        *("--config.pretrain.epochs=1", "--config.attack.steps=3", "--config.loss=natural"),
        *("--config.stages=('pretrain','evaluate')", "--config.evaluate.run=('fgsm',)"),
    ]
    command = runs.command("relative/run", *options, config=runs.ROOT / "configs" / "digits.py")
    done = runs.end(runs.start(command, folder=tmp_path))
    assert done.returncode == 0, done.stderr
    assert checkpoint.load("relative/run")["metadata"]["stage"] == "pretrain"
    results = runs.results(tmp_path / "relative" / "run")
    count = parallel.largest_divisor(64, parallel.usable_cores())
    assert results["devices"] == f"{count} cpu device{'s' if count > 1 else ''}"
    assert results["complete"]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_has_every_flag_and_field(flag, tmp_path):
    done = runs.here(runs.command(tmp_path, flag))
    assert (done.returncode, done.stderr) == (0, "")
    assert "  --workdir\n      Folder of this run" in done.stdout
    assert "  --config.prune.target=0.01\n      Share of the weights" in done.stdout
    assert "Configurations: cifar_vgg, digits, " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.slow
def test_a_reader_of_the_help_may_leave_early():
    line = f"{sys.executable} -m harp_jax.main --help | head -1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert done.stdout.strip() == "The command line."
    assert done.stderr == ""


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_programs_that_cannot_be_kept_are_said_in_one_line(place, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("precious")
    monkeypatch.setattr(main.jax.config, "update", lambda *_: pytest.fail("the folder is used"))
    main._keep_compiled_programs(str(tmp_path / place))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"compilation_cache='{tmp_path / place}': cannot be written (")
    assert (tmp_path / "file").read_text() == "precious"


def test_the_version_is_the_packages(tmp_path):
    done = runs.here([*runs.command(tmp_path)[:3], "--version"])
    assert (done.returncode, done.stdout) == (0, f"harp_jax {harp_jax.__version__}\n")


@pytest.mark.parametrize("given", ["--config=digits", "--config=configs/digits.py"])
def test_a_configuration_of_the_package_is_found_from_elsewhere(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = ["--workdir=run", "--config.prune.target=2.0"]  # refused after the file was read
    for config in ([given], given.split("=")):
        done = runs.here([*runs.command(tmp_path)[:3], *config, *wrong])
        assert done.stderr == "error: prune.target=2.0: allowed are numbers in (0, 1]\n"


def test_a_flag_of_a_section_is_answered_with_its_fields(tmp_path):
    done = runs.here([*runs.command(tmp_path), "--config.prune=True"])
    allowed = "allowed are flags of its fields, --config.prune.FIELD=VALUE"
    wanted = f"error: prune='True': is a section; {allowed}\n"
    assert (done.returncode, done.stderr) == (2, wanted)


def test_a_ratio_is_answered_with_its_value(tmp_path):
    done = runs.here([*runs.command(tmp_path), "--config.attack.epsilon=8/255"])
    wanted = "error: attack.epsilon='8/255': allowed are numbers in [0, 1], such as 0.0313725\n"
    assert (done.returncode, done.stderr) == (2, wanted)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["pgd", "free"])
def test_two_processes_train_the_same_network_as_one(loss, temporary):
    """After three steps; in many, rounding flips signs in the attack and the runs drift apart."""
    options = [
        f"--config.loss={loss}",
        *("--config.pretrain.epochs=1", f"--config.data.train_examples={3 * 64}"),
        *("--config.stages=('pretrain','evaluate')", "--config.compilation_cache="),
    ]
    alone, shared = temporary / f"one-{loss}", temporary / f"two-{loss}"
    done = runs.call(runs.command(alone, *options))
    assert done.returncode == 0, done.stderr
    address = f"--coordinator=127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            runs.command(shared, *options, address, "--processes=2", f"--process={number}"),
            cwd=runs.ROOT,
            env=runs.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    one, two = (checkpoint.load(workdir / "pretrain")["params"] for workdir in (alone, shared))
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, two)
    print(f"largest difference of a parameter: {max(jax.tree.leaves(apart)):.1e}")
    assert max(jax.tree.leaves(apart)) < 1e-4
    rows = [runs.results(workdir)["rows"][0] for workdir in (alone, shared)]
    assert rows[0]["images"] == rows[1]["images"] == 359
    assert rows[0]["natural"] == pytest.approx(rows[1]["natural"], abs=0.01)
    assert rows[0]["robust"]["pgd10"] == pytest.approx(rows[1]["robust"]["pgd10"], abs=0.01)


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bits():
    command = [sys.executable, "-m", "benchmarks.kills", "--kills=4", "--seed=1", *runs.SHORT]
    done = subprocess.run(
        command, cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical: True" in done.stdout


def test_config_json_names_what_made_the_run(workdir):
    content = json.loads((pathlib.Path(workdir) / "config.json").read_text())
    assert content["config"]["prune"]["target"] == TARGET
    assert content["versions"]["flax"]
    assert time.strptime(content["created"][:10], "%Y-%m-%d")
