import json
import re

import numpy as np
import pytest
from etils import epath

from harp_jax import report
from harp_jax.report import curves, plots

STAGES = ("pretrain", "prune", "finetune")
FIGURES = ["layers", "compression", "rates", "accuracy", "loss", "examples"]
LAYERS = {"conv1": (144, 100), "conv2": (4608, 900), "dense1": (93440, 3910)}


def write_json(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))


def results(stages=STAGES):
    natural = {"pretrain": 0.98, "prune": 0.96, "finetune": 0.971}
    robust = {"pretrain": 0.9, "prune": 0.86, "finetune": 0.882}
    rows = []
    for stage in stages:
        dense = stage == "pretrain"
        layers = [
            {"layer": name, "parameters": size, "kept": size if dense else kept, "rate": None}
            for name, (size, kept) in LAYERS.items()
        ]
        rows.append(
            {
                "stage": stage,
                "sparsity": 0.0 if dense else 1 - 4910 / 98192,
                "parameters": 98192 if dense else 4910,
                "total": 98192,
                "natural": natural[stage],
                "robust": {"fgsm": robust[stage] + 0.02, "pgd20": robust[stage]},
                "images": 1000,
                "seconds": 12.34,
                "checkpoint_epoch": 2,
                "layers": layers,
            }
        )
    pgd = {"type": "PGD", "epsilon": 0.2, "step_size": 0.05, "steps": 20, "restarts": 5}
    return {
        "config": {"model": "cnn", "prune": {"target": 0.05}},
        "seed": 7,
        "versions": {"jax": "0.10.2"},
        "complete": True,
        "dataset": {"name": "mnist5k", "train": 3600, "validation": 400, "test": 1000},
        "attacks": {"fgsm": {"type": "FGSM", "epsilon": 8 / 255}, "pgd20": pgd | {"norm": "linf"}},
        "notes": ["the rates were shifted onto the budget"],
        "rows": rows,
    }


def metrics(stage, epochs=4):
    lines = []
    for epoch in range(epochs):
        line = {
            "stage": stage,
            "epoch": epoch,
            "images_per_second": 300.0 + epoch,
            "train": {"loss": 2 / (epoch + 1), "accuracy": 0.6},
            "validation": {"natural": 0.7 + 0.05 * epoch, "robust": 0.5 + 0.05 * epoch},
            "best": epoch == 2,
        }
        if stage == "prune":
            rate = max(0.1 - 0.02 * epoch, 0.05)
            line["compression"] = {
                "loss": rate / 0.05 - 1,
                "gamma": 0.01 * (epoch + 1),
                "frozen": epoch == 3,
                "rate": rate,
                "target": 0.05,
                "reached": epoch == 3,
            }
            line["rates"] = dict.fromkeys(LAYERS, rate)
        lines.append(json.dumps(line))
    return "\n".join(lines) + "\n"


def write_examples(path, stages=STAGES, channels=1, count=3):
    generator = np.random.default_rng(0)
    images = generator.random((count, 8, 8, channels), dtype=np.float32)
    labels = np.arange(count, dtype=np.int32)
    arrays = {"images": images, "labels": labels, "epsilon": 0.2, "attack": "pgd20"}
    for stage in stages:
        noise = generator.uniform(-0.2, 0.2, images.shape).astype(np.float32)
        arrays[f"{stage}/adversarial"] = np.clip(images + noise, 0, 1)
        arrays[f"{stage}/natural_prediction"] = labels
        arrays[f"{stage}/adversarial_prediction"] = (labels + 1) % count
    np.savez(path, **arrays)


@pytest.fixture(autouse=True)
def quick_figures(request, monkeypatch):
    """Figures are made, but drawn only for the tests that look at what is drawn, and coarsely."""
    monkeypatch.setattr(plots, "DOTS_PER_INCH", 30)
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(plots, "to_png_bytes", lambda figure: b"not drawn")


@pytest.fixture
def drawn():
    """For tests whose figures are to be drawn."""


@pytest.fixture
def workdir(tmp_path):
    write_json(tmp_path / "results.json", results())
    run = {
        "config": {"model": "cnn", "seed": 7, "prune": {"target": 0.05, "epochs": 4}},
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "seed": 7,
        "revision": "abc123",
        "created": "2031-02-03T04:05:06Z",
    }
    write_json(tmp_path / "config.json", run)
    for stage in STAGES:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text(metrics(stage))
    write_examples(tmp_path / "examples.npz")
    return tmp_path


@pytest.fixture
def bare(tmp_path):
    """A workdir of which only the results are left."""
    write_json(tmp_path / "results.json", results())
    return tmp_path


def page_of(workdir):
    """The page without its figures' data, in which any letters may occur."""
    path = report.write(workdir)
    assert path == epath.Path(workdir) / "report" / "index.html"
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", path.read_text(encoding="utf-8"))


def text_of(page):
    return " ".join(re.sub(r"<[^>]+>", " ", page.split("</style>")[1]).split())


def figures_of(page):
    return re.findall(r'<figure id="(\w+)">\s*<img src="data:image/png;base64," alt="[^"]+"', page)


def test_page_holds_the_numbers(workdir):
    text = text_of(page_of(workdir))
    assert "cnn on mnist5k" in text
    assert "target sparsity 95.0 % seed 7 date 2031-02-03" in text
    assert "dense (pretrain) 0.0 % 98,192 of 98,192 98.0 % 92.0 % 90.0 % 1,000" in text
    assert "pruned 95.0 % 4,910 of 98,192 96.0 % 88.0 % 86.0 % 1,000" in text
    assert "finetuned 95.0 % 4,910 of 98,192 97.1 % 90.2 % 88.2 % 1,000" in text
    assert "97.1 % of the clean test images correctly and 88.2 % of those attacked with" in text
    assert "the dense network 98.0 % and 90.0 %." in text
    assert "fgsm : FGSM, ε = 8/255" in text
    assert "pgd20 : PGD, L∞, ε = 0.2, step size 0.05, 20 steps, 5 restarts" in text
    assert "standard error of up to 1.1 points" in text  # sqrt(0.86 * 0.14 / 1000)
    assert "the rates were shifted onto the budget" in text
    assert "3,600 images are for training" in text
    assert "pruned 4 2 302 12.3 s" in text
    assert "revision abc123" in text
    assert "flax 0.12.8" in text
    assert "prune.epochs 4" in text


@pytest.mark.usefixtures("drawn")
def test_page_embeds_every_figure_and_needs_nothing_else(workdir):
    page = page_of(workdir)
    assert figures_of(page) == FIGURES
    assert page.count("<img") == len(FIGURES)
    assert [f"Figure {number}." in page for number in range(1, 8)] == [True] * 6 + [False]
    assert "http" not in page
    assert "<script" not in page
    assert [each.name for each in (workdir / "report").iterdir()] == ["index.html"]


@pytest.mark.usefixtures("drawn")
def test_equal_inputs_give_the_same_page(bare):
    write_examples(bare / "examples.npz")
    first = report.write(bare).read_bytes()
    assert report.write(bare).read_bytes() == first


@pytest.mark.parametrize(
    ("missing", "left"),
    [
        (["examples.npz"], FIGURES[:5]),
        (["prune/metrics.jsonl"], ["layers", "accuracy", "loss", "examples"]),
        ([f"{stage}/metrics.jsonl" for stage in STAGES], ["layers", "examples"]),
        (["config.json"], FIGURES),
    ],
)
def test_what_is_missing_is_left_out(workdir, missing, left):
    for name in missing:
        (workdir / name).unlink()
    assert figures_of(page_of(workdir)) == left


def test_a_dense_run_alone(workdir):
    tree = results(["pretrain"]) | {"attacks": {}, "notes": [], "complete": False}
    tree["rows"][0]["robust"] = {}
    write_json(workdir / "results.json", tree)
    for name in ("prune/metrics.jsonl", "finetune/metrics.jsonl", "examples.npz"):
        (workdir / name).unlink()
    page = page_of(workdir)
    assert figures_of(page) == ["accuracy", "loss"]
    text = text_of(page)
    assert "dense (pretrain) 0.0 % 98,192 of 98,192 98.0 % 1,000" in text
    assert "This run is not complete" in text
    assert "target sparsity" not in text
    assert "pgd20" not in text


def test_rows_are_put_in_the_order_of_the_stages(bare):
    tree = results()
    tree["rows"].reverse()
    write_json(bare / "results.json", tree)
    text = text_of(page_of(bare))
    places = [text.index(f"{name} 95.0 %") for name in ("pruned", "finetuned")]
    assert text.index("dense (pretrain) 0.0 %") < places[0] < places[1]


def test_large_test_sets_and_high_sparsities_get_another_digit(bare):
    tree = results(["finetune"])
    tree["rows"][0] |= {"images": 10000, "natural": 0.97125, "sparsity": 0.9995, "robust": {}}
    write_json(bare / "results.json", tree)
    assert "finetuned 99.95 % 4,910 of 98,192 97.12 % 10,000" in text_of(page_of(bare))


def test_an_epoch_logged_twice_counts_once_with_its_later_values(bare):
    log = bare / "finetune" / "metrics.jsonl"
    log.parent.mkdir()
    log.write_text(metrics("finetune", epochs=3) + metrics("finetune").replace("300.0", "900.0"))
    assert "finetuned 4 2 302 12.3 s" in text_of(page_of(bare))


def test_names_are_escaped(bare):
    tree = results()
    tree["dataset"]["name"] = "<img src=x>"
    tree["notes"] = ["a <b>bold</b> & loud note"]
    write_json(bare / "results.json", tree)
    page = page_of(bare)
    assert "<img src=x>" not in page
    assert "cnn on &lt;img src=x&gt;" in page
    assert "a &lt;b&gt;bold&lt;/b&gt; &amp; loud note" in page


@pytest.mark.usefixtures("drawn")
def test_colour_images(bare):
    write_examples(bare / "examples.npz", channels=3, count=12)
    assert figures_of(page_of(bare)) == ["layers", "examples"]


def test_error_without_results_names_the_stage_to_run(tmp_path):
    with pytest.raises(report.ReportError, match=r"results\.json: missing.*run stage 'pretrain'"):
        report.write(tmp_path)


def test_a_stage_without_epochs_is_not_pending(tmp_path):
    (tmp_path / "pretrain" / "result").mkdir(parents=True)
    with pytest.raises(report.ReportError, match=r"missing.*run stage 'prune'"):
        report.write(tmp_path)


def test_error_without_rows_names_the_stage_to_run(workdir):
    write_json(workdir / "results.json", results() | {"rows": []})
    with pytest.raises(report.ReportError, match=r"results\.json: has no rows.*the evaluation"):
        report.write(workdir)


@pytest.mark.parametrize("name", ["results.json", "config.json", "prune/metrics.jsonl"])
def test_error_for_a_broken_file_names_it(workdir, name):
    (workdir / name).write_text('{"epoch": 0}\n{"epo')
    with pytest.raises(report.ReportError, match=rf"{name}: .*not valid JSON"):
        report.write(workdir)


def test_the_page_is_replaced_as_a_whole(workdir, monkeypatch):
    page = report.write(workdir)
    before = page.read_bytes()
    (workdir / "config.json").unlink()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(page), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        report.write(workdir)
    assert page.read_bytes() == before


@pytest.mark.usefixtures("drawn")
def test_autoattack_curve_and_doubts(workdir):
    found = results()
    for row in found["rows"]:
        after = dict(zip(("natural", "apgd-ce", "square"), (0.97, 0.912, 0.853), strict=True))
        row["robust"]["aa"] = after["square"]
        row["autoattack"] = {
            "aa": {
                "after": after,
                "balanced": dict.fromkeys(after, 0.834),
                "seconds": dict.fromkeys(after, 7.0),
            }
        }
        row["curve"] = [{"epsilon": e, "robust": 0.9 - e} for e in (0.0, 0.1, 0.2)]
    found["rows"][1]["warnings"] = ["Square broke <3> images"]
    write_json(workdir / "results.json", found)
    page = page_of(workdir)
    cells = "<td>97.0 %</td><td>91.2 %</td><td>85.3 %</td><td>83.4 %</td><td>21 s</td>"
    assert page.count(cells) == 3
    assert "What each part of aa left" in page
    assert "about the pruned network: Square broke &lt;3&gt; images." in page
    assert '<figure id="security">' in page


def test_the_security_curve():
    curve = curves.SecurityCurve("dense", np.array([0.0, 0.1]), np.array([0.9, 0.4]))
    (axes,) = curves.security([curve]).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), curve.robust)
    assert axes.get_legend().texts[0].get_text() == "dense"
