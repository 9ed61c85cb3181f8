"""Figures inside a page: in its colours, with its letters, and apart from each other."""

import re

import numpy as np
import pytest
import reports
from matplotlib.figure import Figure

from harp_jax import report
from harp_jax.report import plots, svg, theme


def figure(text="conv1"):
    made = Figure(figsize=(3, 2), layout="constrained")
    axes = made.subplots()
    axes.plot([0, 1], [0, 1], marker="o", color=theme.NATURAL, label=text)
    axes.scatter([0], [0], fc=theme.PAPER, ec=theme.ROBUST)
    axes.set_title(text, **plots.TITLE)
    plots.calm(axes)
    return made


def luminance(colour):
    parts = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_in_both_schemes(colours):
    of = {name: contrast(colour, colours["paper"]) for name, colour in colours.items()}
    for name in ("ink", "muted", "correct", "wrong"):
        assert of[name] >= 4.5, name
    lines = [name for name in colours if name.startswith(("layer", "series", "natural", "robust"))]
    for name in lines:
        assert of[name] >= 3, name
    assert contrast(colours["ink"], colours["track"]) >= 4.5  # code and notes
    assert contrast(colours["muted"], colours["track"]) >= 4.5


def test_both_schemes_order_layers_from_dark_to_light():
    for colours in (theme.LIGHT, theme.DARK):
        shades = [luminance(colours[f"layer-{place}"]) for place in range(len(theme.RAMP))]
        assert shades == sorted(shades)
    assert theme.ramp(1) == [theme.RAMP[0]]
    assert theme.ramp(len(theme.RAMP)) == list(theme.RAMP)
    assert len(theme.ramp(50)) == 50


def test_colours_are_variables_and_text_is_text():
    body = svg.inline(figure(), "size").body
    assert not re.search(r"#[0-9a-f]{6}", body)
    used = set(re.findall(r"var\(--([\w-]+)\)", body))
    assert {"natural", "robust", "paper", "ink", "axis"} <= used <= theme.LIGHT.keys()
    assert ">conv1</text>" in body
    assert "font-family" not in body
    assert "font-size" in body
    assert "http" not in body


def test_equal_figures_give_equal_text_and_others_other_identifiers():
    one, again, other = (svg.inline(figure(), name) for name in ("size", "size", "loss"))
    assert one == again
    found = [set(re.findall(r' id="([^"]+)"', each.body)) for each in (one, other)]
    assert found[0]
    assert not found[0] & found[1]
    for each, identifiers in zip((one, other), found, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', each.body)) == identifiers


def test_names_in_figures_are_escaped():
    assert "&lt;b&gt;" in svg.inline(figure("<b>"), "size").body


def test_every_figure_of_a_page_follows_the_scheme(tmp_path):
    reports.write_json(tmp_path / "results.json", reports.results())
    for stage in reports.STAGES:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text(reports.metrics(stage))
    reports.write_examples(tmp_path / "examples.npz")
    page = report.write(tmp_path).read_text(encoding="utf-8")
    figures = re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)
    assert len(figures) == 6
    assert [each for each in figures if re.search(r"#[0-9a-f]{6}", each)] == []
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    dark = page[page.index("(prefers-color-scheme: dark)") :]
    for name in set(re.findall(r"var\(--([\w-]+)\)", page)):
        assert f"--{name}: {theme.DARK[name]};" in dark
        assert f"--{name}: {theme.LIGHT[name]};" in page
