"""The numbers of docs/best.md are those of the files of results."""

import csv
import re

import pages
import pytest
import runs

from experiments.matrices import (
    cifar_jpeg,
    cifar_jpeg_options,
    fashion_best,
    fashion_best_options,
    fashion_best_rates,
)
from experiments.matrices.fashion_best_starts import MATRIX
from experiments.matrix import cells

PAGE = pages.DOCS / "best.md"
RESULTS = runs.ROOT / "experiments" / "results"
TABLES = pages.tables(PAGE)
LAMP = "HYDRA, LAMP, best"
TUNED = "HARP, best, finetuned at 0.2"


def rows(name):
    with (RESULTS / name).open() as file:
        return list(csv.DictReader(file))


def table(first):
    """The only table of the page whose first cell begins so."""
    (found,) = (each for each in TABLES if each[0][0].startswith(first))
    return found[1:]


def shares(cell):
    return [float(part) for part in cell.split(" ± ") if part]


@pytest.mark.parametrize(
    ("matrix", "first", "target", "baseline"),
    [
        ("fashion_best", "99 % pruned", "0.01", LAMP),
        ("fashion_best", "99.9 % pruned", "0.001", LAMP),
        ("fashion_best_long", "twice as long", "0.01", f"{LAMP}, longer"),
        ("fashion_best_tuned", "each at its rate, 99 % pruned", "0.01", TUNED),
        ("fashion_best_tuned", "each at its rate, 99.9 % pruned", "0.001", TUNED),
        ("fashion_best_channels", "half of the channels", "0.5", "uniform channels, best"),
        ("cifar_jpeg", "CIFAR-10 (JPEG), 95 % pruned", "0.05", LAMP),
        ("cifar_jpeg", "CIFAR-10 (JPEG), 99 % pruned", "0.01", LAMP),
        ("cifar_jpeg", "CIFAR-10 (JPEG), 99.9 % pruned", "0.001", LAMP),
    ],
)
def test_the_tables(matrix, first, target, baseline):
    wanted = {
        row["method"]: row
        for row in rows(f"{matrix}_summary.csv")
        if row["target"] in (target, "1")
    }
    intervals = {(row["method"], row["target"]): row for row in rows(f"{matrix}_intervals.csv")}
    everything = rows(f"{matrix}_matrix.csv")
    shown = table(first)
    assert {row[0] for row in shown} == wanted.keys()
    for method, seeds, natural, pgd20, autoattack, *differences, square, live, flops in shown:
        row = wanted[method]
        assert seeds == row["seeds"]
        for cell, column in ((natural, "natural"), (pgd20, "pgd20"), (autoattack, "autoattack")):
            values = [row[column], row[f"{column}_spread"]]
            expected = [100 * float(share) for share in values if share]
            assert shares(cell) == pytest.approx(expected, abs=0.0501), (method, column)
        interval = intervals.get((method, row["target"]), {})
        for difference, against in zip(differences, (baseline, "dense"), strict=True):
            ends = [interval.get(f"minus {against}{end}", "") for end in ("", ", low", ", high")]
            words = re.findall(r"[+-][\d.]+", difference)
            expected = [float(end) for end in ends if end]
            assert [float(word) for word in words] == pytest.approx(expected, abs=0.0501), method
        of_method = [
            each
            for each in everything
            if (each["method"], each["target"]) == (method, row["target"])
        ]
        lost = [float(each["after fab-t"]) - float(each["after square"]) for each in of_method]
        assert float(square) == pytest.approx(100 * sum(lost) / len(lost), abs=0.0501), method
        mean = sum(int(each["live"]) for each in of_method) / len(of_method)
        assert int(live.replace(",", "")) == pytest.approx(mean, abs=0.51), method
        mean = sum(float(each["flops"]) for each in of_method) / len(of_method)
        assert float(flops) == pytest.approx(100 * mean, abs=0.0501), method


def test_held_out_images_of_fashion():
    measured = rows("fashion_best_held_out.csv")
    names = {cell.name: (cell.method, cell.target) for cell in cells(fashion_best.MATRIX)}
    shown = {row[0]: row[1:] for row in table("five networks each, images that no run has used")}
    expected = {}
    for method, target in dict.fromkeys(names[row["run"]] for row in measured):
        of_cell = [row for row in measured if names[row["run"]] == (method, target)]
        assert len(of_cell) == 5
        places = slice(2, 4) if target == 0.001 else slice(0, 2)
        means = [sum(float(row[name]) for row in of_cell) / 5 for name in ("natural", "robust")]
        expected.setdefault(method, [""] * 4)[places] = [f"{mean:.1f}" for mean in means]
    assert shown == expected


def test_held_out_images_of_cifar():
    names = {cell.name: (cell.method, cell.target) for cell in cells(cifar_jpeg.MATRIX)}
    measured = {}
    for row in rows("cifar_jpeg_held_out.csv"):
        measured.setdefault(names[row["run"]], []).append(row)
    shown = table("CIFAR-10 (JPEG), images that no run has used")
    targets = {"": 1, "95 %": 0.05, "99 %": 0.01, "99.9 %": 0.001}
    assert {(row[0], targets[row[1]]) for row in shown} == measured.keys()
    for method, pruned, seeds, *accuracies in shown:
        found = measured[method, targets[pruned]]
        assert int(seeds) == len(found)
        for text, name in zip(accuracies, ("natural", "robust"), strict=True):
            mean = sum(float(row[name]) for row in found) / len(found)
            assert float(text) == pytest.approx(mean, abs=0.0501), (method, pruned, name)


def test_the_starts():
    measured = {row["run"]: row for row in rows("fashion_best_starts_held_out.csv")}
    shown = {row[0]: row[1:] for row in table("images that no run has used")}
    expected = {}
    for cell in cells(MATRIX):
        places = slice(2, 4) if cell.target == 0.001 else slice(0, 2)
        numbers = expected.setdefault(cell.method, [""] * 4)
        row = measured[cell.name]
        numbers[places] = [f"{float(row[name]):.1f}" for name in ("natural", "robust")]
    assert shown == expected


def test_the_finetuning_rates():
    measured = {row["run"]: row for row in rows("fashion_best_rates_held_out.csv")}
    targets = {"99 %": "0.01", "99.9 %": "0.001"}
    names = {
        (cell.method, f"{cell.target:g}"): cell.name for cell in cells(fashion_best_rates.MATRIX)
    }
    head, *shown = next(each for each in TABLES if each[0][0] == "finetuning at")
    for name, *robust in shown:
        method, pruned = name.rsplit(", ", 1)
        for rate, text in zip(head[1:], robust, strict=True):
            row = measured.pop(names[f"{method}, rate={rate}", targets[pruned]])
            assert float(text) == pytest.approx(float(row["robust"]), abs=0.0501), (name, rate)
    assert not measured


@pytest.mark.parametrize(
    ("matrix", "name", "tables", "seeds"),
    [
        (
            fashion_best_options.MATRIX,
            "fashion_best_options",
            {"options at 99 %": 0.01, "options at 99.9 %": 0.001},
            3,
        ),
        (cifar_jpeg_options.MATRIX, "cifar_jpeg_options", {"options on CIFAR-10": 0.001}, 1),
    ],
)
def test_the_options(matrix, name, tables, seeds):
    """Each option alone on and alone off: means over the seeds."""
    found = {}
    names = {cell.name: (cell.method, cell.target) for cell in cells(matrix)}
    for row in rows(f"{name}_held_out.csv"):
        found.setdefault(names[row["run"]], []).append(row)
    for title, target in tables.items():
        first, *others = table(title)
        for option, *numbers in (first, *others):
            pair = [f"HARP, live, with {option}", f"HARP, best, without {option}"]
            pair = ["HARP, live", "HARP, best"] if option == first[0] else pair
            for method, shown in zip(pair, (numbers[:2], numbers[2:]), strict=True):
                of_method = found.pop((method, target), [])
                assert len(of_method) == seeds * any(shown), method
                for text, column in zip(shown, ("natural", "robust"), strict=True):
                    mean = sum(float(row[column]) for row in of_method) / seeds
                    assert float(text or 0) == pytest.approx(mean, abs=0.0501), (method, column)
    assert not found


def test_what_only_square_found():
    measured = {row["run"]: row for row in rows("fashion_best_square.csv")}
    for run, *numbers in table("run"):
        row = measured[run]
        assert numbers == [row[name] for name in ("only square", "ce", "margin", "either")]


@pytest.mark.parametrize(
    ("first", "matrix", "target", "seeds"),
    [
        ("Fashion-MNIST, 99 %", "fashion_best", "0.01", "01234"),
        ("Fashion-MNIST, 99.9 %", "fashion_best", "0.001", "01234"),
        ("Fashion-MNIST, half of the channels", "fashion_best_channels", "0.5", "012"),
        ("CIFAR-10 after JPEG", "cifar_jpeg", "0.01", "012"),
        ("the same, 99.9 %", "cifar_jpeg", "0.001", "012"),
    ],
)
def test_the_readme(first, matrix, target, seeds):
    (shown,) = (
        row
        for each in pages.tables(runs.ROOT / "README.md")
        for row in each
        if row[0] == first or row[0].startswith(first + ",")
    )
    everything = rows(f"{matrix}_matrix.csv")

    def mean(method, column):
        of_method = {
            row["seed"]: row[column]
            for row in everything
            if (row["method"], row["target"]) == (method, "1" if method == "dense" else target)
        }
        return 100 * sum(float(of_method[seed]) for seed in seeds) / len(seeds)

    methods = ("dense", "HARP, best", LAMP)
    if matrix == "fashion_best_channels":
        methods = ("dense", "HARP, channels, best", "uniform channels, best")
    for cell, method in zip(shown[1:4], methods, strict=True):
        found = [float(part) for part in cell.split(" / ") if part]
        expected = [mean(method, column) for column in ("natural", "autoattack")] if cell else []
        assert found == pytest.approx(expected, abs=0.0501), method
    flops = [float(part) for part in shown[4].removesuffix(" %").split(" / ")]
    assert flops == pytest.approx([mean(method, "flops") for method in methods[1:]], abs=0.0501)
