"""A network without a path from the images to the classes: said once, before it is finetuned."""

import logging

import pytest
import runs

from harp_jax import checkpoint, models
from harp_jax.config.sections import load_data
from harp_jax.run import experiment, paths

SAID = "finetune: no path of kept weights leads from the images to the classes: nothing of an image"
SHORT = {
    "loss": "natural",
    "attack.steps": 1,
    "pretrain.epochs": 1,
    "finetune.epochs": 1,
    "prune.method": "magnitude",
    "prune.strategy": "global",
    "stages": ("pretrain", "prune", "finetune"),
}


@pytest.mark.parametrize(
    ("target", "strategy", "times"),
    [
        (0.004, "global", 1),
        pytest.param(0.004, "uniform", 1, marks=pytest.mark.slow),
        (0.2, "global", 0),
    ],
)
def test_it_is_said_once(target, strategy, times, tmp_path, caplog):
    caplog.set_level(logging.INFO, "harp_jax")
    fields = {**SHORT, "prune.target": target, "prune.strategy": strategy}
    experiment.run(runs.digits(**fields), tmp_path / "run")
    texts = [record.getMessage() for record in caplog.records]
    said = [text for text in texts if text.startswith(SAID)]
    assert len(said) == times
    for text in said:
        assert " of 4 layers (" in text
        assert (
            "dense2), and finetuning cannot change that; prune with a larger prune.target" in text
        )
        assert "prune.live" not in text  # magnitude does not take it
        assert "prune.epochs" not in text  # nor does it learn
        assert ("prune.strategy='uniform'" in text) == (strategy == "global")
        assert not any("finetune epoch" in before for before in texts[: texts.index(text)])


@pytest.mark.parametrize("live", [False, True])
def test_the_advice_is_what_is_not_set(live, tmp_path_factory, monkeypatch):
    """For a method whose masks learn, told that a network has no path."""
    network = checkpoint.load(runs.finished(tmp_path_factory.getbasetemp()) / "prune")
    del network["metadata"]
    monkeypatch.setattr(paths, "_keeps_few", lambda variables: True)
    monkeypatch.setattr(paths, "unreached", lambda params, groups: [("params", "dense2")])
    config = runs.digits(**{"prune.live": live, "prune.strategy": "erk"})
    text = paths.no_path(config, models.create("tiny", 10), load_data(config), network)
    assert text.endswith("more prune.epochs")
    assert ("prune.live=True" in text) != live
    assert "prune.strategy" not in text
