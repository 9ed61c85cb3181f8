"""Bad input: one line that names the field, before anything compiles, and nothing is written."""

import gzip

import numpy as np
import pytest
import runs
from etils import epath
from ml_collections import ConfigDict
from runs import refusal

from harp_jax import models
from harp_jax.config import default, validate
from harp_jax.config.sections import load_data
from harp_jax.data.datasets import SPLITS
from harp_jax.run import usable
from harp_jax.workdir import ownership

FIELDS = [
    ({"model": "resnet9"}, ["model='resnet9'", "cnn, tiny, vgg16_bn"]),
    ({"model": "vgg16_bn"}, ["model='vgg16_bn'", "(8, 8, 1)"]),
    ({"compute_dtype": "float16"}, ["compute_dtype='float16'", "float32, bfloat16"]),
    ({"data.mean": (float("nan"),), "data.std": (1.0,)}, ["data.mean=nan", "numbers in [0, 1]"]),
    ({"data.mean": (0.5,)}, ["data.std=()", "as many numbers as in data.mean=(0.5,)"]),
    ({"data.mean": (0.5,), "data.std": (0.0,)}, ["data.std=0.0", "numbers in [0.001, 1]"]),
    ({"data.mean": (0.5,) * 3, "data.std": (0.2,) * 3}, ["data.mean=(0.5, 0.5, 0.5)", "1 numbers"]),
    ({"loss": "pgdd"}, ["loss='pgdd'", "natural, pgd, fgsm, trades, mart, free"]),
    ({"finetune.loss": "martt"}, ["finetune.loss='martt'", "trades, mart"]),
    ({"trades.beta": 0.0}, ["trades.beta=0.0", "> 0"]),
    ({"mart.beta": -1.0}, ["mart.beta=-1.0", "> 0"]),
    ({"prune.loss": "fgsm", "attack.epsilon": 0.0}, ["attack.epsilon=0.0", "> 0", "'fgsm'"]),
    ({"loss": "free", "attack.epsilon": 0.0}, ["attack.epsilon=0.0", "> 0", "'free'"]),
    ({"prune.sharpness": 0.1, "prune.loss": "free"}, ["prune.loss='free'", "prune.sharpness"]),
    ({"free.replays": 0}, ["free.replays=0", "whole numbers from 1 to 1000"]),
    ({"prune.method": "harpp"}, ["prune.method='harpp'", "harp, score, rate, admm, magnitude"]),
    ({"prune.granularity": "filter"}, ["prune.granularity='filter'", "weight, channel"]),
    ({"prune.strategy": "unifrom"}, ["prune.strategy='unifrom'", "erk, lamp, global, json:PATH"]),
    ({"prune.above_target": "ignore"}, ["prune.above_target='ignore'", "shift, error"]),
    ({"optimizer.schedule": "cos"}, ["optimizer.schedule='cos'", "cosine, step"]),
    ({"data.image_size": 0}, ["data.image_size=0", ">= 1"]),
    ({"data.workers": -1}, ["data.workers=-1", ">= 0"]),
    ({"data.image_size": 8}, ["data.name='digits'", "data.image_size=8", "TensorFlow Datasets"]),
    ({"data.image_size": 8, "data.crop_padding": 4}, ["data.crop_padding=4", "0 with data.image"]),
    ({"data.name": "digitz"}, ["data.name='digitz'", "'digits'", "idx:DIR"]),
    ({"data.pad_to": 7}, ["data.pad_to=7", "at least 8"]),
    (
        {"data.pad_to": 8, "data.image_size": 8, "data.crop_padding": 0},
        ["data.pad_to=8", "unset with data.image_size"],
    ),
    ({"data.pad_to": 0}, ["data.pad_to=0", ">= 1"]),
    ({"stages": ("pretrain", "prun")}, ["stages='prun'", "pretrain, prune, finetune"]),
    ({"stages": ()}, ["stages=()", "pretrain, prune, finetune"]),
    ({"stages": ("prune",)}, ["prune.source=''", "'pretrain'"]),
    ({"stages": ("finetune",)}, ["finetune.source=''", "'prune'"]),
    ({"stages": ("evaluate",)}, ["stages=('evaluate',)", "'pretrain'"]),
    ({"stages": ("report",)}, ["stages=('report',)", "'pretrain'"]),
    ({"evaluate.stages": ("last",)}, ["evaluate.stages='last'", "pretrain, prune, finetune"]),
    ({"evaluate.stages": ()}, ["evaluate.stages=()", "pretrain, prune, finetune"]),
    ({"prune.target": 0.0}, ["prune.target=0.0", "(0, 1]"]),
    ({"prune.target": 1.5}, ["prune.target=1.5", "(0, 1]"]),
    ({"prune.target": float("nan")}, ["prune.target=nan", "(0, 1]"]),
    ({"prune.target": 1e-4}, ["prune.target=0.0001", "keep 4 weights", "allows 0", "larger"]),
    (
        {"prune.target": 1e-9},
        ["prune.target=1e-09", "less than one of", "weights; allowed", "larger"],
    ),
    ({"prune.alpha": 0.0}, ["prune.alpha=0.0", "(0, 1)"]),
    ({"prune.alpha": 1.0}, ["prune.alpha=1.0", "(0, 1)"]),
    ({"prune.clip_norm": -1.0}, ["prune.clip_norm=-1.0", ">= 0"]),
    ({"prune.sharpness": -0.1}, ["prune.sharpness=-0.1", ">= 0"]),
    (
        {"prune.sharpness": 0.1, "prune.method": "rate"},
        ["prune.sharpness=0.1", "0 with", "'rate'"],
    ),
    (
        {"prune.live": True, "prune.granularity": "channel"},
        ["prune.granularity='channel'", "weight with prune.live"],
    ),
    (
        {"prune.live": True, "prune.method": "magnitude"},
        ["prune.live=True", "False with", "'magnitude'"],
    ),
    ({"prune.anneal": 1.5}, ["prune.anneal=1.5", "numbers in [0, 1]"]),
    (
        {"prune.anneal": 0.5, "prune.method": "admm"},
        ["prune.anneal=0.5", "0 with", "'admm', whose masks do not learn"],
    ),
    ({"prune.window": 1.5}, ["prune.window=1.5", "numbers in [0, 1]"]),
    (
        {"prune.window": 0.5, "prune.method": "score"},
        ["prune.window=0.5", "0 with", "'score', whose rates do not learn"],
    ),
    ({"prune.live_after": 0.5}, ["prune.live_after=0.5", "0 without prune.live"]),
    (
        {"prune.joint": True, "prune.method": "random"},
        ["prune.joint=True", "False with", "'random', whose masks do not learn"],
    ),
    (
        {"prune.joint": True, "prune.method": "admm"},
        ["prune.joint=True", "False with", "'admm', whose weights train"],
    ),
    (
        {"prune.method": "admm", "prune.granularity": "channel"},
        ["prune.granularity='channel'", "weight", "'admm'"],
    ),
    ({"admm.rho": 0.0}, ["admm.rho=0.0", "> 0"]),
    ({"finetune.regrow": 1.0}, ["finetune.regrow=1.0", "[0, 1)"]),
    (
        {"finetune.regrow": 0.1, "prune.granularity": "channel"},
        ["finetune.regrow=0.1", "0 with prune.granularity='channel'"],
    ),
    (
        {"prune.method": "flying_bird", "prune.granularity": "channel"},
        ["prune.granularity='channel'", "weight", "'flying_bird'"],
    ),
    ({"flying_bird.growth": "grad"}, ["flying_bird.growth='grad'", "gradient, random"]),
    ({"admm.growth": 0.9}, ["admm.growth=0.9", ">= 1"]),
    (
        {"admm.growth": 4.0, "prune.method": "admm", "prune.epochs": 9},
        ["admm={", "'growth': 4.0", "growth**8"],
    ),
    ({"admm.every": 0}, ["admm.every=0", ">= 1"]),
    ({"prune.gamma0": 0.0}, ["prune.gamma0=0.0", "> 0"]),
    ({"prune.initial_rate": 0.0}, ["prune.initial_rate=0.0", "(0, 1]"]),
    ({"prune.initial_rate": 1.1}, ["prune.initial_rate=1.1", "(0, 1]"]),
    ({"pretrain.epochs": 0}, ["pretrain.epochs=0", ">= 1"]),
    ({"prune.epochs": -1}, ["prune.epochs=-1", ">= 1"]),
    ({"finetune.learning_rate": 0.0}, ["finetune.learning_rate=0.0", "> 0"]),
    ({"optimizer.momentum": 1.0}, ["optimizer.momentum=1.0", "[0, 1)"]),
    ({"optimizer.weight_decay": -1e-4}, ["optimizer.weight_decay=-0.0001", ">= 0"]),
    ({"seed": -1}, ["seed=-1", ">= 0"]),
    ({"seed": 2**32}, ["seed=4294967296", "< 2**32"]),
    (
        {"stages": ("pretrain", "evaluate"), "evaluate.stages": ("finetune",)},
        ["evaluate.stages=('finetune',)", "those to run, and those complete in"],
    ),
    ({"checkpoint_every_steps": -5}, ["checkpoint_every_steps=-5", ">= 0"]),
    ({"checkpoint_minutes": -1.0}, ["checkpoint_minutes=-1.0", ">= 0"]),
    ({"keep_checkpoints": 0}, ["keep_checkpoints=0", ">= 1"]),
    ({"attack.epsilon": -0.1}, ["attack.epsilon=-0.1", "in [0, 1]"]),
    ({"attack.steps": 0}, ["attack.steps=0", ">= 1"]),
    ({"devices": 3}, ["batch_size=64", "multiples of the 3 devices"]),
    ({"devices": 9}, ["devices=9", "1 to"]),
    ({"devices": 2, "evaluate.batch_size": 121}, ["evaluate.batch_size=121", "2 devices"]),
    ({"batch_size": 5000}, ["batch_size=5000", "at most the 1288 training examples"]),
    ({"data.validation_examples": 0}, ["data.validation_examples=0", ">= 1"]),
    ({"data.validation_examples": 5000}, ["data.validation_examples=5000", "0 to 1437"]),
    ({"data.select_on": "train"}, ["data.select_on='train'", "validation, test"]),
    ({"data.select_on": "test", "data.validation_examples": -1}, ["examples=-1", ">= 0"]),
    ({"data.test_examples": 1000}, ["data.test_examples=1000", "1 to 359"]),
    ({"evaluate.attacks.fgsm.type": "FGM"}, ["evaluate.attacks.fgsm.type='FGM'", "FGSM, PGD"]),
    ({"evaluate.run": ("pgd10", "pgd30")}, ["evaluate.run='pgd30'", "apgd, apgdt, autoattack"]),
    (
        {"evaluate.attacks.autoattack.version": "pluss"},
        ["='pluss': did you mean 'plus'?"],
    ),
    ({"evaluate.attacks.pgd20.restarts": 0}, ["evaluate.attacks.pgd20.restarts=0", ">= 1"]),
]


@pytest.mark.parametrize(("fields", "said"), FIELDS, ids=[str(fields) for fields, _ in FIELDS])
def test_a_wrong_value_is_named(fields, said, tmp_path):
    text = refusal(runs.digits(**fields), tmp_path / "run")
    for part in said:
        assert part in text
    assert not (tmp_path / "run").exists()


ATTACKS = [
    ({"epsilon": 0.1}, "type=None: allowed are FGSM, PGD"),
    ({"type": "PGD"}, "'epsilon' and 'step_size'"),
    ({"type": "FGSM", "epsilon": 0.1, "stepps": 3}, "stepps=3: allowed are the fields epsilon"),
    ({"type": "FGSM", "epsilon": "a lot"}, "'a lot'"),
    ({"type": "Square", "epsilon": 0.1, "norm": 2}, "norm=2: allowed are names"),
    ({"type": "Square", "epsilon": 0.1, "queries": 7.5}, "queries=7.5: allowed are whole numbers"),
    ({"type": "APGD", "epsilon": 0.1, "steps": True}, "steps=True: allowed are whole numbers"),
]


@pytest.mark.parametrize(("settings", "said"), ATTACKS, ids=lambda value: str(value))
def test_an_attack_of_the_evaluation_is_checked_first(settings, said, tmp_path):
    config = runs.digits()
    config.evaluate.attacks = ConfigDict({"mine": settings})
    text = refusal(config, tmp_path / "run")
    assert text.startswith("evaluate.attacks.mine")
    assert said in text
    assert not (tmp_path / "run").exists()


def test_a_field_that_does_not_exist():
    with pytest.raises(KeyError, match="epoks"):
        runs.digits(**{"prune.epoks": 3})


def test_a_value_of_the_wrong_type():
    with pytest.raises(TypeError, match="batch_size"):
        runs.digits(batch_size="many")


STRATEGY = '{"conv1": 0.5, "conv2": 0.5, "dense1": 0.5, "dense2": %s}'
STRATEGY_FILES = {
    "not there": (None, "No such file or directory; allowed are files with {"),
    "no JSON": ("conv1=1", "is no JSON (Expecting value"),
    "no object": ("[0.5]", "is no object; allowed is"),
    "too few layers": ('{"conv1": 0.5}', "no rate for 'conv2', 'dense1', 'dense2'"),
    "another layer": ('{"conv9": 0.5}', "unknown layers 'conv9'; allowed are conv1, conv2, dense1"),
    "zero": (STRATEGY % 0, "dense2=0: allowed are numbers in (0, 1]"),
    "above one": (STRATEGY % 1.5, "dense2=1.5: allowed are"),
    "true": (STRATEGY % "true", "dense2=True: allowed are numbers in (0, 1]"),
    "cut short": ('{"conv1": 0.5, "co', "Unterminated string"),
    "no text": (b"\xff\xfe", "is no JSON"),
    "not a number": (STRATEGY % '"0.5"', "dense2='0.5': allowed are"),
}


@pytest.mark.parametrize("name", STRATEGY_FILES)
def test_a_strategy_file_that_does_not_fit(name, tmp_path):
    content, said = STRATEGY_FILES[name]
    file = tmp_path / "strategy.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = refusal(runs.digits(**{"prune.strategy": f"json:{file}"}), tmp_path / "run")
    assert text.startswith(f"prune.strategy='json:{file}': ")
    assert said in text
    assert not (tmp_path / "run").exists()


def write_idx(folder, images: int, cut: int = 0) -> None:
    folder.mkdir()
    for split in ("train", "t10k"):
        pixels = np.zeros((images, 8, 8), np.uint8)
        header = np.array([0x803, *pixels.shape], ">u4").tobytes()
        data = (header + pixels.tobytes())[: -cut or None]
        (folder / f"{split}-images-idx3-ubyte").write_bytes(data)
        labels = np.array([0x801, images], ">u4").tobytes() + bytes(i % 10 for i in range(images))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def test_a_folder_of_idx_files_that_is_not_there(tmp_path):
    name = f"idx:{tmp_path / 'nothing'}"
    text = refusal(runs.digits(**{"data.name": name}), tmp_path / "run")
    assert text.startswith(f"data.name={name!r}")
    assert "train-images-idx3-ubyte" in text
    assert not (tmp_path / "run").exists()


def test_an_idx_file_that_is_cut_short(tmp_path):
    write_idx(tmp_path / "data", images=300, cut=100)
    name = f"idx:{tmp_path / 'data'}"
    text = refusal(runs.digits(**{"data.name": name}), tmp_path / "run")
    assert f"has {300 * 64 - 100} bytes" in text
    assert f"promises {300 * 64}" in text
    assert not (tmp_path / "run").exists()


def test_a_workdir_in_which_another_process_runs(tmp_path):
    with ownership.held(epath.Path(tmp_path)):
        text = refusal(runs.digits(), tmp_path)
    assert text.startswith(f"workdir={str(tmp_path)!r}: another process is running in it")
    with ownership.held(epath.Path(tmp_path)):
        pass


def test_a_workdir_of_another_program(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    text = refusal(runs.digits(), tmp_path)
    assert text.endswith("its config.json is not of a run of harp_jax (it has no 'config')")


def test_the_size_of_test_is_free_unless_networks_are_chosen_on_it(tmp_path):
    data = {"name": "digits", "version": None, "digests": dict.fromkeys(SPLITS, "")}
    for split in ("validation", "test"):
        config = runs.digits(**{"data.select_on": split})
        folder = epath.Path(tmp_path / split)
        ownership.claim(config, folder, None, "1 cpu device", data, {})
    config = runs.digits(**{"data.test_examples": 100})
    fields = ownership.plain(config), ownership.plain(default())
    assert ownership.earlier_run(epath.Path(tmp_path / "validation"), *fields) is not None
    config.data.select_on = "test"
    text = refusal(config, tmp_path / "test")
    assert "(data.test_examples=None, not 100)" in text


def test_choosing_on_test_needs_no_validation_examples():
    validate(runs.digits(**{"data.select_on": "test", "data.validation_examples": 0}))


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("precious")
    for workdir, reason in (
        (tmp_path / "file" / "run", "Not a"),
        (tmp_path / "file", "it is a file"),
    ):
        text = refusal(runs.digits(), workdir)
        assert f"workdir={str(workdir)!r}: cannot be written ({reason}" in text
    assert (tmp_path / "file").read_text() == "precious"


WRONG = "--config=tests/wrong_config.py"
LINES = {
    "wrong type": (
        ["--config=configs/digits.py", "--config.batch_size=abc"],
        "batch_size='abc': allowed are whole numbers",
    ),
    "unknown field": (
        ["--config=configs/digits.py", "--config.prune.epoks=3"],
        "prune.epoks=3: is no field; did you mean prune.epochs? allowed are",
    ),
    "unknown section": (
        ["--config=configs/digits.py", "--config.prun.target=0.1"],
        "prun.target=0.1: is no field; did you mean prune? allowed are",
    ),
    "short section": (
        ["--config=configs/digits.py", "--config.eval.batch_size=8"],
        "eval.batch_size=8: is no field; did you mean evaluate? allowed are",
    ),
    "no such file": (
        ["--config=configs/none.py"],
        "--config=configs/none.py: is not there; allowed are Python files with get_config(), and of"
        " this package cifar_vgg, digits,",
    ),
    "no file": (["--config=configs"], "--config=configs: cannot be read; allowed are"),
    "no such experiment": (["--config=configs/paper.py:mine"], "allowed are DATA-NETWORK-LOSS"),
    "an argument too many": (["--config=configs/digits.py:x"], "digits.py: takes no argument"),
    "no Python": (["--config=tests/golden/hw.npz"], "hw.npz: is no Python file; allowed are"),
    "a number in words": (
        ["--config=configs/digits.py", "--config.prune.target=five"],
        "prune.target='five': allowed are numbers in (0, 1]",
    ),
    "no file named": ([], "--config"),
    "bad value": (["--config=configs/digits.py", "--config.prune.target=2.0"], "prune.target=2.0"),
    "unknown flag": (["--config=configs/digits.py", "--stages=prune"], "'stages'"),
    "empty workdir": (["--config=configs/digits.py", "--workdir="], "--workdir=''"),
    "raising": ([f"{WRONG}:raises"], "tests/wrong_config.py:9: RuntimeError: no luck"),
    "leaving": ([f"{WRONG}:leaves"], "tests/wrong_config.py:11: SystemExit: 3"),
    "misspelt": ([f"{WRONG}:misspelt"], 'wrong_config.py:14: AttributeError: Key "tarrget"'),
    "unreadable": ([f"{WRONG}:opens"], "wrong_config.py:16: FileNotFoundError: [Errno 2]"),
    "nothing": ([f"{WRONG}:nothing"], "wrong_config.py: get_config() returns None; allowed are"),
    "number": ([f"{WRONG}:number"], "wrong_config.py: get_config() returns 5; allowed"),
    "no get_config": (["--config=tests/runs.py"], "--config=tests/runs.py: has no get_config()"),
    "unset": ([f"{WRONG}:unset"], "batch_size=None: allowed are whole numbers >= 1 and"),
    "missing": ([f"{WRONG}:missing"], "prune.target: is missing; a file begins with harp_jax."),
    "misspelt section": (
        ["--config=configs/digits.py", "--config.prun.target=0.1"],
        "prun.target=0.1: is no field; did you mean prune? allowed are",
    ),
    "pixels": (
        ["--config=configs/digits.py", "--config.attack.epsilon=8"],
        "attack.epsilon=8.0: in units of [0, 1]; did you mean 8/255 = 0.03137? allowed are",
    ),
    "infinite": (
        ["--config=configs/digits.py", "--config.pretrain.learning_rate=inf"],
        "pretrain.learning_rate=inf: allowed are numbers > 0",
    ),
    "stray word": (["--config=configs/digits.py", "prune"], "prune"),
}


@pytest.mark.parametrize("name", LINES)
def test_the_command_line_says_it_in_a_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    arguments, said = LINES[name]
    workdir = tmp_path / "run"
    command = [*runs.command(workdir)[:3], f"--workdir={workdir}", *arguments]
    done = runs.here(command)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    ours = [line for line in lines if not line.startswith("Pass --helpshort")]
    assert len(ours) == 1, done.stderr
    assert not workdir.exists()
    if name == "wrong type":  # nor does the process add anything
        apart = runs.call(command)
        assert (apart.returncode, apart.stderr) == (done.returncode, done.stderr)


def test_a_command_without_a_workdir_names_that_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    command = [*runs.command(tmp_path)[:3], "--config=configs/digits.py"]
    done = runs.here(command)
    assert (done.returncode, done.stderr) == (2, "error: --workdir=None: allowed are folders\n")


@pytest.mark.parametrize(("padding", "times"), [(7, 0), (8, 1)])
def test_crops_that_hold_nothing_are_warned_of(padding, times, caplog):
    config = runs.digits(**{"data.crop_padding": padding})
    usable.check(config, models.create("tiny", 10), load_data(config), 1)
    assert caplog.text.count("some crops hold nothing of images with a side of 8 pixels") == times
