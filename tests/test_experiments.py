"""The scripts of experiments/: cells and commands of a matrix, its table, its figures."""

import json
import pathlib
import shutil
import subprocess
import sys
import time

import networks
import numpy as np
import pytest
import runs
from PIL import Image

from configs import cifar_vgg, fashion_cnn
from experiments import analysis, collect, compare, figures, sizes, tables
from experiments.matrices import (
    cifar_jpeg,
    cifar_jpeg_options,
    fashion,
    fashion_ablation,
    fashion_best,
    fashion_best_channels,
    fashion_best_options,
    fashion_best_rates,
    fashion_best_starts,
)
from experiments.matrix import DENSE, Matrix, cells
from experiments.workers import Clock, StoppedError, side_by_side
from harp_jax import config as harp
from harp_jax import models
from harp_jax.config.defaults import RECIPES
from harp_jax.evaluation import ROBUST
from harp_jax.export.unread import without_unread
from harp_jax.pruning import schemes
from harp_jax.pruning.sparsity import layer_sparsity
from harp_jax.workdir import files

MATRIX = Matrix(
    base="configs/digits.py",
    fields={"evaluate.run": ("fgsm",)},
    methods={"HARP": {}, "HYDRA, ERK": {"prune.method": "score", "prune.strategy": "erk"}},
    targets=(0.2,),
    more_seeds={"HARP": (1,)},
    more_targets={"HARP": (0.1,)},
)

LAYERS = ("conv1", "conv2", "dense1", "dense2")  # of the network `tiny`


def test_cells_start_with_the_dense_network_of_their_seed():
    assert [cell.name for cell in cells(MATRIX)] == [
        *("dense_1_0", "harp_0.2_0", "harp_0.1_0", "hydra-erk_0.2_0"),
        *("dense_1_1", "harp_0.2_1", "harp_0.1_1"),
    ]


MATRICES = (
    *(cifar_jpeg, cifar_jpeg_options, fashion, fashion_ablation),
    *(fashion_best, fashion_best_channels, fashion_best_options),
    *(fashion_best_rates, fashion_best_starts),
)
CONFIGS = {"configs/fashion_cnn.py": fashion_cnn, "configs/cifar_vgg.py": cifar_vgg}


@pytest.mark.parametrize("matrix", [each.MATRIX for each in MATRICES], ids=lambda each: each.base)
def test_every_cell_sets_fields_that_there_are(matrix):
    everything = list(cells(matrix))
    assert len({cell.name for cell in everything}) == len(everything)
    for cell in everything:
        if cell.seed != matrix.seeds[0]:
            continue  # the other seeds have the same fields
        config = CONFIGS[matrix.base].get_config()
        config.update_from_flattened_dict({**matrix.fields, **cell.fields, "seed": cell.seed})
        harp.validate(config)


def test_each_option_is_alone_on_or_alone_off():
    methods = fashion_best_options.MATRIX.methods
    live, best = methods["HARP, live"], methods["HARP, best"]
    for name, option in fashion_best.OPTIONS.items():
        assert methods[f"HARP, live, with {name}"] == {**live, **option}
        assert {**methods[f"HARP, best, without {name}"], **option} == best
        assert not methods[f"HARP, best, without {name}"].keys() & option.keys()
    assert "prune.live" not in methods["HARP, best, without live"]
    assert best == RECIPES["best"]


def test_seeds_and_epochs_of_the_best():
    seeds = {}
    for cell in cells(fashion_best.MATRIX):
        seeds.setdefault(cell.method, set()).add(cell.seed)
    often = {name for name, of in seeds.items() if len(of) == 5} - {DENSE}
    assert often == set(fashion_best.OFTEN)
    assert all(len(of) == 3 for name, of in seeds.items() if name not in {*often, DENSE})
    config = fashion_cnn.get_config()
    (longer,) = fashion_best.MATRIX.dense.values()
    total = config.pretrain.epochs + config.prune.epochs + config.finetune.epochs
    assert longer["pretrain.epochs"] == total


def test_methods_train_for_equally_many_epochs():
    for method in fashion.MATRIX.methods.values():
        config = fashion_cnn.get_config()
        config.update_from_flattened_dict({**fashion.MATRIX.fields, **method})
        learns = config.prune.method not in ("magnitude", "random")
        assert learns * config.prune.epochs + config.finetune.epochs == 13


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The table of a matrix whose cells all have the results of one short run."""
    workdir = runs.finished(tmp_path_factory.getbasetemp())
    folder = tmp_path_factory.mktemp("tables")
    for cell in cells(MATRIX):
        row = compare.result(cell, workdir)
        row |= {"autoattack": row["pgd10"], "after Square": row["pgd10"]}
        if cell.method == DENSE:
            row["kept_per_layer"] = "72 1152 2048 320"
        tables.add(folder / "toy_matrix.csv", [row])
        tables.add(folder / "toy_epochs.csv", compare.epochs(cell, workdir))
    return folder / "toy_matrix.csv"


def test_a_row_is_the_last_stages_network(table, tmp_path_factory):
    workdir = runs.finished(tmp_path_factory.getbasetemp())
    last = runs.results(workdir)["rows"][-1]
    rows = tables.read(table)
    assert len(rows) == 7
    assert rows[1]["kept"] == str(last["parameters"])
    assert float(rows[1]["natural"]) == round(last["natural"], 4)
    assert 0 < int(rows[1]["live"]) <= int(rows[1]["kept"])
    assert float(rows[1]["flops"]) == round(last["flops"] / last["total_flops"], 4) < 1
    assert rows[1]["kept_per_layer"].split() == [str(each["kept"]) for each in last["layers"]]
    best = max(row["validation"]["robust"] for row in runs.metrics(workdir, "finetune"))
    assert float(rows[1]["validation_robust"]) == round(best, 4)


def test_a_row_leaves_out_attacks_of_other_comparisons(tmp_path, tmp_path_factory):
    """Of a network that comparisons share, which each ask for other attacks."""
    workdir = runs.finished(tmp_path_factory.getbasetemp())
    shutil.copytree(workdir, tmp_path / "run")
    cell = next(cell for cell in cells(MATRIX) if cell.method != DENSE)
    found = runs.results(workdir)
    last = found["rows"][-1]
    last["robust"]["autoattack"] = 0.5
    last["autoattack"] = {"autoattack": {"after": {"square": 0.5}}}
    (tmp_path / "run" / "robustness").mkdir(exist_ok=True)
    np.savez(tmp_path / "run" / "robustness" / "finetune-autoattack.npz", broken_by=[4, ROBUST])
    rows = []
    for asked in (list(last["robust"]), []):
        found["config"]["evaluate"]["run"] = asked
        (tmp_path / "run" / "results.json").write_text(json.dumps(found))
        rows.append(compare.result(cell, tmp_path / "run"))
    left_out = {*last["robust"], "after square", "autoattack_first_250"}
    assert rows[0].keys() - rows[1].keys() == left_out


def test_summary_has_mean_and_spread_over_seeds():
    row = {"target": "0.1", "kept": "9", "natural": "0.8", "pgd20": "0.5"}
    row["validation_robust"] = "0.6"
    lines = [
        {**row, "method": "a", "autoattack": "0.40"},
        {**row, "method": "b", "autoattack": "0.30"},
        {**row, "method": "b", "autoattack": "0.44"},
        {**row, "method": DENSE, "target": "1", "autoattack": "0.45"},
    ]
    dense, first, second = figures.summary(lines)
    assert (dense["method"], first["method"], second["method"]) == (DENSE, "a", "b")
    assert (first["autoattack"], first["autoattack_spread"]) == (0.4, "")
    assert (second["autoattack"], second["autoattack_spread"]) == (0.37, 0.07)


def test_figures_are_drawn(table, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["figures", str(table)])
    figures.main()
    for name in ("accuracy", "kept", "time"):
        assert min(Image.open(table.with_name(f"toy_{name}.png")).size) > 300
    assert len(tables.read(table.with_name("toy_summary.csv"))) == 4


def test_sizes_are_those_of_files_with_as_many_weights(table, tmp_path_factory, monkeypatch):
    workdir = runs.finished(tmp_path_factory.getbasetemp())
    real = (workdir / "network.safetensors").stat().st_size
    arguments = ["sizes", str(table), "--network=tiny", "--image-shape", "8", "8", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    sizes.main()
    dense, *others = tables.read(table.with_name("toy_sizes.csv"))
    assert dense["method"] == DENSE
    assert len(others) == 3
    # Random places compress a little worse than learned ones; the file of a run says more of it.
    assert {row["bytes"] for row in others} != {dense["bytes"]}
    assert all(0.75 * real < int(row["bytes"]) < 1.25 * real for row in others)
    assert min(Image.open(table.with_name("toy_sizes.png")).size) > 300


def test_a_file_has_exactly_the_kept_weights_in_units_that_are_read(monkeypatch):
    files, found = sizes.Files("tiny", (8, 8, 1)), []
    monkeypatch.setattr(sizes.sparse_file, "encode", lambda trained: found.append(trained) or b"")
    counts = [3, 5, 20, 2]
    files.sparse(counts)
    (network,) = found
    # A sparse file leaves nothing of it out.
    for variables in (network.variables, without_unread(*network[:2], (8, 8, 1))):
        kernels = [variables["params"][name]["kernel"] for name in LAYERS]
        assert [int((kernel != 0).sum()) for kernel in kernels] == counts


def test_figures_do_not_depend_on_what_ran_first():
    lines = [
        {"target": target, "seed": seed, "method": "a", "kept_per_layer": "9"}
        for target, seed in [("0.01", "1"), ("0.1", "2"), ("1", "0"), ("0.1", "0"), ("0.01", "0")]
    ]
    ordered = [(line["target"], line["seed"]) for line in figures.in_order(lines)]
    assert ordered == [("1", "0"), ("0.1", "0"), ("0.1", "2"), ("0.01", "0"), ("0.01", "1")]


def test_a_run_that_was_held_is_drawn_no_slower():
    seconds = {"prune": (60, 60, 9000), "finetune": (30, 30, 30)}
    cell = {"target": "0.1", "seed": "0", "method": "a", "robust": "0.5"}
    lines = [{**cell, "stage": s, "seconds": by} for s, each in seconds.items() for by in each]
    (axes,) = figures.time(lines).axes
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [1, 2, 3, 3.5, 4, 4.5]


def test_settings_are_drawn_best_first_with_what_is_out_of_sight_in_words():
    row = {"target": "0.1", "seed": "0", "kept": "9", "natural": "0.8", "pgd20": "0.5"}
    accuracies = {"a": "0.4", "b": "0.6", "c": "0.55", DENSE: "0.7"}
    lines = [{**row, "method": name, "validation_robust": of} for name, of in accuracies.items()]
    lines[-1]["target"] = "1"
    (axes,) = figures.settings(lines).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c", "a"]
    assert [text.get_text()[2:] for text in axes.texts] == ["40.0 %"]
    assert axes.get_xlim()[0] == pytest.approx(0.48)


def test_checkpoints_are_analysed(tmp_path_factory, tmp_path, monkeypatch):
    workdir = runs.finished(tmp_path_factory.getbasetemp())
    monkeypatch.setattr(sys, "argv", ["analysis", str(workdir), f"--out={tmp_path}"])
    analysis.main()
    names = {"strategies.png", "finished_scores.png", "finished_rates.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        assert min(Image.open(tmp_path / name).size) > 300


@pytest.mark.parametrize("script", [analysis, collect])
def test_workdirs_without_pruning_are_named(script, tmp_path, monkeypatch, capsys):
    arguments = [str(tmp_path), *(["--out=x"] if script is analysis else [])]
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert f"{tmp_path}: allowed are workdirs" in capsys.readouterr().err


def test_layers_of_pruned_channels_are_counted_without_what_nobody_reads():
    scheme = schemes.scheme(models.create("tiny", 10), (8, 8, 1), "channel")
    dense = networks.tiny()
    variables = scheme.make_prunable(dense, dict.fromkeys(scheme.architecture.pruned, 0.5), 0.02)
    metadata = {"model": "tiny", "num_classes": 10, "image_shape": [8, 8, 1]}
    found = [row.kept for row in analysis.layers({**variables, "metadata": metadata})]
    assert found == [row.kept for row in layer_sparsity(variables, scheme.architecture)]
    assert sum(found) < sum(row.kept for row in layer_sparsity(variables))


def test_a_stopped_matrix_goes_on(tmp_path, tmp_path_factory, monkeypatch):
    """Cells with a row are done; a missing dense network is trained again for those without."""
    workdir, called = runs.finished(tmp_path_factory.getbasetemp()), []

    def run(command, clock):
        cell_workdir = next(part for part in command if part.startswith("--workdir="))
        called.append((cell_workdir.split("/")[-1], command))
        (tmp_path / called[-1][0]).symlink_to(workdir)

    monkeypatch.setattr(compare, "load", lambda path: MATRIX)
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    monkeypatch.setattr(compare, "execute", run)
    first, second, *_ = cells(MATRIX)
    for cell in (first, second):
        tables.add(tmp_path / "toy_matrix.csv", [compare.result(cell, workdir)])
    arguments = ["compare", "--matrix=toy.py", f"--runs={tmp_path}"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--only=hydra"])
    compare.main()
    assert [name for name, _ in called] == ["dense_1_0", "hydra-erk_0.2_0"]
    assert "--config.stages=('pretrain',)" in called[0][1]
    assert f"--config.prune.source={tmp_path}/dense_1_0/pretrain" in called[1][1]
    called.clear()
    monkeypatch.setattr(sys, "argv", arguments)
    with compare.claimed(tmp_path / "harp_0.1_0.lock", wait=False):  # another process has it
        compare.main()
    assert [name for name, _ in called] == ["dense_1_1", "harp_0.2_1", "harp_0.1_1"]
    compare.main()
    assert [name for name, _ in called[3:]] == ["harp_0.1_0"]
    assert len(tables.read(tmp_path / "toy_matrix.csv")) == len(list(cells(MATRIX)))


def test_methods_that_differ_in_finetuning_share_a_pruned_network(tmp_path, monkeypatch):
    """The pruned network is made once, before what starts from it; a lost one is made again."""
    called = []
    fields = {"finetune.learning_rate": 0.1}
    matrix = Matrix(
        "configs/digits.py", {}, {"a, low": fields, "a": {}}, (0.2,), pruned={"a, low": "a"}
    )

    def run(command, clock):
        workdir = next(part for part in command if part.startswith("--workdir="))
        name = workdir.split("/")[-1]
        called.append((name, command))
        for stage in ("pretrain", "prune"):
            (tmp_path / name / stage / files.RESULT).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(compare, "load", lambda path: matrix)
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    monkeypatch.setattr(compare, "execute", run)
    monkeypatch.setattr(compare, "epochs", lambda cell, workdir: [compare.named(cell)])
    monkeypatch.setattr(compare, "result", lambda cell, workdir: compare.named(cell))
    monkeypatch.setattr(sys, "argv", ["compare", "--matrix=toy.py", f"--runs={tmp_path}"])
    compare.main()
    assert [name for name, _ in called] == ["dense_1_0", "a_0.2_0", "a-low_0.2_0"]
    assert f"--config.finetune.source={tmp_path}/a_0.2_0/prune" in called[2][1]
    assert "--config.stages=('finetune', 'evaluate')" in called[2][1]
    assert "--config.stages=('prune', 'finetune', 'evaluate')" in called[1][1]
    table = tmp_path / "toy_matrix.csv"
    tables.write(table, [row for row in tables.read(table) if row["method"] != "a, low"])
    shutil.rmtree(tmp_path / "a_0.2_0")
    called.clear()
    compare.main()
    assert [name for name, _ in called] == ["a_0.2_0", "a-low_0.2_0"]
    assert "--config.stages=('prune',)" in called[0][1]
    assert len(tables.read(table)) == 3
    tables.write(table, [row for row in tables.read(table) if row["method"] != "a, low"])
    shutil.rmtree(tmp_path / "a_0.2_0" / "prune")
    (tmp_path / "a_0.2_0" / files.RESULTS).touch()  # a stage that is trained again loses its row
    called.clear()
    compare.main()
    assert "--config.stages=('prune', 'evaluate')" in called[0][1]


def test_comparisons_in_other_folders_share_a_table_without_losing_rows(tmp_path, monkeypatch):
    matrix, writing = Matrix("configs/digits.py", {}, {"a": {}}, (0.2,), seeds=(0, 1, 2)), set()

    def add(path, lines):
        assert not writing
        writing.add(path)
        time.sleep(0.02)  # as long as a table is read and written
        tables.add(path, lines)
        writing.clear()

    monkeypatch.setattr(compare, "execute", lambda command, clock: None)
    monkeypatch.setattr(compare, "epochs", lambda cell, workdir: [compare.named(cell)])
    monkeypatch.setattr(compare, "result", lambda cell, workdir: compare.named(cell))
    monkeypatch.setattr(compare, "add", add)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    works = iter([compare.Work(matrix, "toy", each, tmp_path, Clock()) for each in folders])
    side_by_side(lambda: next(works).on(), 2, Clock())
    assert len(tables.read(tmp_path / "toy_matrix.csv")) == len(list(cells(matrix)))


def test_fields_of_the_command_line_are_those_of_all_cells(tmp_path, monkeypatch, capsys):
    called = []

    def run(command, clock):
        called.append(command)
        raise StoppedError

    monkeypatch.setattr(compare, "load", lambda path: MATRIX)
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    monkeypatch.setattr(compare, "execute", run)
    arguments = ["compare", "--matrix=toy.py", f"--runs={tmp_path}", "--hours=1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--set=data.name=npz:a=b.npz", "--set=width=0.5"])
    compare.main()
    (command,) = called  # nothing begins after a stop
    assert {"--config.data.name=npz:a=b.npz", "--config.width=0.5"} <= set(command)
    assert "the same command goes on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("--jobs=0", "--jobs=0: allowed are whole numbers >= 1"),
        ("--hours=0", "--hours=0.0: allowed are numbers > 0"),
        ("--hours=nan", "--hours=nan: allowed are numbers > 0"),
        ("--set=width", "--set=width: allowed is FIELD=VALUE"),
        ("--set=seed=3", "--set=seed=3: allowed are fields other than seed, stages, prune.target"),
        ("--runs=/dev/null", "--runs=/dev/null: File exists; allowed are folders"),
    ],
)
def test_wrong_options_are_refused_in_a_line(option, allowed, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", "--matrix=toy.py", "--runs=none", option])
    with pytest.raises(SystemExit, match="2"):
        compare.main()
    assert allowed in capsys.readouterr().err


def test_an_unknown_part_of_a_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "load", lambda path: MATRIX)
    arguments = [f"--runs={tmp_path}", f"--results={tmp_path}", "--only=HARP"]
    monkeypatch.setattr(sys, "argv", ["compare", "--matrix=toy.py", *arguments])
    with pytest.raises(
        SystemExit, match=r"--only=HARP: allowed are parts .* such as dense_1_0, ha"
    ):
        compare.main()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not there; allowed are Python files"),
        ("MATRIX = {}", "has no matrix; allowed are files with MATRIX = Matrix"),
        ("\nimport nowhere_at_all", ":2: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ],
)
def test_a_file_without_a_matrix_is_refused_in_a_line(text, message, tmp_path):
    path = tmp_path / "toy.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match=message):
        compare.load(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pruned": {"c": "a"}}, "pruned='c': allowed are methods: a, b"),
        ({"pruned": {"a": "c"}}, r"pruned\['a'\]='c': allowed are methods: a, b"),
        ({"pruned": {"a": "a"}}, r"pruned\['a'\]='a': allowed are methods that do not come back"),
        ({"pruned": {"a": "b", "b": "a"}}, r"pruned\['a'\]='b': allowed are methods that do not"),
        ({"more_seeds": {"c": (1,)}}, "more_seeds='c': allowed are methods: a, b"),
        ({"more_targets": {"c": (0.1,)}}, "more_targets='c': allowed are methods: a, b"),
        ({"methods": {"a b": {}, "A-b": {}}}, "methods='A-b': allowed are names that differ"),
        ({"dense": {"dense": {}}}, "methods='dense': allowed are names that differ"),
        ({"targets": (0,)}, r"targets=0: allowed are numbers in \(0, 1\]"),
        ({"targets": (0.1234567, 0.12345671)}, "targets='0.123457': allowed are targets of"),
        ({"more_targets": {"a": (0.1,)}}, "targets='0.1': allowed are targets of different"),
    ],
)
def test_a_matrix_that_cannot_be_run_is_refused(fields, message):
    ordinary = {"base": "configs/digits.py", "fields": {}, "methods": {"a": {}, "b": {}}}
    ordinary["targets"] = (0.1,)
    with pytest.raises(ValueError, match=message):
        Matrix(**{**ordinary, **fields})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method,target,seed,kept\na,0.1,0\n", "line 2 has too many or too few values"),
        ("method,target,seed,kept\na,0.1,0,9,9\n", "line 2 has too many or too few values"),
        ("method,target\na,0.1\n", "has no column 'seed'; allowed are tables with method, target"),
        ("method,target,seed\n\xff\n", "cannot be read"),
    ],
)
def test_a_damaged_table_is_an_error_before_anything_runs(text, message, tmp_path, monkeypatch):
    for name in ("matrix", "epochs"):
        (tmp_path / f"toy_{name}.csv").write_bytes(text.encode("latin-1"))
        monkeypatch.setattr(compare, "load", lambda path: MATRIX)
        monkeypatch.setattr(compare, "execute", lambda *_: pytest.fail("it ran"))
        arguments = [f"--runs={tmp_path}", f"--results={tmp_path}"]
        monkeypatch.setattr(sys, "argv", ["compare", "--matrix=toy.py", *arguments])
        with pytest.raises(SystemExit, match=message):
            compare.main()
        (tmp_path / f"toy_{name}.csv").write_text("")  # as good as none


def test_rows_of_a_cell_are_added_once(tmp_path):
    """A kill between the two tables leaves epochs without a row of results."""
    table, cell = tmp_path / "toy_epochs.csv", {"method": "a", "target": "0.1", "seed": "0"}
    other = {**cell, "seed": "1", "epoch": "0"}
    tables.add(table, [{**cell, "epoch": "0"}, other])
    tables.add(table, [{**cell, "epoch": "0"}, {**cell, "epoch": "1"}])
    assert tables.read(table) == [other, {**cell, "epoch": "0"}, {**cell, "epoch": "1"}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no row of a pruned network"),
        ([{"method": DENSE, "target": "1"}], "has no row of a pruned network"),
        ([{}], "has no row of 'dense' yet"),
        ([{"autoattack": ""}], "autoattack='' in the row of a, 0.1, 0; allowed are numbers"),
    ],
)
def test_tables_that_cannot_be_drawn_are_refused(rows, message, tmp_path, monkeypatch):
    row = {"method": "a", "target": "0.1", "seed": "0", "kept": "9", "kept_per_layer": "9"}
    row |= dict.fromkeys(figures.ACCURACIES, "0.5")
    tables.write(tmp_path / "toy_matrix.csv", [{**row, **each} for each in rows])
    monkeypatch.setattr(sys, "argv", ["figures", str(tmp_path / "toy_matrix.csv")])
    with pytest.raises(SystemExit, match=message):
        figures.main()


def test_a_failed_run_is_named_in_a_line(tmp_path, monkeypatch, capsys):
    def fail(command, clock):
        raise subprocess.CalledProcessError(3, command)

    monkeypatch.setattr(compare, "load", lambda path: MATRIX)
    monkeypatch.setattr(compare, "execute", fail)
    arguments = [f"--runs={tmp_path}", f"--results={tmp_path}", "--set=prune.strategy=erk"]
    monkeypatch.setattr(sys, "argv", ["compare", "--matrix=toy.py", *arguments])
    with pytest.raises(SystemExit, match=f"the run with --workdir={tmp_path}/dense_1_0 ended with"):
        compare.main()
    assert "--set=prune.strategy: 1 cells keep their own, such as hydra-erk_0.2_0" in (
        capsys.readouterr().out
    )


def test_further_dense_networks_start_from_nothing():
    matrix = Matrix("configs/digits.py", {}, {}, (0.1,), dense={"longer": {"pretrain.epochs": 9}})
    dense, longer = cells(matrix)
    assert (dense.method, longer.method, longer.target) == (DENSE, "longer", 1)
    command = compare.command(longer, matrix, pathlib.Path("runs"))
    assert "--config.pretrain.epochs=9" in command
    assert "--config.stages=('pretrain', 'evaluate')" in command
    assert not any("prune" in part for part in command)
