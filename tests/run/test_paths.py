"""A network without a path from the images to the classes: said once, before it is finetuned."""

import logging

import pytest
import runs

from harp_jax.run import experiment

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


@pytest.mark.parametrize(("target", "times"), [(0.004, 1), (0.2, 0)])
def test_it_is_said_once(target, times, tmp_path, caplog):
    caplog.set_level(logging.INFO, "harp_jax")
    experiment.run(runs.digits(**SHORT, **{"prune.target": target}), tmp_path / "run")
    texts = [record.getMessage() for record in caplog.records]
    said = [text for text in texts if text.startswith(SAID)]
    assert len(said) == times
    for text in said:
        assert " of 4 layers (" in text
        assert (
            "dense2), and finetuning cannot change that; prune with a larger prune.target" in text
        )
        assert "prune.live" not in text  # magnitude does not take it
        assert not any("finetune epoch" in before for before in texts[: texts.index(text)])
