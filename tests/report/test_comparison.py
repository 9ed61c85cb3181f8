"""The page that compares runs."""

import json
import re

import numpy as np
import pytest
import reports

from harp_jax import report
from harp_jax.report import __main__ as command
from harp_jax.report import comparison_figures, runs, seeds, theme

pytestmark = pytest.mark.usefixtures("quick_figures")

SIZES = {
    "stage": "finetune",
    "model": "cnn",
    "device": "cpu",
    "dense_bytes": 400_000,
    "bytes": {"prune": 22_000, "finetune": 21_000},
    "digests": {"prune": None, "finetune": None},
    "milliseconds": [],
}


def write(tmp_path, name, **fields):
    return reports.write_run(tmp_path / name, **fields)


def change(path, edit):
    tree = json.loads(path.read_text())
    edit(tree)
    path.write_text(json.dumps(tree))


def compared(workdirs, tmp_path):
    page = report.compare(workdirs, tmp_path / "page")
    assert page.name == "index.html"
    return reports.without_figures(page.read_text(encoding="utf-8"))


def configurations(workdirs):
    return runs.configurations(runs.read(workdirs))


def names(workdirs):
    return [[run.name for run in each.runs] for each in configurations(workdirs)]


def test_means_and_deviations_over_seeds(tmp_path):
    few = [write(tmp_path, f"a_{seed}", seed=seed, added=0.01 * seed) for seed in range(3)]
    one = write(tmp_path, "b", prune__target=0.1)
    text = reports.text_of(compared([*few, one], tmp_path))
    assert "runs 4 configurations 2" in text
    assert "A B runs a_0 a_1 a_2 b seeds 0, 1, 2 0 prune.target 0.05 0.1 Each" in text
    line = "pruned A 95.0 % 4,910 97.0 ± 1.0 % 89.0 ± 1.0 % 87.0 ± 1.0 % 0, 1, 2"
    assert line in text
    assert "pruned B 95.0 % 4,910 96.0 % 88.0 % 86.0 % 0 finetuned A" in text
    assert "pgd20 : PGD, L∞, ε = 0.2" in text
    assert 'class="notes fine missing"' not in compared([*few, one], tmp_path)


def test_the_deviation_is_that_of_a_sample():
    assert seeds.spread([0.5, 0.6], 1000) == "55.0 ± 7.1 %"
    assert seeds.spread([0.5, 0.6], 10_000) == "55.00 ± 7.07 %"
    assert seeds.spread([0.5], 1000) == "50.0 %"
    assert seeds.spread([], 1000) == ""


def test_fields_that_do_not_change_networks_do_not_tell_runs_apart(tmp_path):
    one = write(tmp_path, "one", seed=1, devices=1, evaluate__batch_size=1)
    other = write(tmp_path, "other", seed=2, devices=8, evaluate__batch_size=2)
    assert names([other, one]) == [["one", "other"]]  # by seed


def test_a_field_that_a_run_did_not_know_has_its_default(tmp_path):
    knows = write(tmp_path, "new", seed=1, prune__clip_norm=runs.default().prune.clip_norm)
    old, other = write(tmp_path, "old"), write(tmp_path, "other", prune__clip_norm=123.0)
    assert names([old, knows, other]) == [["old", "new"], ["other"]]


def test_sources_of_the_same_seed_are_one_configuration(tmp_path):
    path = "/data/t0.05_{}/pretrain"
    few = [write(tmp_path, f"a_{n}", seed=n, prune__source=path.format(n)) for n in range(3)]
    other = write(tmp_path, "b", seed=0, prune__source="/data/t0.05_7/pretrain")
    found = configurations([*few, other])
    assert [len(each.runs) for each in found] == [3, 1]
    shown = ["/data/t0.05_SEED/pretrain", "/data/t0.05_7/pretrain"]
    assert runs.differences(found) == {"prune.source": shown}


def test_rates_of_a_file_are_told_apart_by_what_it_held(tmp_path):
    for name, digest in (("a", "0" * 64), ("b", "0" * 64), ("c", "1" * 64)):
        workdir = write(tmp_path, name, seed=ord(name), prune__strategy=f"json:/{name}")
        sources = {"prune.strategy": {"given": f"json:/{name}", "digest": digest}}
        change(workdir / "config.json", lambda tree, s=sources: tree.update(sources=s))
    found = configurations([tmp_path / name for name in "abc"])
    assert runs.differences(found) == {"prune.strategy": ["json: 00000000", "json: 11111111"]}


def test_other_data_and_models_stand_in_sections_of_their_own(tmp_path):
    workdirs = [
        write(tmp_path, "a", seed=0),
        write(tmp_path, "b", seed=1),
        write(tmp_path, "c", seed=2, model="vgg16"),
        write(tmp_path, "d", seed=3, data__name="other"),
    ]
    page = compared(workdirs, tmp_path)
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == ["What is compared", "cnn on mnist5k", "vgg16 on mnist5k", "cnn on other"]
    text = reports.text_of(page)
    assert "data.name mnist5k mnist5k other model cnn vgg16 cnn" in text
    assert "pruned B 95.0 % 4,910 96.0 % 88.0 % 86.0 % 2" in text
    assert reports.figures_of(page) == [
        f"{name}{number}" for number in range(3) for name in ("epochs", "size")
    ]


def test_other_test_images_are_not_averaged(tmp_path):
    few = [write(tmp_path, "a", seed=0), write(tmp_path, "b", seed=1, images="d2")]
    assert names(few) == [["a"], ["b"]]
    assert runs.differences(configurations(few)) == {"test images": ["d1", "d2"]}


def test_attacks_of_one_name_with_other_settings_are_kept_apart(tmp_path):
    few = [write(tmp_path, "a", seed=0), write(tmp_path, "b", seed=1, added=0.02)]
    change(few[1] / "results.json", lambda tree: tree["attacks"]["pgd20"].update(steps=7))
    text = reports.text_of(compared(few, tmp_path))
    assert "natural fgsm pgd20 [1] pgd20 [2] seeds" in text
    line = "pruned A 95.0 % 4,910 97.0 ± 1.4 % 89.0 ± 1.4 % 86.0 % (1 of 2) 88.0 % (1 of 2) 0, 1"
    assert line in text
    assert "pgd20 [2] : PGD, L∞, ε = 0.2, step size 0.05, 7 steps" in text
    assert "b : its pruned network was not measured under pgd20 [1]." in text


def test_what_is_missing_is_said(tmp_path):
    whole = write(tmp_path, "whole")
    (whole / "network.json").write_text(json.dumps(SIZES))
    short = write(tmp_path, "short", seed=1, stages=("pretrain", "prune"))
    change(short / "results.json", lambda tree: tree.update(complete=False))
    begun = write(tmp_path, "begun", seed=2, stages=("pretrain",))
    (begun / "results.json").unlink()
    empty = write(tmp_path, "empty", seed=3, stages=())
    again = write(tmp_path, "again", added=0.01)
    text = reports.text_of(compared([whole, short, begun, empty, again], tmp_path))
    for said in (
        "short : its evaluation is not complete.",
        "short : has no finetuned network in its table.",
        "short : has no network.json, so no size of its file.",
        "begun : has no results.json with rows: not evaluated yet (complete networks: dense",
        "empty : has no results.json with rows: not evaluated yet (complete networks: none).",
        "again : has the configuration and the seed of whole; only that counts.",
    ):
        assert said in text
    assert "runs 5 configurations 1" in text
    assert "finetuned A 95.0 % 4,910 97.1 % 90.2 % 88.2 % 0 " in text
    assert "pruned A 95.0 % 4,910 96.0 ± 0.0 % 88.0 ± 0.0 % 86.0 ± 0.0 % 0, 1" in text


def test_only_runs_that_are_not_evaluated(tmp_path):
    begun = write(tmp_path, "begun", stages=("pretrain",))
    (begun / "results.json").unlink()
    page = compared([begun], tmp_path)
    assert reports.figures_of(page) == ["epochs0"]
    assert 'class="small means"' not in page


def test_names_and_values_are_escaped(tmp_path):
    workdir = write(tmp_path, "<b>bold", prune__method="<i>")
    page = compared([workdir, write(tmp_path, "b")], tmp_path)
    assert "&lt;b&gt;bold" in page
    assert "<td>&lt;i&gt;</td>" in page


def test_runs_of_equal_names_are_told_apart_by_their_paths(tmp_path):
    few = [write(tmp_path / name, "run", seed=n) for n, name in enumerate("ab")]
    assert names([*few, few[0]]) == [[str(workdir) for workdir in few]]


def test_a_line_a_run_in_the_colour_of_its_configuration(tmp_path):
    few = [write(tmp_path, f"a_{seed}", seed=seed) for seed in range(2)]
    found = configurations([*few, write(tmp_path, "b", prune__target=0.1)])
    figure = comparison_figures.epochs(found)
    natural, robust = figure.axes[:3], figure.axes[3:]
    assert [axes.get_title(loc="left") for axes in natural][1:] == ["pruned", "finetuned"]
    for upper, lower in zip(natural, robust, strict=True):
        assert [line.get_label() for line in upper.lines] == ["a_0", "a_1", "b"]
        colours = [line.get_color() for line in upper.lines]
        assert colours == [theme.SERIES[0], theme.SERIES[0], theme.SERIES[1]]
        np.testing.assert_allclose(upper.lines[0].get_ydata(), [0.7, 0.75, 0.8, 0.85])
        np.testing.assert_allclose(lower.lines[0].get_ydata(), [0.5, 0.55, 0.6, 0.65])
    assert [text.get_text() for text in figure.legends[0].texts] == ["A", "B"]
    styles = [comparison_figures.style(place) for place in range(3 * len(theme.SERIES))]
    assert len({repr(each) for each in styles}) == len(styles)


def test_points_over_weights_and_bytes(tmp_path):
    sized, other = write(tmp_path, "a", seed=0), write(tmp_path, "b", seed=1)
    (sized / "network.json").write_text(json.dumps(SIZES))
    found = configurations([sized, other])
    points = comparison_figures.points(found, seeds.Attacks(found[0].runs))
    (over_weights, over_bytes, *robust) = comparison_figures.over_size(found, points).axes
    lines = [line for line in over_weights.lines if line.get_label() in ("a", "b")]
    np.testing.assert_array_equal([line.get_xdata() for line in lines], [[98192, 4910]] * 2)
    np.testing.assert_allclose(lines[0].get_ydata(), [0.98, 0.971])
    (line,) = [line for line in over_bytes.lines if line.get_label() in ("a", "b")]
    np.testing.assert_array_equal(line.get_xdata(), [400_000, 21_000])
    np.testing.assert_allclose(robust[0].lines[0].get_ydata(), [0.9, 0.882])
    marks = [line for line in over_weights.lines if len(line.get_xdata()) == 1]
    fills = [line.get_markerfacecolor() for line in marks]
    assert fills == [theme.PAPER, theme.SERIES[0]] * 2  # a ring, a disc


def test_sizes_without_files_have_one_column_and_dense_runs_no_figure(tmp_path):
    found = configurations([write(tmp_path, "a")])
    points = comparison_figures.points(found, seeds.Attacks(found[0].runs))
    assert len(comparison_figures.over_size(found, points).axes) == 2
    dense = [run[:1] for run in points]
    assert comparison_figures.over_size(found, dense) is None


def test_without_an_attack_that_all_share_natural_accuracy_is_drawn_alone(tmp_path):
    write(tmp_path, "a")
    change(tmp_path / "a" / "results.json", lambda tree: tree["rows"][0].update(robust={}))
    found = configurations([tmp_path / "a"])
    points = comparison_figures.points(found, seeds.Attacks(found[0].runs))
    assert comparison_figures.worst_kind(points) is None
    assert len(comparison_figures.over_size(found, points).axes) == 1


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(report.ReportError, match=r"none: has no config\.json and no results\.json"):
        report.compare([write(tmp_path, "a"), tmp_path / "none"], tmp_path / "page")
    assert not (tmp_path / "page").exists()


@pytest.mark.usefixtures("drawn")
def test_the_command(tmp_path, capsys):
    few = [str(write(tmp_path, f"a_{seed}", seed=seed)) for seed in range(2)]
    assert command.main([*few, f"--out={tmp_path / 'page'}"]) == 0
    page = tmp_path / "page" / "index.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert "Comparison of runs" in page.read_text()
    assert "<script" not in page.read_text()
    assert not re.search(r"style=\"[^\"]*#[0-9a-f]{6}", page.read_text())
    first = page.read_bytes()
    assert command.main([*few, f"--out={tmp_path / 'page'}"]) == 0
    assert page.read_bytes() == first
    assert command.main([few[0]]) == 0
    assert "cnn on mnist5k" in (tmp_path / "a_0" / "report" / "index.html").read_text()


def test_the_commands_errors(tmp_path, capsys):
    workdir = str(write(tmp_path, "a"))
    assert command.main([workdir, str(tmp_path / "none"), f"--out={tmp_path / 'page'}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        command.main([workdir, workdir])
    assert "--out=None: allowed with 2 runs are folders" in capsys.readouterr().err


def test_accuracy_by_class_is_the_mean_over_the_seeds(tmp_path):
    def counted(path, natural, attacked):
        def edit(tree):
            row = tree["rows"][-1]
            row["class_images"] = [500, 0, 500]
            row["correct"] = {"natural": natural, "pgd20": attacked}

        change(path / "results.json", edit)

    a, b = (write(tmp_path, f"a_{seed}", seed=seed) for seed in range(2))
    other, without = (
        write(tmp_path, name, prune__target=t) for name, t in (("b", 0.1), ("c", 0.2))
    )
    assert "Accuracy by class" not in compared([a, b], tmp_path)
    counted(a, [500, 0, 400], [300, 0, 200])
    counted(b, [400, 0, 400], [200, 0, 100])
    counted(other, [250, 0, 500], [50, 0, 100])
    text = reports.text_of(compared([a, b, other, without], tmp_path))
    assert "Accuracy by class A B class test images natural pgd20 natural pgd20" in text
    assert "0 500 90.0 % 50.0 % 50.0 % 10.0 %" in text
    assert "2 500 80.0 % 30.0 % 100.0 % 20.0 %" in text
    assert "Of the finetuned networks on the test images of each class" in text
    # Other numbers of images a class are other data: no table, and no error.
    change(other / "results.json", lambda tree: tree["rows"][-1].update(class_images=[400, 0, 600]))
    assert "Accuracy by class" not in compared([a, b, other], tmp_path)
