"""The numbers of docs/numbers.md are those of the files of results."""

import csv
import json
import re

import pages
import pytest
import runs

PAGE = pages.DOCS / "numbers.md"
RESULTS = runs.ROOT / "experiments" / "results"
TABLES = pages.tables(PAGE)


def rows(name):
    with (RESULTS / name).open() as file:
        return list(csv.DictReader(file))


def table(head):
    """The only table of the page whose first cells are these."""
    (found,) = (each for each in TABLES if each[0][: len(head)] == head)
    return found[1:]


def assert_cells(cells, row, columns):
    """A share in %, and half the range of the seeds if there are several."""
    for cell, column in zip(cells, columns, strict=True):
        shares = [row[column], row[f"{column}_spread"]]
        expected = [100 * float(share) for share in shares if share]
        numbers = [float(part) for part in cell.split(" ± ")]
        assert numbers == pytest.approx(expected, abs=0.0501), (row["method"], column)


@pytest.mark.parametrize(
    ("head", "target"),
    [
        ("99 % pruned: 981 weights", "0.01"),
        ("95 % pruned: 4,909 weights", "0.05"),
        ("90 % pruned: 9,819 weights", "0.1"),
        ("99.9 % pruned: 98 weights", "0.001"),
    ],
)
def test_the_matrix(head, target):
    everything = rows("fashion_summary.csv")
    wanted = {row["method"]: row for row in everything if row["target"] in (target, "1")}
    shown = table([head])
    assert {row[0] for row in shown} == wanted.keys()
    for method, seeds, *cells in shown:
        row = wanted[method]
        assert seeds == row["seeds"]
        assert_cells(cells, row, ("natural", "pgd20", "autoattack"))


def test_readme_shows_a_part_of_the_matrix():
    (shown,) = (each for each in pages.tables(runs.ROOT / "README.md") if "981" in each[0][0])
    everything = {tuple(row[2:]) for row in table(["99 % pruned: 981 weights"])}
    matrix = {(natural, autoattack) for natural, _, autoattack in everything}
    assert len(shown) == 8
    for _, natural, autoattack in shown[1:]:
        assert (natural, autoattack) in matrix


def test_sizes():
    everything = {(row["method"], row["target"]): row for row in rows("fashion_sizes.csv")}
    dense = everything["dense", "1"]
    for row in rows("fashion_summary.csv"):
        measured = everything[row["method"], row["target"]]
        assert (measured["natural"], measured["autoattack"]) == (row["natural"], row["autoattack"])
    shown = table(["network", "bytes"])
    assert len(shown) == 13
    for name, size, share, *accuracies in shown:
        method, _, target = name.rpartition(", target ")
        row = everything[method, f"{float(target[:-2]) / 100:g}"] if method else dense
        assert size == f"{int(row['bytes']):,}"
        assert share == f"{100 * int(row['bytes']) / int(dense['bytes']):.1f} %"
        expected = [100 * float(row[column]) for column in ("natural", "autoattack")]
        assert [float(cell) for cell in accuracies] == pytest.approx(expected, abs=0.0501), name


def test_the_settings():
    wanted = {row["method"]: row for row in rows("fashion_ablation_summary.csv")}
    shown = table(["", "seeds", "validation"])
    assert {row[0] for row in shown} == wanted.keys()
    for method, seeds, *cells in shown:
        assert seeds == wanted[method]["seeds"]
        assert_cells(cells, wanted[method], ("validation_robust", "natural", "pgd20"))


def test_the_parts_of_autoattack():
    everything = rows("fashion_matrix.csv")
    columns = ["after natural", "after apgd-ce", "after apgd-t", "after fab-t", "after square"]
    for method, *cells, live in table(["accuracy after"]):
        of_method = [
            row for row in everything if row["method"] == method and row["target"] in ("0.01", "1")
        ]
        for cell, column in zip(cells, columns, strict=True):
            mean = sum(float(row[column]) for row in of_method) / len(of_method)
            assert float(cell) == pytest.approx(100 * mean, abs=0.051), (method, column)
        mean = sum(int(row["live"]) for row in of_method) / len(of_method)
        assert int(live.replace(",", "")) == pytest.approx(mean, abs=0.51), method


def test_autoattack_beside_torchattacks():
    results = json.loads((runs.ROOT / "benchmarks/results/autoattack.json").read_text())
    for name, *cells, _ in table(["", "natural", "APGD-CE"]):
        expected = [f"{100 * share:.1f} %" for share in results[name]["after"].values()]
        assert cells == expected
    text = PAGE.read_text()
    compiled = results["harp_jax"]["seconds_compiled"]
    assert f"{compiled:.0f} s plus {results['harp_jax']['seconds'] - compiled:.0f} s" in text
    assert f"against {results['torchattacks']['seconds']:.0f} s" in text


def test_speed():
    results = json.loads((runs.ROOT / "benchmarks/results/train_step.json").read_text())["networks"]
    for name, batch, plain, torch, ratio, prune, torch_prune, prune_ratio in table(["", "batch"]):
        measured = results[name.strip("`")]
        assert int(batch) == measured["batch"]
        steps = measured["steps"]

        def speed(side, steps=steps):
            of_side = [
                each["images_per_second"]
                for step, each in steps.items()
                if step.startswith(side) and each["fastest_of_its_kind"]
            ]
            return max(of_side)

        for cell, side in (
            (plain, "harp_jax plain"),
            (torch, "torch plain"),
            (prune, "harp_jax prune"),
            (torch_prune, "torch prune"),
        ):
            assert float(cell.replace(",", "")) == pytest.approx(speed(side), rel=0.01), side
        for cell, kind in ((ratio, "plain"), (prune_ratio, "prune")):
            medians = [
                each["median"]
                for sides, each in measured["ratios"].items()
                if sides.startswith(f"torch {kind}") and sides.endswith(f"harp_jax {kind}")
            ]
            assert any(float(cell) == pytest.approx(median, abs=0.006) for median in medians)


def test_speed_of_pruned_networks():
    results = json.loads((runs.ROOT / "benchmarks/results/sparse.json").read_text())["rows"]
    shown = table(["", "kept", "forward pass"])
    assert len(shown) == len({(row["network"], row["rate"]) for row in results})
    for name, kept, *cells in shown:
        found = [
            row["ratio"]
            for row in results
            if f"`{row['network']}`" == name and f"{row['rate']:.0%}" == kept.replace(" ", "")
        ]  # forward pass, step, one image, 128 images
        assert [float(cell) for cell in cells] == pytest.approx(found, abs=0.0501), (name, kept)


def test_where_sparse_layers_stop_to_pay():
    results = json.loads((runs.ROOT / "benchmarks/results/sparse_layers.json").read_text())["rows"]
    shown = table(["kernel, stride", "images", "channels"])
    assert len(shown) == len({tuple(row["layer"]) for row in results})
    for kernel, images, channels, *cells in shown:
        size, stride = re.fullmatch(r"(\d+)x\d+, (\d)", kernel).groups()
        layer = [size, stride, images.split("x")[0], *channels.split(" → ")]
        found = [row["ratio"] for row in results if row["layer"] == list(map(int, layer))]
        assert [float(cell) for cell in cells] == pytest.approx(found, abs=0.0501), layer


def test_formats():
    found = json.loads((runs.ROOT / "benchmarks/results/formats.json").read_text())["networks"]
    (shown,) = (
        each
        for each in pages.tables(pages.DOCS / "howto" / "export.md")
        if each[0][0] == "format, type"
    )
    assert shown[0][1::3] == [f"`{network['network']}`" for network in found]
    for network, column in zip(found, range(1, len(shown[0]), 3), strict=True):
        assert network["kept"] <= 0.01 * network["weights"]
        assert len(shown) == 1 + len(network["formats"])
        for cells, row in zip(shown[1:], network["formats"], strict=True):
            assert cells[0] == f"{row['format']}, {row['type']}"
            share, difference, changed = cells[column : column + 3]
            assert share == f"{100 * row['share']:.2f} %"
            assert float(difference) == pytest.approx(row["difference"], rel=0.06)
            assert int(changed) == row["argmax_changes"]
            if row["type"] == "float32":  # what the page says of them
                assert row["difference"] < 1e-5
                assert changed == "0"
            assert not row["format"].startswith("sparse") or row["share"] < 0.016


def test_clipping():
    everything = rows("fashion_cnn_clipping.csv")
    last = {(row["clip_norm"], row["seed"]): row for row in everything}
    assert len(last) == 16
    for setting, lost, losses in table(["`prune.clip_norm`"]):
        norm = f"{float(setting.split(':')[0]):.1f}"
        found = [float(row["train_loss"]) for (clip, _), row in last.items() if clip == norm]
        low, high = map(float, losses.split(" to "))
        fine = [loss for loss in found if low - 0.006 <= loss <= high + 0.006]
        assert len(found) - len(fine) == int(lost.split()[0])
        assert min(fine) == pytest.approx(low, abs=0.006)
        assert max(fine) == pytest.approx(high, abs=0.006)


def test_autoattack_on_sparse_files():
    found = json.loads((runs.ROOT / "benchmarks/results/sparse_autoattack.json").read_text())
    for form, (_, time, *shown) in zip(("masked", "sparse"), table(["form", "time"]), strict=True):
        assert time == f"{found[form]['seconds']:.0f} s"
        expected = [100 * share for share in found[form]["after"].values()]
        assert [float(cell) for cell in shown] == pytest.approx(expected, abs=0.0501)
    assert f"{found['different_outcomes']} images have another outcome" in PAGE.read_text()
