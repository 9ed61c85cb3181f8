"""What pruning gave, on the page of a run."""

import itertools

import numpy as np
import pytest
import reports
from matplotlib.text import Text

from harp_jax import report
from harp_jax.report import sizes

pytestmark = pytest.mark.usefixtures("quick_figures")


def sized(**changes):
    times = [
        {"images": 1, "dense": 0.5, "pruned": 0.8},
        {"images": 128, "dense": 0.2, "pruned": 0.05},
    ]
    return {
        "stage": "finetune",
        "model": "cnn",
        "device": "cpu",
        "dense_bytes": 397_144,
        "bytes": {"prune": 22_164, "finetune": 22_146},
        "digests": {"prune": None, "finetune": None},
        "milliseconds": times,
        **changes,
    }


@pytest.mark.usefixtures("drawn")
def test_size_and_speed(bare):
    tree = reports.results()
    for row in tree["rows"]:
        row |= {"flops": 600_000 if row["sparsity"] else 3_000_000, "total_flops": 3_000_000}
    reports.write_json(bare / "results.json", tree)
    reports.write_json(bare / "network.json", sized())
    page = reports.page_of(bare)
    text = reports.text_of(page)
    assert "Size and speed dense finetuned dense / finetuned" in text
    assert "bytes of the file 397,144 22,146 17.9 weights 98,192 4,910 20 FLOPs" in text
    assert "FLOPs an image 3,000,000 600,000 5 ms an image, one image 0.5 0.8 0.625" in text
    assert "ms an image, 128 images at once 0.2 0.05 4 " in text
    assert "logits_fn, metadata = harp_jax.load(&#34;network.safetensors&#34;) images" in text
    command = "python -m harp_jax.export . --format=sparse --stage=finetune"
    assert f"writes it again: {command} --out=network.safetensors The time" in text
    assert reports.figures_of(page) == ["size", "layers"]


def test_the_file_of_a_network_of_ones_own_is_loaded_by_its_name(bare):
    reports.write_json(bare / "network.json", sized(model="mine:Net"))
    text = reports.text_of(reports.page_of(bare))
    assert "(&#34;network.safetensors&#34;, model=&#34;mine:Net&#34;)" in text
    assert "--out=network.safetensors --model=mine:Net" in text
    assert "FLOPs an image" not in text  # the rows have no count


@pytest.mark.parametrize(
    "changes",
    [
        {"digests": {"prune": "0", "finetune": None}},
        {"digests": {"finetune": None}},
        {"bytes": {"prune": 1}},
        {"stage": "pretrain"},
    ],
)
def test_sizes_of_other_networks_are_left_out(bare, changes):
    reports.write_json(bare / "network.json", sized(**changes))
    page = reports.page_of(bare)
    assert "Size and speed" not in page
    assert reports.figures_of(page) == ["layers"]


def test_sizes_of_another_form_are_named(bare):
    reports.write_json(bare / "network.json", sized(dense_bytes="many"))
    with pytest.raises(report.ReportError, match=r"network\.json: dense_bytes='many': allowed are"):
        report.write(bare)


def test_networks_are_shown_under_the_worst_attack_that_all_were_measured_under():
    rows = reports.results()["rows"]
    dense, pruned, last = sizes.networks(sized(), rows)
    assert (dense.name, pruned.name, last.name) == ("dense", "pruned", "finetuned")
    assert (dense.bytes, pruned.bytes, last.bytes) == (397_144, 22_164, 22_146)
    assert last.accuracies == {"natural": 0.971, "pgd20": 0.882}
    del rows[0]["robust"]["pgd20"]
    assert list(sizes.networks(sized(), rows)[0].accuracies) == ["natural", "fgsm"]
    rows[0]["robust"] = {}
    assert list(sizes.networks(sized(), rows)[0].accuracies) == ["natural"]
    assert sizes.networks(None, rows) == []


def test_accuracy_over_bytes_labels_every_point():
    figure = sizes.accuracy_over_bytes(sizes.networks(sized(), reports.results()["rows"]))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_array_equal(lines["natural"].get_xdata(), [397_144, 22_164, 22_146])
    np.testing.assert_allclose(lines["pgd20"].get_ydata(), [0.9, 0.86, 0.882])
    texts = {text.get_text(): text for text in axes.texts}
    assert texts.keys() == {
        *("dense 98.0 %", "dense 90.0 %", "pruned 96.0 %", "pruned 86.0 %"),
        *("finetuned 97.1 %", "finetuned 88.2 %"),
    }
    boxes = [Text.get_window_extent(text) for text in texts.values()]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    inside = axes.get_window_extent()
    assert all(box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1 for box in boxes)
