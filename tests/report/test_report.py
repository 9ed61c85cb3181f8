import numpy as np
import pytest
import reports

from harp_jax import report
from harp_jax.report import curves, words

pytestmark = pytest.mark.usefixtures("quick_figures")

FIGURES = ["layers", "compression", "rates", "accuracy", "loss", "examples"]


@pytest.fixture
def workdir(tmp_path):
    reports.write_json(tmp_path / "results.json", reports.results())
    run = {
        "config": {"model": "cnn", "seed": 7, "prune": {"target": 0.05, "epochs": 4}},
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "seed": 7,
        "revision": "abc123",
        "created": "2031-02-03T04:05:06Z",
    }
    reports.write_json(tmp_path / "config.json", run)
    for stage in reports.STAGES:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text(reports.metrics(stage))
    reports.write_examples(tmp_path / "examples.npz")
    return tmp_path


def test_page_holds_the_numbers(workdir):
    text = reports.text_of(reports.page_of(workdir))
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
    page = reports.page_of(workdir)
    assert reports.figures_of(page) == FIGURES
    assert page.count("<svg") == len(FIGURES)
    assert "<img" not in page
    assert [f"Figure {number}." in page for number in range(1, 8)] == [True] * 6 + [False]
    assert "http" not in page
    assert "<script" not in page
    assert [each.name for each in (workdir / "report").iterdir()] == ["index.html"]


@pytest.mark.usefixtures("drawn")
def test_equal_inputs_give_the_same_page(bare):
    reports.write_examples(bare / "examples.npz")
    first = report.write(bare).read_bytes()
    assert report.write(bare).read_bytes() == first


@pytest.mark.parametrize(
    ("missing", "left"),
    [
        (["examples.npz"], FIGURES[:5]),
        (["prune/metrics.jsonl"], ["layers", "accuracy", "loss", "examples"]),
        ([f"{stage}/metrics.jsonl" for stage in reports.STAGES], ["layers", "examples"]),
        (["config.json"], FIGURES),
    ],
)
def test_what_is_missing_is_left_out(workdir, missing, left):
    for name in missing:
        (workdir / name).unlink()
    assert reports.figures_of(reports.page_of(workdir)) == left


def test_a_dense_run_alone(workdir):
    tree = reports.results(["pretrain"]) | {"attacks": {}, "notes": [], "complete": False}
    tree["rows"][0]["robust"] = {}
    reports.write_json(workdir / "results.json", tree)
    for name in ("prune/metrics.jsonl", "finetune/metrics.jsonl", "examples.npz"):
        (workdir / name).unlink()
    page = reports.page_of(workdir)
    assert reports.figures_of(page) == ["accuracy", "loss"]
    text = reports.text_of(page)
    assert "dense (pretrain) 0.0 % 98,192 of 98,192 98.0 % 1,000" in text
    assert "This run is not complete" in text
    assert "target sparsity" not in text
    assert "pgd20" not in text


def test_rows_are_put_in_the_order_of_the_stages(bare):
    tree = reports.results()
    tree["rows"].reverse()
    reports.write_json(bare / "results.json", tree)
    text = reports.text_of(reports.page_of(bare))
    places = [text.index(f"{name} 95.0 %") for name in ("pruned", "finetuned")]
    assert text.index("dense (pretrain) 0.0 %") < places[0] < places[1]


def test_large_test_sets_and_high_sparsities_get_another_digit(bare):
    tree = reports.results(["finetune"])
    tree["rows"][0] |= {"images": 10000, "natural": 0.97125, "sparsity": 0.9995, "robust": {}}
    reports.write_json(bare / "results.json", tree)
    assert "finetuned 99.95 % 4,910 of 98,192 97.12 % 10,000" in reports.text_of(
        reports.page_of(bare)
    )


@pytest.mark.parametrize(
    ("share", "sparsity", "kept"),
    [
        (0.05, "95.0 %", "5.0 %"),
        (0.0417, "95.8 %", "4.2 %"),
        (0.0005, "99.95 %", "0.05 %"),
        (0.00004, "99.996 %", "0.004 %"),
        (1.0, "0.0 %", "100.0 %"),
        (0.0, "100.00 %", "0.0 %"),
    ],
)
def test_shares_have_the_digits_that_they_need(share, sparsity, kept):
    assert (words.sparsity(1 - share), words.kept(share)) == (sparsity, kept)


def test_an_epoch_logged_twice_counts_once_with_its_later_values(bare):
    log = bare / "finetune" / "metrics.jsonl"
    log.parent.mkdir()
    log.write_text(
        reports.metrics("finetune", epochs=3)
        + reports.metrics("finetune").replace("300.0", "900.0")
    )
    assert "finetuned 4 2 302 12.3 s" in reports.text_of(reports.page_of(bare))


def test_names_are_escaped(bare):
    tree = reports.results()
    tree["dataset"]["name"] = "<img src=x>"
    tree["notes"] = ["a <b>bold</b> & loud note"]
    reports.write_json(bare / "results.json", tree)
    page = reports.page_of(bare)
    assert "<img src=x>" not in page
    assert "cnn on &lt;img src=x&gt;" in page
    assert "a &lt;b&gt;bold&lt;/b&gt; &amp; loud note" in page


@pytest.mark.usefixtures("drawn")
def test_colour_images(bare):
    reports.write_examples(bare / "examples.npz", channels=3, count=12)
    assert reports.figures_of(reports.page_of(bare)) == ["layers", "examples"]


def test_error_without_results_names_the_stage_to_run(tmp_path):
    with pytest.raises(report.ReportError, match=r"results\.json: missing.*run stage 'pretrain'"):
        report.write(tmp_path)


def test_a_stage_without_epochs_is_not_pending(tmp_path):
    (tmp_path / "pretrain" / "result").mkdir(parents=True)
    with pytest.raises(report.ReportError, match=r"missing.*run stage 'prune'"):
        report.write(tmp_path)


def test_error_without_rows_names_the_stage_to_run(workdir):
    reports.write_json(workdir / "results.json", reports.results() | {"rows": []})
    with pytest.raises(report.ReportError, match=r"results\.json: has no rows.*the evaluation"):
        report.write(workdir)


@pytest.mark.parametrize("name", ["results.json", "config.json", "prune/metrics.jsonl"])
def test_error_for_a_broken_file_names_it(workdir, name):
    (workdir / name).write_text('{"epo\n{"epoch": 0}\n')
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
    found = reports.results()
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
    reports.write_json(workdir / "results.json", found)
    page = reports.page_of(workdir)
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
