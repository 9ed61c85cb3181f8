"""Strict JSON: no file of a workdir has NaN or an infinity."""

import json
import math

import pytest
from etils import epath

from harp_jax.workdir import files, records


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_null(value, tmp_path):
    path = epath.Path(tmp_path) / "a.json"
    files.write_json(path, {"a": value, "b": [value, 1.5], "c": ({"d": value},), "e": "NaN"})
    found = strict(path.read_text())
    assert found == {"a": None, "b": [None, 1.5], "c": [{"d": None}], "e": "NaN"}


def test_other_values_keep_their_text():
    content = {"a": [1, 0.1, True, None, "x"], "b": {"c": {}}}
    for indent in (None, 2):
        assert files.json_text(content, indent) == json.dumps(content, indent=indent)


def test_null_is_read_in_the_place_of_what_is_no_json(tmp_path):
    path = epath.Path(tmp_path) / "metrics.jsonl"
    path.write_text('{"epoch": 0, "train": {"loss": Infinity, "accuracy": NaN}}\n')
    (row,) = records.read_metrics(path)
    assert row["train"] == {"loss": None, "accuracy": None}
