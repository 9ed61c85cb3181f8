"""Checksums in JSON objects: every changed number is found."""

import json
import re

import numpy as np
import pytest
from etils import epath

from harp_jax.workdir import ReportError, checksums, read_json, read_metrics, write_json

CONTENT = {"epoch": 3, "train": {"loss": 0.125, "bad": float("nan")}, "rows": [1, -2.5e-7, True]}


def test_what_was_saved_comes_back_without_its_checksum(tmp_path):
    path = epath.Path(tmp_path / "a.json")
    write_json(path, checksums.signed(CONTENT))
    assert read_json(path) == {**CONTENT, "train": {"loss": 0.125, "bad": None}}


def test_every_changed_digit_is_found(tmp_path):
    path = epath.Path(tmp_path / "a.json")
    write_json(path, checksums.signed(CONTENT))
    text = path.read_text()
    digits = [each.start() for each in re.finditer(r"\d", text)]
    assert len(digits) > 12
    for place in digits:
        path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        with pytest.raises(ReportError, match=r"is not what was saved, by its checksum"):
            read_json(path)


def test_a_changed_line_of_an_epoch_is_named(tmp_path):
    path = epath.Path(tmp_path / "metrics.jsonl")
    lines = [json.dumps(checksums.signed({"epoch": epoch, "step": 8})) for epoch in range(3)]
    path.write_text("\n".join(lines) + "\n")
    assert read_metrics(path) == [{"epoch": epoch, "step": 8} for epoch in range(3)]
    path.write_text(path.read_text().replace('"epoch": 1, "step": 8', '"epoch": 1, "step": 9'))
    with pytest.raises(ReportError, match=r"line 2: is not what was saved.*remove that line"):
        read_metrics(path)


@pytest.mark.parametrize("content", [{"a": 1}, {"a": np.pi, "checksum": None}])
def test_without_a_checksum_nothing_is_checked(content, tmp_path):
    path = epath.Path(tmp_path / "a.json")
    path.write_text(json.dumps(content))
    assert read_json(path) == {"a": content["a"]}
