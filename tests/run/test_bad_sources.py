"""Bad sources of networks and rates: one line that names them, before anything compiles."""

import pytest
import runs
from runs import refusal


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return runs.finished(tmp_path_factory.getbasetemp())


def test_a_checkpoint_that_is_not_there(tmp_path):
    source = str(tmp_path / "nothing")
    text = refusal(runs.digits(**{"prune.source": source}), tmp_path / "run")
    assert text.startswith(f"prune.source={source!r}: no checkpoint; allowed are a workdir")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_network(finished, tmp_path):
    source = str(finished / "pretrain")
    text = refusal(runs.digits(**{"model": "cnn", "prune.source": source}), tmp_path / "run")
    assert text.startswith(f"prune.source={source!r}")
    assert "missing: batch_stats/norm3/mean" in text
    assert "other shape:" in text
    assert "params/conv1/kernel (3, 3, 1, 8) instead of (3, 3, 1, 16)" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["prune", "finetune"])
def test_a_pruned_checkpoint_to_prune(stage, finished, tmp_path):
    source = str(finished / stage)
    text = refusal(runs.digits(**{"prune.source": source}), tmp_path / "run")
    assert text == f"prune.source={source!r}: is pruned; allowed are dense networks"
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_with_another_normalisation(finished, tmp_path):
    source = str(finished / "pretrain")
    fields = {"data.mean": (0.5,), "data.std": (0.1,), "prune.source": source}
    text = refusal(runs.digits(**fields), tmp_path / "run")
    assert text.startswith(f"prune.source={source!r}")
    assert "has normalization=None; allowed is that of this run, [[0.5], [0.1]]" in text


def test_a_dense_checkpoint_to_fine_tune(finished, tmp_path):
    source = str(finished / "pretrain")
    text = refusal(runs.digits(**{"finetune.source": source}), tmp_path / "run")
    assert text.startswith(f"finetune.source={source!r}")
    assert "missing: minimum_rates/conv1/kernel" in text
    assert "scores/dense2/kernel" in text
    assert not (tmp_path / "run").exists()


def test_a_strategy_from_a_dense_checkpoint(finished, tmp_path):
    source = f"checkpoint:{finished / 'pretrain'}"
    text = refusal(runs.digits(**{"prune.strategy": source}), tmp_path / "run")
    assert text.startswith(f"prune.strategy={source!r}: is of a dense network")
    source = f"checkpoint:{tmp_path}"
    text = refusal(runs.digits(**{"prune.strategy": source}), tmp_path / "run")
    assert text.startswith(f"prune.strategy={source!r}: no checkpoint; allowed are a workdir")
    assert not (tmp_path / "run").exists()


def test_the_workdir_of_another_configuration(finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    text = refusal(runs.digits(**runs.FIELDS, batch_size=32), finished)
    assert f"workdir={str(finished)!r}" in text
    assert "(batch_size=64, not 32)" in text
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
