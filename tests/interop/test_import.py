"""What is taken from a checkpoint, what is left out, and what forbids an import."""

import json

import numpy as np
import pytest
import torch_files

from harp_jax.export import FileError
from harp_jax.interop import __main__ as command
from harp_jax.interop import import_checkpoint, inspect, layouts, read

RNG = np.random.default_rng(0)
TINY = {
    key: RNG.standard_normal(shape).astype(np.float32)
    for key, (_, shape) in layouts.layout("tiny", (8, 8, 1), 10).arrays.items()
}
TINY |= {key: np.abs(array) for key, array in TINY.items() if key.endswith("running_var")}
LAYERS = layouts.layout("tiny", (8, 8, 1), 10).layers()
COUNTERS = {f"bn{n}.num_batches_tracked": np.array(7) for n in (1, 2)}
SCORES = {f"{name}.popup_scores": RNG.standard_normal(shape) for name, (_, shape) in LAYERS.items()}
SCORES = {key: array.astype(np.float32) for key, array in SCORES.items()}
PRETRAINED = {f"{name}.k_score": np.array(1, np.float32) for name in LAYERS}
LEARNED = {f"{name}.k_score": np.array(-3, np.float32) for name in LAYERS}


@pytest.fixture
def written(tmp_path):
    """Writes a checkpoint and returns its path."""

    def write(content, write=torch_files.zipped):
        path = tmp_path / "net.pth.tar"
        path.write_bytes(write(content))
        return path

    return write


@pytest.fixture
def refused(written, tmp_path):
    """The line with which an import is refused; nothing is written then."""

    def refuse(content, model="tiny", **settings):
        path, workdir = written(content), tmp_path / "workdir"
        with pytest.raises(FileError) as caught:
            import_checkpoint(path, model, workdir, **settings)
        assert not workdir.exists()
        text = str(caught.value)
        assert "\n" not in text
        return text

    return refuse


def prefixed(prefix, arrays=TINY):
    return {f"{prefix}{key}": array for key, array in arrays.items()}


def assert_tiny(found, arrays=TINY):
    params = found.variables["params"]
    expected = arrays["conv2.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["conv2"]["kernel"], expected)
    # Features are flattened as C, H, W there and as H, W, C here.
    expected = arrays["fc1.weight"].reshape(32, 16, 2, 2).transpose(2, 3, 1, 0).reshape(64, 32)
    np.testing.assert_array_equal(params["dense1"]["kernel"], expected)
    np.testing.assert_array_equal(params["dense2"]["bias"], arrays["fc2.bias"])
    np.testing.assert_array_equal(params["norm1"]["scale"], arrays["bn1.weight"])
    variance = found.variables["batch_stats"]["norm2"]["var"]
    np.testing.assert_array_equal(variance, arrays["bn2.running_var"])
    assert all(leaf.dtype == np.float32 for leaf in (variance, params["dense1"]["kernel"]))


@pytest.mark.parametrize("level", ["", "state_dict", "model", "net", "last", "a.b"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "module.basic_model.", "module._orig_mod.", "basic_block."]
)
def test_levels_and_prefixes(level, prefix, written):
    content = prefixed(prefix, TINY | COUNTERS)
    for name in reversed(level.split(".") if level else []):
        content = {"epoch": 3, "optimizer": {"state": {0: {"m": np.zeros(3)}}}, name: content}
    found = read(written(content), "tiny")
    assert_tiny(found)
    report = found.report
    assert report.taken[f"{prefix}bn1.running_mean"] == "batch_stats/norm1/mean"
    assert report.ignored[f"{prefix}bn2.num_batches_tracked"] == "a counter of BatchNorm"
    assert report.choice == (f"{level}:{prefix}" if prefix else level)
    assert report.ignored.get("epoch") == ("another entry of the file" if level else None)
    assert (report.missing, report.wrong, report.unknown) == ([], {}, [])


def test_the_report_of_every_key(written):
    content = TINY | COUNTERS | {"sub_block1.layer.0.conv1.weight": np.zeros(3), "n": 3}
    found = read(
        written(content | {"mu": np.zeros((1, 1, 1)), "sigma": np.ones((1, 1, 1))}), "tiny"
    )
    report = found.report
    assert report.taken.keys() == TINY.keys()
    assert report.ignored["sub_block1.layer.0.conv1.weight"].startswith("RobustBench's wide")
    assert report.ignored["n"] == "no array"
    assert report.ignored["mu"] == report.ignored["sigma"] == "the network's normalisation"
    assert report.problem() is None
    assert "taken: 14 arrays of tiny at ''" in report.lines()
    assert found.metadata["normalization"] == ((0.0,), (1.0,))


def test_what_is_wrong_is_listed_and_nothing_is_written(refused, written):
    content = {key: array for key, array in TINY.items() if key != "bn1.bias"}
    content |= {"conv2.weight": np.zeros((16, 8, 5, 5), np.float32), "extra.weight": np.zeros(2)}
    text = refused(content)
    assert (
        "net.pth.tar: is not of model='tiny'; missing: bn1.bias; other shape: conv2.weight" in text
    )
    assert "(16, 8, 5, 5), not (16, 8, 3, 3); unknown: extra.weight" in text
    report = inspect(written(content), "tiny")
    assert report.missing == ["bn1.bias"]
    assert report.wrong == {"conv2.weight": "(16, 8, 5, 5), not (16, 8, 3, 3)"}
    assert report.unknown == ["extra.weight"]
    assert {"missing: bn1.bias", "unknown: extra.weight"} <= set(report.lines())


def test_keys_that_nothing_explains_can_be_left_out(written):
    content = prefixed("module.", TINY | {"head.weight": np.zeros(3), "head.bias": np.zeros(3)})
    found = read(written(content), "tiny", ignore=("head.",))
    assert found.report.ignored["module.head.bias"] == "as asked"
    assert_tiny(found)


def test_a_file_of_another_network_names_it(refused):
    layout = layouts.layout("wrn_28_4", (32, 32, 3), 10)
    arrays = {key: np.zeros(shape, np.float32) for key, (_, shape) in layout.arrays.items()}
    text = refused(arrays, "wrn_28_10")
    assert "; it fits model=wrn_28_4" in text
    assert "missing" not in text
    assert "it fits model=tiny" in refused(TINY, "resnet18")
    assert "it fits" not in refused({"a.weight": np.zeros(3)}, "resnet18")


def test_a_deeper_network_is_not_taken_for_a_flatter_one(refused):
    layout = layouts.layout("wrn_34_10", (32, 32, 3), 10)
    arrays = {key: np.zeros(shape, np.float16) for key, (_, shape) in layout.arrays.items()}
    text = refused(arrays, "wrn_28_10")
    assert "; unknown: block1.layer.4." in text
    assert text.endswith("; it fits model=wrn_34_10")


def test_a_final_batchnorm_is_not_passed_over(refused):
    layout = layouts.layout("preact_resnet18_v2", (32, 32, 3), 10)
    arrays = {key: np.zeros(shape, np.float32) for key, (_, shape) in layout.arrays.items()}
    assert "unknown: bn.running_mean, bn.running_var, bn.bias" in refused(arrays, "preact_resnet18")
    assert "it fits model=preact_resnet18_v2" in refused(arrays, "preact_resnet18")


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    "leaves", [("weight_orig", "weight_mask"), ("weight_g", "weight_v"),
               ("parametrizations.weight.original0", "parametrizations.weight.original1")],
)  # fmt: skip
def test_weights_that_are_computed_from_others(leaves, prefix, refused):
    content = {}
    for key, array in TINY.items():
        layer, _, leaf = key.rpartition(".")
        names = leaves if layer.startswith(("conv", "fc")) and leaf == "weight" else (leaf,)
        content |= {f"{prefix}{layer}.{name}": array for name in names}
    text = refused(content)
    assert f"missing: {prefix}conv1.weight, {prefix}conv2.weight, {prefix}fc1.weight and 1" in text
    assert "some weights are computed from others: in PyTorch, make them plain first" in text
    assert "other shape" not in text


def test_several_networks_in_a_file(refused, written):
    other = {key: array + 1 for key, array in TINY.items()}
    content = {"state_dict": TINY, "state_dict_ema": other}
    assert "key=None: 2 networks are in it; allowed are 'state_dict', 'state_dict_ema'" in refused(
        content
    )
    assert_tiny(read(written(content), "tiny", key="state_dict"))
    found = read(written(content), "tiny", key="state_dict_ema")
    assert_tiny(found, other)
    assert found.metadata["imported"] == {"file": "net.pth.tar", "key": "state_dict_ema"}
    assert "key='ema': nothing is there; allowed are 'state_dict', 'state_dict_ema'" in refused(
        content, key="ema"
    )


def test_two_places_of_one_name_are_refused(refused):
    content = {"a.b": TINY, "a": {"b": {key: array + 1 for key, array in TINY.items()}}}
    assert "key='a.b': stands for two places" in refused(content)


def test_several_networks_behind_prefixes(refused, written):
    other = {key: array + 1 for key, array in TINY.items()}
    content = {"model": prefixed("model.") | prefixed("ema_model.", other)}
    assert "allowed are 'model:model.', 'model:ema_model.'" in refused(content)
    assert "2 networks are in it" in refused(content, key="model")
    found = read(written(content), "tiny", key="model:ema_model.")
    assert_tiny(found, other)
    assert found.report.ignored["model.fc1.bias"] == "another network"
    assert_tiny(read(written(TINY | prefixed("ema.", other)), "tiny", key=""))


def test_types_of_numbers(written, refused):
    halves = {key: array.astype(np.float16) for key, array in TINY.items()}
    found = read(written(halves), "tiny")
    assert_tiny(found, {key: array.astype(np.float32) for key, array in halves.items()})
    assert not any("rounded" in note for note in found.metadata["notes"])
    doubles = {key: array.astype(np.float64) + 1e-12 for key, array in TINY.items()}
    found = read(written(doubles), "tiny")
    assert_tiny(found, {key: array.astype(np.float32) for key, array in doubles.items()})
    (note,) = (note for note in found.metadata["notes"] if "rounded" in note)
    assert note.startswith("rounded to float32: bn1.running_mean")
    for number in (np.nan, np.inf, 1e300):
        wrong = {**doubles, "fc2.bias": np.full(10, number)}
        assert "fc2.bias: has numbers that are not finite" in refused(wrong)
    for dtype in (np.int64, np.uint8, np.bool_):
        wrong = {**TINY, "fc2.bias": np.ones(10, dtype)}
        text = f"fc2.bias: has numbers of {np.dtype(dtype).name}; allowed are float16, bfloat16,"
        assert text in refused(wrong)
    wrong = {**TINY, "bn1.running_var": np.linspace(-1e-3, 1, 8, dtype=np.float32)}
    assert "bn1.running_var: has numbers < 0; allowed are variances" in refused(wrong)


def test_number_of_classes(written, refused):
    content = {
        **TINY,
        "fc2.weight": np.ones((7, 32), np.float32),
        "fc2.bias": np.ones(7, np.float32),
    }
    assert read(written(content), "tiny").metadata["num_classes"] == 7
    assert read(written(content), "tiny", num_classes=7).metadata["num_classes"] == 7
    assert "fc2.weight (7, 32), not (10, 32)" in refused(content, num_classes=10)
    assert "fc2.bias (7,), not (10,)" in refused({**TINY, "fc2.bias": content["fc2.bias"]})


def test_images_of_another_size(written, refused):
    content = {**TINY, "fc1.weight": np.ones((32, 16 * 3 * 2), np.float32)}
    assert "fc1.weight (32, 96), not (32, 64)" in refused(content)
    found = read(written(content), "tiny", image_shape=(12, 8, 1))
    assert found.metadata["image_shape"] == [12, 8, 1]
    assert "image_shape=(0, 8, 1): allowed are height" in refused(TINY, image_shape=(0, 8, 1))
    assert "image_shape=(1, 1, 1): allowed are" in refused(TINY, image_shape=(1, 1, 1))


def test_normalization(written, refused):
    tiny = written(TINY)
    assert read(tiny, "tiny").metadata["normalization"] is None
    assert read(tiny, "tiny", normalization="none").metadata["normalization"] is None
    found = read(tiny, "tiny", normalization=[[0.5], [0.25]])
    assert found.metadata["normalization"] == ((0.5,), (0.25,))
    for wrong in ("cifar10", "cifar", [[0.5]], [[0.5], [0.0]], [[0.5], [np.nan]], [[], []]):
        assert "allowed are none, cifar10, svhn, imagenet, or 1 means and" in refused(
            TINY, normalization=wrong
        )


def test_normalization_in_the_file(written, refused):
    buffers = {"normalize.mean": np.full((1, 1, 1, 1), 0.2, np.float32)}
    buffers["normalize.std"] = np.full((1, 1, 1, 1), 0.3, np.float32)
    content = prefixed("model.") | buffers
    found = read(written(content), "tiny")
    assert found.metadata["normalization"] == ((0.2,), (0.3,))
    assert read(written(content), "tiny", normalization=[[0.2], [0.3]]).metadata["normalization"]
    assert "normalization='none': the file has its own" in refused(content, normalization="none")
    assert "the file has its own, ((0.2,), (0.3,))" in refused(
        content, normalization=[[0.0], [1.0]]
    )
    assert "unknown: normalize.mean" in refused(
        {key: each for key, each in content.items() if key != "normalize.std"}
    )
    assert "has several normalisations (normalize.mean, mu)" in refused(
        {**content, "mu": np.zeros(1, np.float32), "sigma": np.ones(1, np.float32)}
    )
    assert "normalize.mean: normalization=" in refused({**content, "normalize.std": np.zeros(1)})
    text = refused({**content, "normalize.std": np.ones(10_000)})
    assert "normalize.mean, normalize.std: have the shapes (1, 1, 1, 1) and (10000,)" in text


def test_no_key_of_a_file_acts_on_a_terminal(written, refused, capsys, tmp_path):
    key, named = "\x1b[31mred\x1b]0;t\x07\n\r\u202e", "?[31mred?]0;t????.mean"

    def numbers(module, deviation):
        return {f"{module}.mean": np.zeros(1), f"{module}.std": np.full(1, deviation)}

    content = prefixed("m.") | numbers(key, 1.0)
    assert refused(content | numbers("n", 1.0)).endswith(f"({named}, n.mean); allowed is one")
    assert f"{named}: normalization=" in refused(content | numbers(key, 0.0))
    assert f"{named}, " in refused(content | {f"{key}.std": np.ones(2)})
    arguments = ["--model=tiny", f"--out={tmp_path / 'workdir'}"]
    assert command.main(["import", str(written(content)), *arguments]) == 0
    printed = capsys.readouterr().out
    assert named in printed
    assert printed.replace("\n", "").isprintable()


def test_each_network_of_a_file_has_its_normalization(written, refused):
    def numbers(module, mean):
        return {f"{module}.new_mean": np.full(1, mean), f"{module}.new_std": np.ones(1)}

    other = {key: array + 1 for key, array in TINY.items()}
    content = {
        **prefixed("module.model."),
        **numbers("module.normalizer", 0.25),
        **prefixed("module.attacker.model.", other),
        **numbers("module.attacker.normalize", 0.5),
    }
    found = read(written(content), "tiny", key=":module.model.")
    assert found.metadata["normalization"] == ((0.25,), (1.0,))
    assert found.report.ignored["module.attacker.normalize.new_std"] == "another network"
    found = read(written(content), "tiny", key=":module.attacker.model.")
    assert_tiny(found, other)
    assert found.metadata["normalization"] == ((0.5,), (1.0,))
    assert found.report.ignored["module.normalizer.new_mean"] == "another network"
    further = {**content, **numbers("module.model.first", 0.1)}
    assert "has several normalisations (module.normalizer.new_mean, module.model." in refused(
        further, key=":module.model."
    )
    # One for all of a file is that of the network that is asked for, wherever it stands.
    one = TINY | prefixed("ema.", other) | {"mu": np.full(1, 0.25), "sigma": np.ones(1)}
    found = read(written(one), "tiny", key=":ema.")
    assert found.metadata["normalization"] == ((0.25,), (1.0,))
    both = one | {"ema.mu": np.full(1, 0.75), "ema.sigma": np.ones(1)}
    for key, mean in ((":", 0.25), (":ema.", 0.75)):
        found = read(written(both), "tiny", key=key)
        assert found.metadata["normalization"] == ((mean,), (1.0,))


def test_pretrained_networks_of_the_authors_hold_scores(written):
    found = read(written(TINY | SCORES | PRETRAINED), "tiny")
    assert_tiny(found)
    assert found.variables.keys() == {"params", "batch_stats"}
    assert found.metadata["stage"] == "pretrain"
    assert any("every k_score is 1" in note for note in found.metadata["notes"])
    found = read(written(TINY | SCORES), "tiny", rate=1.0)
    assert found.variables.keys() == {"params", "batch_stats"}


def test_dense_files_of_pruned_networks_come_with_a_note(written):
    found = read(written(TINY | LEARNED), "tiny")
    assert any("masked at one rate for all layers" in note for note in found.metadata["notes"])


REFUSED = [
    (TINY, {"target": 0.1}, "target=0.1: the file has no popup_scores"),
    (TINY, {"rate": 0.1}, "rate=0.1: the file has no popup_scores"),
    (TINY | SCORES, {}, "rate=None: the file has popup_scores and no k_score, as HYDRA's"),
    (TINY | SCORES, {"target": 0.1}, "rate=None: the file has popup_scores and no k_score"),
    (TINY | SCORES | LEARNED, {}, "target=None: the file has popup_scores and learned rates"),
    (TINY | SCORES | LEARNED, {"rate": 0.1}, "rate=0.1: the file has k_score, as HARP's"),
    (TINY | SCORES | LEARNED, {"target": 0.0}, "target=0.0: allowed are numbers in (0, 1)"),
    (TINY | SCORES | LEARNED, {"target": 1.0}, "target=1.0: allowed are numbers in (0, 1)"),
    (
        TINY | SCORES | LEARNED,
        {"target": 0.1, "alpha": 2.0},
        "alpha=2.0: allowed are numbers in [0,",
    ),
    (TINY | SCORES | LEARNED, {"alpha": 0.1}, "alpha=0.1: allowed beside a target only"),
    (TINY | SCORES | LEARNED, {"target": 0.1, "rate": 0.1}, "allowed is one of them"),
    (TINY, {"model": "vgg"}, "model='vgg': allowed are cnn, tiny, vgg16_bn"),
    (TINY, {"num_classes": 1}, "num_classes=1: allowed are whole numbers >= 2"),
    ([1], {}, "has no arrays by name; allowed are dicts of tensors"),
    ({"epoch": 3}, {}, "has no arrays by name"),
    (
        TINY | {**SCORES, "fc1.popup_scores": np.zeros((32, 1), np.float32)},
        {"rate": 0.5},
        "fc1.popup_scores: has the shape (32, 1); allowed are (32, 64) and, for channels, (1, 64)",
    ),
    (
        TINY | {key: each for key, each in SCORES.items() if key != "fc2.popup_scores"},
        {"rate": 0.5},
        "missing: fc2.popup_scores",
    ),
    (
        TINY | SCORES | {"conv1.k_score": np.zeros((), np.float32)},
        {"target": 0.5},
        "missing: conv2.k_score, fc1.k_score, fc2.k_score",
    ),
    (
        TINY | SCORES | {**LEARNED, "fc1.k_score": np.zeros(2, np.float32)},
        {"target": 0.5},
        "fc1.k_score: has the shape (2,); allowed is one number",
    ),
]


@pytest.mark.parametrize(("content", "settings", "said"), REFUSED)
def test_files_and_options_that_do_not_go_together(content, settings, said, refused):
    assert said in refused(content, **settings)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--image-shape=8x8", "--image-shape: 8x8: allowed are height,width,channels, as 32,32,3"),
        ("--normalization=a/b", "--normalization: a/b: allowed are means/deviations, as 0.5,0.5"),
    ],
)
def test_options_of_the_command_line(option, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["import", "net.pth", "--model=tiny", "--out=none", option])
    assert said in capsys.readouterr().err


def test_the_command_line(written, tmp_path, capsys):
    path, out = str(written({"state_dict": TINY | SCORES | LEARNED})), tmp_path / "out"
    arguments = ["import", path, "--model=tiny", f"--out={out}"]
    assert command.main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: target=None: the file has popup")
    assert command.main([*arguments, "--target=0.2", "--normalization=0.5/0.25"]) == 0
    text = capsys.readouterr().out
    assert "taken: 22 arrays of tiny at 'state_dict'" in text
    assert f"{out}: prune; go on with --config.finetune.source={out}" in text
    report = json.loads((out / "import.json").read_text())
    assert report["report"]["taken"]["fc1.popup_scores"] == "scores/dense1/kernel"
    assert report["normalization"] == [[0.5], [0.25]]
    assert command.main([*arguments, "--target=0.2"]) == 1
    assert (
        "has import.json, prune in it; allowed are new or empty folders" in capsys.readouterr().err
    )


def test_the_command_line_compares(written, capsys):
    assert command.main(["inspect", str(written(TINY)), "--model=tiny"]) == 0
    assert "taken: 14 arrays" in capsys.readouterr().out
    arguments = ["--model=tiny", "--image-shape=8,8,3", "--num-classes=10", "--key="]
    assert command.main(["inspect", str(written(TINY)), *arguments]) == 1
    assert "other shape: conv1.weight (8, 1, 3, 3), not (8, 3, 3, 3)" in capsys.readouterr().out
