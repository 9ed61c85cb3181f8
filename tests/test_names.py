"""Names from a table, or of a user's own module."""

import pytest

from harp_jax.names import find

TABLE = {"one": 1, "two": 2}


def test_a_name_of_the_table_or_of_a_module():
    assert find(TABLE, "two", "field") == 2
    assert find({}, "math:pi", "field") == pytest.approx(3.14159, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("three", ["field='three'", "allowed are one, two, or package.module:NAME"]),
        (None, ["field=None", "one, two"]),
        ("no_such_module:x", ["field='no_such_module:x'", "ModuleNotFoundError", "no_such_module"]),
        ("math:tau_", ["field='math:tau_'", "math has no 'tau_'"]),
        (":x", ["field=':x'", "cannot import"]),
    ],
)
def test_other_names_are_refused_in_one_line(name, parts):
    with pytest.raises(ValueError, match="allowed") as caught:
        find(TABLE, name, "field")
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in parts)


def test_a_module_that_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_on_purpose.py").write_text("raise OSError('no\\nluck')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"OSError: no luck\)"):
        find(TABLE, "broken_on_purpose:x", "field")
