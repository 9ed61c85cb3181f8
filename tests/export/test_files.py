"""Writing a run's network to files of every format, and loading three of them."""

import functools
import json
import logging
import os
import subprocess
import sys

import jax
import networks
import numpy as np
import pytest
import runs
import small_networks
import tensorflow_datasets as tfds

import harp_jax
from harp_jax import checkpoint, export
from harp_jax.export import __main__ as command_line
from harp_jax.export import stablehlo_file, writing
from harp_jax.pruning import channels

FORMATS = tuple(export.FORMATS)
LOADED = ("sparse", "dense", "stablehlo")
METADATA = {"stage": "finetune", "model": "tiny", "num_classes": 10, "image_shape": [8, 8, 1]}


@pytest.fixture
def workdir(tmp_path):
    """A run's folder with a pruned `tiny`, configuration and all."""
    folder = tmp_path / "a run"
    variables = jax.device_get(networks.tiny("weight"))
    checkpoint.save_result(folder / "finetune", variables, METADATA)
    config = json.loads(runs.digits().to_json())
    (folder / "config.json").write_text(json.dumps({"config": config, "revision": "abc"}))
    return folder


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_to_a_file_and_back(format, workdir, tmp_path):
    file = tmp_path / "files" / "net"
    done = export.write(workdir, file, format)
    assert (done.images, done.real) == (writing.IMAGES, True)
    assert done.difference <= 1e-5 * done.largest
    assert done.metadata["kept"] == 1796
    assert done.metadata["source"] == "a run"
    assert done.metadata["revision"] == "abc"
    assert done.bytes == sum(path.stat().st_size for path in file.parent.iterdir())
    if format in LOADED:
        logits_fn, metadata = harp_jax.load(file)
        assert METADATA.items() <= metadata.items()
        assert (metadata["kept"], metadata["weights"], metadata["sparsity"]) == (1796, 3592, 0.5)
        images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
        expected = np.asarray(harp_jax.load(workdir)[0](images))
        np.testing.assert_allclose(logits_fn(images), expected, 0, 2e-6 * abs(expected).max())
    else:
        with pytest.raises(export.FileError, match="net: not a file of the format sparse, dense"):
            harp_jax.load(file)


@functools.cache
def of_channels():
    """A small residual network with half of its channels pruned."""
    trained = small_networks.small("residual")
    architecture = channels.trace(trained.network, trained.image_shape)
    rates = {layer.path: 0.5 for layer in architecture.layers}
    make = functools.partial(channels.make_prunable, minimum=0.0, architecture=architecture)
    return jax.jit(lambda variables: make(variables, rates))(trained.variables)


@pytest.mark.parametrize(
    "format",
    [
        pytest.param(name, marks=() if name in ("sparse", "stablehlo") else pytest.mark.slow)
        for name in FORMATS
    ],
)
def test_pruned_channels_of_a_residual_network_of_ones_own(format, tmp_path):
    name = "small_networks:residual"
    checkpoint.save_result(
        tmp_path / "prune", jax.device_get(of_channels()), {**METADATA, "model": name}
    )
    done = export.write(tmp_path / "prune", tmp_path / "net", format, model=name)
    assert not done.real
    assert 0 < done.metadata["kept"] < done.metadata["weights"] / 2
    assert done.difference <= 1e-5 * done.largest
    if format in LOADED:
        if format != "stablehlo":
            with pytest.raises(export.FileError, match="model=None; allowed is model='small_net"):
                harp_jax.load(tmp_path / "net")
        logits_fn, _ = harp_jax.load(tmp_path / "net", model=name)
        images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
        expected = np.asarray(harp_jax.load(tmp_path / "prune", model=name)[0](images))
        np.testing.assert_allclose(logits_fn(images), expected, 0, 2e-6 * abs(expected).max())


def test_the_command_line(workdir, tmp_path, capsys):
    file = tmp_path / "net.safetensors"
    given = [str(workdir), "--format=sparse", f"--out={file}", "--stage=finetune", "--dtype=int8"]
    assert command_line.main(given) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{file}: {file.stat().st_size:,} bytes (")
    assert "1,796 weights kept; logits differ by" in text
    assert "on 128 test images" in text
    assert command_line.main([str(tmp_path), "--format=onnx", f"--out={file}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: no checkpoint")
    assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        command_line.main([str(workdir), "--format=zip", f"--out={file}"])


def test_writing_touches_no_other_file(tmp_path):
    trained = small_networks.small("convnet")
    images = small_networks.images(trained)
    (tmp_path / "net.tmp").write_text("of somebody else")
    (tmp_path / "folder").mkdir()
    export.write(trained, tmp_path / "net.safetensors", "dense", images=images)
    with pytest.raises(OSError, match="folder: is a folder; allowed are files"):
        export.write(trained, tmp_path / "folder", "dense", images=images)
    assert (tmp_path / "net.tmp").read_text() == "of somebody else"
    assert {each.name for each in tmp_path.iterdir()} == {"net.tmp", "net.safetensors", "folder"}


def test_a_file_whose_logits_differ_is_not_written(tmp_path, monkeypatch):
    trained = small_networks.small("convnet")
    images = small_networks.images(trained)
    real = writing.FORMATS["dense"]

    def encode(network, dtype):
        found = real.encode(network, dtype)
        return found._replace(logits_fn=lambda images: 1.01 * found.logits_fn(images))

    monkeypatch.setitem(writing.FORMATS, "dense", real._replace(encode=encode))
    with pytest.raises(export.FileError, match=r"logits differ by .*; allowed is 0.0001 of the la"):
        export.write(trained, tmp_path / "net", "dense", images=images)
    assert not (tmp_path / "net").exists()
    done = export.write(trained, tmp_path / "net", "dense", dtype="bfloat16", images=images)
    assert 0.001 * done.largest < done.difference < 0.05 * done.largest


@pytest.mark.parametrize(
    ("format", "settings", "message"),
    [
        ("zip", {}, "format='zip': allowed are sparse, dense, stablehlo, onnx, torch"),
        ("dense", {"dtype": "int8"}, "dtype='int8': allowed with format='dense' are float32, bf"),
        ("onnx", {"dtype": "bfloat16"}, "allowed with format='onnx' are float32"),
        ("dense", {"images": np.zeros((2, 8, 8, 3))}, r"images=\(2, 8, 8, 3\): allowed are some"),
        ("dense", {"images": np.zeros((0, 8, 8, 1))}, r"images=\(0, 8, 8, 1\): allowed are some"),
    ],
)
def test_other_settings_are_refused(format, settings, message, tmp_path):
    with pytest.raises(export.FileError, match=message):
        export.write(small_networks.small("convnet"), tmp_path / "net", format, **settings)
    assert not (tmp_path / "net").exists()


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    trained = small_networks.small("convnet")
    broken = jax.tree.map(np.array, trained.variables)
    broken["params"]["norm1"]["bias"][0] = np.nan
    with pytest.raises(export.FileError, match="params/norm1/bias: float32; allowed are finite"):
        export.write(trained._replace(variables=broken), tmp_path / "net", "sparse")


def test_logits_that_are_not_finite_are_refused(tmp_path):
    trained = small_networks.small("convnet")
    huge = jax.tree.map(np.array, trained.variables)
    huge["params"]["dense2"]["kernel"] *= np.float32(1e38)
    huge["params"]["dense2"]["bias"][:] = np.float32(3e38)
    with pytest.raises(export.FileError, match=r"logits differ by inf; allowed is 0\.0001 of the"):
        export.write(trained._replace(variables=huge), tmp_path / "net", "sparse")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_file_replaces_files_alone(tmp_path):
    trained = small_networks.small("convnet")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe: is no regular file; allowed are files"):
        export.write(trained, tmp_path / "pipe", "dense")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "net").write_text("old")
    (tmp_path / "net.json").mkdir()
    with pytest.raises(OSError, match=r"net\.json: is a folder; allowed are files"):
        export.write(trained, tmp_path / "net", "stablehlo")
    assert (tmp_path / "net").read_text() == "old"


def test_no_data_are_downloaded(workdir, tmp_path, monkeypatch, caplog):
    claim = json.loads((workdir / "config.json").read_text())
    claim["config"]["data"] |= {"name": "fashion_mnist", "directory": str(tmp_path / "sets")}
    (workdir / "config.json").write_text(json.dumps(claim))
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: pytest.fail("asks the network"))
    with caplog.at_level(logging.WARNING):
        assert not export.write(workdir, tmp_path / "net", "sparse").real
    assert "data.name='fashion_mnist': not prepared on this machine" in caplog.text
    assert "bring its data to this machine, or pass `images`" in caplog.text


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    trained = small_networks.small("convnet")
    export.write(trained, tmp_path / "net", "sparse")
    before = (tmp_path / "net").read_bytes()

    def full(file):
        os.ftruncate(file, 100)
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        export.write(trained, tmp_path / "net", "dense")
    assert (tmp_path / "net").read_bytes() == before


def test_damaged_programs_are_refused(tmp_path):
    trained = small_networks.small("convnet")
    export.write(trained, tmp_path / "net", "stablehlo")
    program, beside = ((tmp_path / name).read_bytes() for name in ("net", "net.json"))
    changed = bytearray(program)
    changed[len(changed) // 2] ^= 1
    other = {**json.loads(beside), "num_classes": 3}
    for one, two, message in (
        (bytes(changed), beside, "not what their digest says"),
        (program[:-5], beside, "not what their digest says"),
        (program, json.dumps(other).encode(), "not what their digest says"),
        (program, beside[:50], "metadata beside it: damaged"),
        (program, b"[]", "metadata beside it: damaged"),
        (program, b"{}", "format=None: allowed is 'harp_jax.stablehlo'"),
    ):
        with pytest.raises(export.FileError, match=message):
            stablehlo_file.decode(one, two)
    (tmp_path / "net.json").unlink()
    with pytest.raises(export.FileError, match=r"which needs FILE\.json beside it"):
        harp_jax.load(tmp_path / "net")


RUN = """
import sys, jax, numpy, jax.export
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = numpy.load(sys.argv[2])
for count in (1, 5):
    numpy.save(f"{sys.argv[2]}.{count}.npy", program.call(images[:count]))
print(program.platforms, [name for name in sys.modules if name.startswith(("harp", "flax"))])
"""


@pytest.mark.slow
def test_a_process_without_this_package_runs_the_program(tmp_path):
    trained = small_networks.small("residual")
    export.write(trained, tmp_path / "net", "stablehlo")
    images = small_networks.images(trained)
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "net"), str(tmp_path / "images.npy")],
        capture_output=True,
        text=True,
        env=runs.environment(),
        check=False,
    )
    assert done.stdout == "('cpu', 'cuda', 'tpu') []\n", done.stderr
    expected = np.asarray(trained.logits_fn()(images))
    for count in (1, 5):
        found = np.load(tmp_path / f"images.npy.{count}.npy")
        np.testing.assert_allclose(found, expected[:count], 0, 1e-5 * abs(expected).max())


def test_importing_the_package_imports_no_writer():
    program = (
        "import sys, harp_jax; assert harp_jax.export.write;"
        "print([n for n in ('onnx', 'onnxruntime', 'torch') if n in sys.modules])"
    )
    found = subprocess.check_output([sys.executable, "-c", program], env=runs.environment())
    assert found == b"[]\n"
