import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from harp_jax.report import pictures, plots, theme


def stage(name="pruned", epochs=5, chosen=3):
    steps = np.arange(epochs, dtype=np.float64)
    return plots.StageCurves(
        name=name,
        epochs=np.arange(epochs),
        loss=2.0 / (1 + steps),
        natural=0.5 + 0.1 * steps,
        robust=0.3 + 0.1 * steps,
        chosen=chosen,
    )


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def test_bars_are_the_kept_shares_and_labels_the_counts():
    layers = [plots.LayerCount("conv1", 36, 144), plots.LayerCount("dense", 4910, 98192)]
    (axes,) = plots.kept_shares(layers).axes
    bars = {each.get_label(): [bar.get_width() for bar in each] for each in axes.containers}
    np.testing.assert_allclose(bars["kept"], [0.25, 4910 / 98192])
    assert bars["all"] == [1.0, 1.0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["conv1", "dense"]
    low, high = sorted(axes.get_ylim())
    assert axes.get_ylim() == (high, low)  # the first layer is on top
    np.testing.assert_allclose(lines_of(axes)["whole network"].get_xdata(), 4946 / 98336)
    assert texts_of(axes) == [
        "whole network 5.0 %",
        "25.0 %",
        "36 of 144",
        "5.0 %",
        "4,910 of 98,192",
    ]


@pytest.mark.parametrize(
    ("kept", "scale", "left"),
    [(50, "linear", 0.0), (11, "linear", 0.0), (9, "log", 0.01), (0, "linear", 0.0)],
)
def test_shares_get_a_logarithmic_axis_where_the_range_is_wide(kept, scale, left):
    layers = [plots.LayerCount("a", kept, 100), plots.LayerCount("b", 90, 100)]
    (axes,) = plots.kept_shares(layers).axes
    assert axes.get_xscale() == scale
    assert axes.get_xlim() == pytest.approx((left, 1.0))


def test_compression_draws_loss_gamma_and_rate_with_the_target():
    curves = plots.CompressionCurves(
        epochs=np.arange(3),
        loss=np.array([1.0, 0.5, 0.0]),
        gamma=np.array([0.01, 0.02, 0.03]),
        rate=np.array([0.1, 0.075, 0.05]),
        target=0.05,
        frozen=None,
        reached=2,
    )
    loss, gamma, rate = plots.compression(curves).axes
    np.testing.assert_array_equal(loss.get_lines()[0].get_ydata(), curves.loss)
    np.testing.assert_array_equal(gamma.get_lines()[0].get_ydata(), curves.gamma)
    np.testing.assert_array_equal(rate.get_lines()[0].get_ydata(), curves.rate)
    np.testing.assert_array_equal(lines_of(rate)["target"].get_ydata(), 0.05)
    assert texts_of(rate) == ["target 5.0 %"]
    assert rate.get_yscale() == "log"
    assert ["since" in lines_of(axes) for axes in (loss, gamma, rate)] == [True, False, True]
    np.testing.assert_array_equal(lines_of(loss)["since"].get_xdata(), 2)


def test_layer_rates_draw_a_named_line_a_layer():
    rates = {"conv1": np.array([0.1, 0.2, 0.4]), "dense": np.array([0.1, 0.05, 0.02])}
    (axes,) = plots.layer_rates(np.arange(3), rates, 0.05).axes
    lines = lines_of(axes)
    for name, values in rates.items():
        np.testing.assert_array_equal(lines[name].get_ydata(), values)
        np.testing.assert_array_equal(lines[name].get_xdata(), [0, 1, 2])
    np.testing.assert_array_equal(lines["target"].get_ydata(), 0.05)
    assert axes.get_yscale() == "log"
    assert texts_of(axes) == ["conv1", "dense", "target 5.0 %"]
    (without,) = plots.layer_rates(np.arange(3), rates, None).axes
    assert sorted(lines_of(without)) == ["conv1", "dense"]


def test_names_of_equal_rates_do_not_overlap_and_keep_their_order():
    rates = {f"conv{number}": np.array([0.1, 0.02]) for number in range(16)}
    rates["dense"] = np.array([0.1, 0.5])
    figure = plots.layer_rates(np.arange(2), rates, 0.05)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 18
    for lower, upper in itertools.pairwise(boxes):
        assert upper.y0 > lower.y1
    heights = {text.get_text(): text.xyann[1] for text in axes.texts}
    assert max(heights, key=heights.get) == "dense"
    assert min(heights.values()) >= 0.0
    assert max(heights.values()) <= 1.0


def test_accuracies_share_one_scale_and_mark_the_chosen_epoch():
    stages = [stage("dense"), stage("pruned", chosen=2), stage("finetuned", epochs=40, chosen=None)]
    panels = plots.accuracies(stages).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["dense", "pruned", "finetuned"]
    assert len({axes.get_ylim() for axes in panels}) == 1
    for axes, curves in zip(panels, stages, strict=True):
        lines = lines_of(axes)
        np.testing.assert_array_equal(lines["natural"].get_ydata(), curves.natural)
        np.testing.assert_array_equal(lines["robust"].get_ydata(), curves.robust)
        np.testing.assert_array_equal(lines["robust"].get_xdata(), curves.epochs)
    np.testing.assert_array_equal(lines_of(panels[1])["chosen epoch"].get_xdata(), 2)
    rings = [ring.get_offsets() for ring in panels[1].collections]
    np.testing.assert_allclose(rings, [[[2, 0.7]], [[2, 0.5]]])
    assert "chosen epoch" not in lines_of(panels[2])


def test_accuracies_leave_gaps_where_nothing_was_measured():
    curves = stage()
    curves.robust[1] = np.nan
    (axes,) = plots.accuracies([curves]).axes
    assert np.isnan(lines_of(axes)["robust"].get_ydata()).tolist() == [False, True] + [False] * 3


def test_training_loss_draws_the_loss_of_each_stage():
    stages = [stage("dense"), stage("pruned", epochs=1, chosen=0)]
    for axes, curves in zip(plots.training_loss(stages).axes, stages, strict=True):
        np.testing.assert_array_equal(lines_of(axes)["training loss"].get_ydata(), curves.loss)


@pytest.mark.parametrize("channels", [1, 3])
def test_examples_show_images_changes_and_verdicts(channels):
    images = np.full((2, 4, 4, channels), 0.5, dtype=np.float32)
    adversarial = images.copy()
    adversarial[0] += 0.1
    adversarial[1] -= 0.05
    attacked = pictures.StageExamples(
        name="pruned",
        adversarial=adversarial,
        natural_prediction=np.array([3, 8]),
        adversarial_prediction=np.array([5, 4]),
    )
    figure = pictures.attacked(images, np.array([3, 4]), [attacked], scale=0.1)
    (axes,) = figure.axes
    means = [float(np.mean(image.get_array())) for image in axes.images]
    np.testing.assert_allclose(means, [0.5, 0.5, 0.6, 0.45, 1.0, 0.25], atol=1e-6)
    colours = {text.get_text(): text.get_color() for text in axes.texts}
    assert colours["3 ✓"] == colours["4 ✓"] == theme.CORRECT
    assert colours["5 ✗"] == colours["8 ✗"] == theme.WRONG
    assert {"label 3", "label 4", "clean", "pruned,", "attacked", "change", "× 5"} <= set(colours)
    edges = np.array([image.get_extent() for image in axes.images])
    np.testing.assert_allclose(edges[:, 1] - edges[:, 0], edges[:, 3] - edges[:, 2])
    assert edges.min() > 0
    assert edges[:, 1].max() < plots.WIDTH
    assert edges[:, 3].max() < figure.get_figheight()


def test_png_is_deterministic_and_of_the_stated_size():
    first, second = (plots.to_png_bytes(plots.training_loss([stage()])) for _ in range(2))
    assert first == second
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(first[16:20]) == round(plots.WIDTH * plots.DOTS_PER_INCH)
