"""The parts of the site: figures, the list of fields, README's length."""

import csv
import importlib
import re
import sys

import pages
import pytest
import runs

from harp_jax.config import default, fields

FIGURES = pages.DOCS / "figures"
LARGEST = 100_000  # bytes


@pytest.fixture(autouse=True)
def modules_of_the_site(monkeypatch):
    monkeypatch.syspath_prepend(pages.DOCS)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "_extensions"]:
        del sys.modules[name]
    sys.modules.pop("figures", None)


def test_every_figure_is_shown_and_small():
    figures = {path.name for path in FIGURES.glob("*.svg")}
    text = "".join(path.read_text() for path in pages.pages())
    assert len(figures) == 8
    for name in figures:
        assert f"figures/{name}" in text
        assert (FIGURES / name).stat().st_size < LARGEST


def test_figures_are_drawn_from_what_is_committed(tmp_path):
    figures = importlib.import_module("figures")
    figures.draw(tmp_path)
    drawn = {path.name: path.stat().st_size for path in tmp_path.glob("*.svg")}
    assert drawn.keys() == {path.name for path in FIGURES.glob("*.svg")}
    assert min(drawn.values()) > 5_000


def test_the_numbers_of_a_run_are_taken(tmp_path, tmp_path_factory):
    figures = importlib.import_module("figures")
    finished = runs.finished(tmp_path_factory.getbasetemp())
    figures.take(finished, tmp_path)
    with (tmp_path / "prune.csv").open() as file:
        rows = list(csv.DictReader(file))
    metrics = runs.metrics(finished, "prune")
    assert rows[0].keys() == figures.epochs().keys()
    assert [int(row["epoch"]) for row in rows] == list(range(len(metrics)))
    for row, epoch in zip(rows, metrics, strict=True):
        assert float(row["gamma"]) == pytest.approx(epoch["compression"]["gamma"], rel=1e-4)
        assert float(row["rate_conv1"]) == pytest.approx(epoch["rates"]["conv1"], rel=1e-4)


ROOMS = (
    *("attacks", "data", "evaluation", "export", "interop"),
    *("losses", "methods", "models", "pruning"),
)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_described(room):
    text = (pages.DOCS / "api" / f"{room}.md").read_text()
    for name in importlib.import_module(f"harp_jax.{room}").__all__:
        assert re.search(rf"\b{name}\b", text), f"harp_jax.{room}.{name}"


def test_every_field_of_the_configuration_is_described():
    page = importlib.import_module("_extensions.configuration")
    text, terminal = page.markdown(), fields.text()
    config = default()
    for path, value in config.to_dict().items():
        names = [f"{path}.{name}" for name in value] if isinstance(value, dict) else [path]
        for name in names:
            if name != "evaluate.attacks":
                assert f"`{name}` = " in text, name
                words = text.partition(f"`{name}` = ")[2].split("\n")[1]
                assert len(words) > len(": .") + 5, name
                assert f"\n  --config.{name}=" in terminal, name
    for name in config.evaluate.attacks:
        assert f"| `{name}` |" in page.attacks()


def test_no_words_are_kept_for_fields_that_are_gone():
    config = default()
    for path in fields.WORDS:
        section = config
        for name in path.split("."):
            assert name in section, path
            section = section[name]


def test_docstrings_become_restructured_text():
    docstrings = importlib.import_module("_extensions.docstrings")
    line = "Keeps `n` of *all* |scores|, see `masks`."
    assert docstrings.as_rst(line) == r"Keeps ``n`` of \*all\* \|scores\|, see ``masks``."


def test_signatures_are_those_of_the_source():
    signatures = importlib.import_module("_extensions.signatures")
    from harp_jax import attacks, models

    def told(what, thing):
        return signatures._signature(None, what, "", thing, None)

    text, returned = told("function", models.logits_fn)
    assert (text, returned) == ("(model: Model, variables: Variables)", "LogitsFn")
    text, _ = told("class", attacks.FGSM)
    assert text == "(epsilon: float, norm: str = 'linf')"


def test_links_of_readme_lead_to_files():
    text = (runs.ROOT / "README.md").read_text() + (runs.ROOT / "experiments/README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    local = [link.partition("#")[0] for link in links if not link.startswith("http")]
    assert len(local) > 25
    for link in local:
        assert (runs.ROOT / link.removeprefix("../")).is_file(), link


def test_readme_is_short():
    assert len((runs.ROOT / "README.md").read_text().splitlines()) <= 150
