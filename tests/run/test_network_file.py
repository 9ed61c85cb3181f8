"""The file of the pruned network that a run ends with, and its measured size and speed."""

import html
import json
import logging
import re
import shlex
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from etils import epath

import harp_jax
from harp_jax import report
from harp_jax.config.sections import load_data
from harp_jax.export import __main__ as command_line
from harp_jax.export import dense_file, read
from harp_jax.run import network_file

FILES = ("network.safetensors", "network.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return runs.finished(tmp_path_factory.getbasetemp())


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of a finished run under the same name, to change."""
    return epath.Path(shutil.copytree(finished, tmp_path / finished.name))


@pytest.fixture
def measured(monkeypatch):
    """Calls of the function that writes and measures; without timings, which take the time."""
    calls, write = [], network_file._write
    monkeypatch.setattr(network_file, "_speed", lambda *_: [])
    monkeypatch.setattr(network_file, "_write", lambda *all: calls.append(all) or write(*all))
    return calls


def write(workdir):
    test = load_data(runs.digits()).test
    network_file.write_network(workdir, "tiny", test, jax.devices()[0])


def sizes(workdir):
    return json.loads((workdir / "network.json").read_text())


def test_a_run_ends_with_the_file_and_its_measures(finished):
    found, content = sizes(finished), (finished / "network.safetensors").read_bytes()
    assert (found["stage"], found["model"], found["device"]) == ("finetune", "tiny", "cpu")
    assert found["bytes"].keys() == {"prune", "finetune"}
    assert found["bytes"]["finetune"] == len(content) < found["dense_bytes"]
    assert found["dense_bytes"] == len(dense_file.encode(read(finished)))
    assert [row["images"] for row in found["milliseconds"]] == [1, 128]
    assert all(min(row["dense"], row["pruned"]) > 0 for row in found["milliseconds"])
    rows = {row["stage"]: row["network_digest"] for row in runs.results(finished)["rows"]}
    assert found["digests"] == {stage: rows[stage] for stage in ("prune", "finetune")}


def test_the_file_is_the_last_network(finished):
    images = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
    function, metadata = harp_jax.load(finished / "network.safetensors")
    np.testing.assert_array_equal(function(images), harp_jax.load(finished)[0](images))
    assert metadata["stage"] == "finetune"


def test_the_command_on_the_page_writes_the_same_bytes(finished, tmp_path, monkeypatch, capsys):
    page = (finished / "report" / "index.html").read_text()
    found = re.search(r"<code>(python -m harp_jax\.export .*?)</code>", page)
    command = shlex.split(html.unescape(found[1]))
    monkeypatch.chdir(finished)
    assert command[-1] == "--out=network.safetensors"
    assert command_line.main([*command[3:-1], f"--out={tmp_path / 'again'}"]) == 0
    assert (tmp_path / "again").read_bytes() == (finished / "network.safetensors").read_bytes()
    assert f"{(tmp_path / 'again').stat().st_size:,} bytes" in capsys.readouterr().out


def test_what_is_written_stays(workdir, measured):
    before = [(workdir / name).read_bytes() for name in FILES]
    write(workdir)
    assert measured == []
    assert [(workdir / name).read_bytes() for name in FILES] == before


@pytest.mark.parametrize("state", ["killed", "other", "broken"])
def test_what_a_stopped_run_left_is_written_to_the_same_bytes(workdir, measured, state, caplog):
    network, described = (workdir / name for name in FILES)
    before = network.read_bytes()
    if state == "killed":
        network.unlink()
    elif state == "other":
        network.write_bytes(b"of another network")
        described.write_text(json.dumps({**sizes(workdir), "digests": {"prune": "0"}}))
    else:
        described.write_text("{")
    with caplog.at_level(logging.INFO, "harp_jax"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("harp_jax"), "propagate", True)
        write(workdir)
    assert len(measured) == 1
    assert network.read_bytes() == before
    share = len(before) / sizes(workdir)["dense_bytes"]
    assert f"network.safetensors: {len(before):,} bytes, {share:.2%} of the dense" in caplog.text


def test_a_network_that_cannot_be_written_fails_no_run(workdir, monkeypatch, caplog):
    def refuse(*_, **__):
        raise TypeError("no name\nfor it")

    monkeypatch.setattr(network_file.export, "write", refuse)
    monkeypatch.setattr(logging.getLogger("harp_jax"), "propagate", True)
    (workdir / "network.json").unlink()
    write(workdir)
    assert [each.getMessage() for each in caplog.records] == [
        "network.safetensors: not written: no name for it"
    ]
    assert not any((workdir / name).exists() for name in FILES)
    assert "Size and speed" not in report.write(workdir).read_text()


def test_only_the_first_process_writes(workdir, measured, monkeypatch):
    for name in FILES:
        (workdir / name).unlink()
    monkeypatch.setattr(network_file, "is_first_process", lambda: False)
    write(workdir)
    assert measured == []
    assert not any((workdir / name).exists() for name in FILES)


def test_a_dense_run_writes_nothing(workdir, measured):
    results = runs.results(workdir)
    results["rows"] = [row for row in results["rows"] if row["stage"] == "pretrain"]
    (workdir / "results.json").write_text(json.dumps(results))
    (workdir / "network.json").unlink()
    (workdir / "network.safetensors").unlink()
    write(workdir)
    assert measured == []
    assert not any((workdir / name).exists() for name in FILES)
    assert "Size and speed" not in report.write(workdir).read_text()


def test_times_are_medians_of_an_image():
    calls = []

    def slow(images):
        calls.append(len(images))
        return images.sum()

    first, second = network_file._seconds((slow, jax.jit(slow)), jnp.zeros((4, 2, 2, 1)))
    assert first > 0
    assert second > 0
    assert network_file.FEWEST + 2 <= len(calls) <= network_file.MOST + 2
